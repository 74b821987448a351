"""Imagen in JAX: text to image by a cascade of diffusion models on a frozen language model.

    from imagen_jax import Cascade

    Cascade.load().sample(["a drawing of a red apple on a blue background"]).save("images")

The public API; everything is imported when it is first asked for:
    Cascade       prompts -> images through all stages: load, sample
    Stage         one stage: network, noise schedule, sampler's defaults
    load_config   a config by its name or file, with overrides
    open_corpus   captioned images: folder, table, tars, TFRecords, dataset
    embed         captioned images -> shards with the states of the language model
    train         one stage from those shards
    evaluate      what a cascade's images are worth
    diffusion     schedules, losses, guidance and samplers as pure functions

The rooms behind it, from the ground up:
    errors, paths, files, caches, config, extras, sharding, chips, lettering, typing
    diffusion/, models/, text/, data/, native/     the parts
    stage.py, stage_config.py, sampling.py,
    low_noise.py, checkpoints/                     where the parts meet
    train/, embed/, cascade/, eval/, plan/         the jobs
    page/, cli/, main.py                           the doors
"""

from __future__ import annotations

import importlib
import os
import sys
import types
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from imagen_jax import diffusion as diffusion
    from imagen_jax.cascade import Cascade as Cascade
    from imagen_jax.config import load_config as load_config
    from imagen_jax.data.corpora import open_corpus as open_corpus
    from imagen_jax.embed.job import embed as embed
    from imagen_jax.eval.protocols import evaluate as evaluate
    from imagen_jax.stage import Stage as Stage
    from imagen_jax.train.loop import train as train

__version__ = "0.1.0"

_HOMES = {
    "Cascade": "imagen_jax.cascade",
    "Stage": "imagen_jax.stage",
    "embed": "imagen_jax.embed.job",
    "evaluate": "imagen_jax.eval.protocols",
    "load_config": "imagen_jax.config",
    "open_corpus": "imagen_jax.data.corpora",
    "train": "imagen_jax.train.loop",
}
"""The module that each public name is in."""

_EXTRAS = {"embed": "train", "train": "train"}
"""The extra of pyproject.toml that a name needs."""

__all__ = [
    "Cascade",
    "Stage",
    "__version__",
    "diffusion",
    "embed",
    "evaluate",
    "load_config",
    "open_corpus",
    "train",
]


class _Package(types.ModuleType):
    """This package, in which `train` and `embed` are functions.

    Python binds a subpackage to the attribute of its name when it is first imported, here
    `imagen_jax.train` and `imagen_jax.embed`. That is refused, so that the two names mean the
    functions whatever was imported before. Imports of the subpackages do not use the attribute.
    """

    def __setattr__(self, name: str, value: Any) -> None:
        if name not in _HOMES or not isinstance(value, types.ModuleType):
            super().__setattr__(name, value)

    def __getattr__(self, name: str) -> Any:
        if name == "diffusion":
            return importlib.import_module("imagen_jax.diffusion")
        if name not in _HOMES:
            raise AttributeError(f"module 'imagen_jax' has no attribute {name!r}")
        if name in _EXTRAS:
            from imagen_jax.extras import import_tensorflow, require

            require(_EXTRAS[name], f"imagen_jax.{name}")
            os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "0")
            if name == "train":  # its modules would import it with all that it logs
                import_tensorflow()
        value = getattr(importlib.import_module(_HOMES[name]), name)
        setattr(self, name, value)
        return value

    def __dir__(self) -> list[str]:
        return sorted({*super().__dir__(), *__all__})


sys.modules[__name__].__class__ = _Package
