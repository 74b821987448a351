"""The networks that a config can name."""

from __future__ import annotations

import dataclasses
import sys
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

MAX_SIZE = 2**20
"""Of a network's whole numbers: channels, heads, tokens."""
MAX_LAYERS = 1000
"""Blocks and layers of a network."""
COUNTS = ("blocks", "depth", "text_layers")
"""Fields that count them, where a network has them."""


def network_class(kind: Any, where: str) -> type[BaseNetwork]:
    """The class that a config's network.kind names.

    Nothing is imported: a config may be what a cascade of somebody else recorded, and importing
    runs code. `load_config`, which runs a config of the user's anyway, imports what it names.

    Args:
      kind: key of NETWORKS, or "module:Class" of a module that is imported.
      where: path of the section in the config, for messages.

    Raises:
      UserError: no such module is imported, or it has no such class, or it is no BaseNetwork.
    """
    if kind in NETWORKS:
        return NETWORKS[kind]
    module, colon, name = str(kind).partition(":")
    if not colon:
        raise UserError(
            f"{where}.kind is {kind!r}; choices: {', '.join(NETWORKS)}, or 'module:Class' of a "
            "network of your own"
        )
    if module not in sys.modules:
        raise UserError(
            f"{where}.kind is {kind!r}, and {module!r} is not imported: what somebody else's file "
            f"names is not run. If you trust it, --import {module} does (in Python, import it)"
        )
    if name not in vars(sys.modules[module]):
        raise UserError(f"{where}.kind is {kind!r}, but {module} has no {name!r}")
    found = vars(sys.modules[module])[name]
    if not (isinstance(found, type) and issubclass(found, BaseNetwork)):
        raise UserError(
            f"{where}.kind is {kind!r}, which is no subclass of imagen_jax.models.base.BaseNetwork"
        )
    return found


def check_size(network: BaseNetwork, where: str) -> None:
    """Check that a network can be looked at before there are weights: its layers are traced.

    Raises:
      UserError: it is larger than any is, as somebody else's file may say.
    """
    layers = 0
    for field in dataclasses.fields(network):
        value = getattr(network, field.name)
        numbers = [x for x in (value if isinstance(value, tuple) else (value,)) if type(x) is int]
        if any(abs(x) > MAX_SIZE for x in numbers):
            raise UserError(f"{where}.{field.name} is beyond {MAX_SIZE:,}, which no network has")
        layers += sum(numbers) if field.name in COUNTS else 0
    if layers > MAX_LAYERS:
        raise UserError(
            f"{where} has {layers:,} blocks and layers; a network may have {MAX_LAYERS:,}"
        )
