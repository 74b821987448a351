"""The networks that a config can name."""

from __future__ import annotations

import importlib
from typing import Any

from imagen_jax.errors import UserError
from imagen_jax.models.base import BaseNetwork
from imagen_jax.models.deepfloyd_unet import DeepFloydUNet
from imagen_jax.models.efficient_unet import EfficientUNet
from imagen_jax.models.jit import JiT
from imagen_jax.models.unet import UNet

NETWORKS: dict[str, type[BaseNetwork]] = {
    "unet": UNet,
    "efficient_unet": EfficientUNet,
    "jit": JiT,
    "deepfloyd_unet": DeepFloydUNet,
}
"""Networks that a config names by a short key; any other is named as "module:Class"."""


def network_class(kind: Any, where: str) -> type[BaseNetwork]:
    """The class that a config's network.kind names.

    Args:
      kind: key of NETWORKS, or "module:Class" of a module that Python can import.
      where: path of the section in the config, for messages.

    Raises:
      UserError: there is no such module or class, or it is no BaseNetwork.
    """
    if kind in NETWORKS:
        return NETWORKS[kind]
    module, colon, name = str(kind).partition(":")
    if not colon:
        raise UserError(
            f"{where}.kind is {kind!r}; choices: {', '.join(NETWORKS)}, or 'module:Class' of a "
            "network of your own"
        )
    try:
        found = getattr(importlib.import_module(module), name)
    except ModuleNotFoundError as error:
        if error.name != module.split(".")[0] and error.name != module:
            raise  # a module that theirs imports
        raise UserError(
            f"{where}.kind is {kind!r}, but there is no module {module!r}; install it, or put the "
            "folder that it is in on PYTHONPATH"
        ) from error
    except AttributeError as error:
        raise UserError(f"{where}.kind is {kind!r}, but {module} has no {name!r}") from error
    if not (isinstance(found, type) and issubclass(found, BaseNetwork)):
        raise UserError(
            f"{where}.kind is {kind!r}, which is no subclass of imagen_jax.models.base.BaseNetwork"
        )
    return found
