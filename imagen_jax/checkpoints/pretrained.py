"""Pretrained: a trained cascade whose weights are still on disk."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import flax.linen as nn
import jax
from jax.sharding import Mesh

from imagen_jax.checkpoints.safety import Safety
from imagen_jax.files import (
    fingerprint,
)
from imagen_jax.low_noise import X0Errors
from imagen_jax.sharding import make_mesh, state_shardings
from imagen_jax.stage import Stage


@dataclasses.dataclass(frozen=True)
class Pretrained:
    """A trained cascade, its weights still on disk.

    Which checkpoint a stage's weights come from is settled when this is made: a training that goes
    on does not change it.

    Attributes:
      stages: lowest resolution first.
      encoder: record of the text encoder that they were trained with: name and fingerprint.
      source: split -> description of the data that they were trained on.
      config: config of the cascade and its stages.
      license: attribution of weights that others trained, under a licence of theirs; or None.
      untrained: names of the config's stages that have no weights yet.
      safety: safety checker and watermark that are applied to images; None without them.
      x0_errors: stage -> errors by noise level that its last validation measured, if any did.
      read: (stage, shapes with dtypes and shardings) -> weights.
      digest: stage -> hash of the weights that `read` returns.
    """

    stages: tuple[Stage, ...]
    encoder: Mapping[str, Any]
    source: Mapping[str, Any]
    config: Mapping[str, Any]
    license: Mapping[str, str] | None
    x0_errors: Mapping[str, X0Errors]
    read: Callable[[Stage, Any], Any] = dataclasses.field(repr=False)
    digest: Callable[[Stage], str] = dataclasses.field(repr=False)
    untrained: tuple[str, ...] = ()
    safety: Safety | None = None

    def weights(self, stage: Stage, mesh: Mesh | None = None, dtype: str | None = None) -> Any:
        """Return the averaged weights of a stage, laid out by sharding.LOGICAL_AXIS_RULES.

        Args:
          stage: one of stages.
          mesh: None is the first device of this host alone.
          dtype: to cast them to; None is float32.

        Raises:
          UserError: they are not there, do not fit the network or the mesh, or are damaged.
        """
        mesh = make_mesh(devices=jax.local_devices()[:1]) if mesh is None else mesh
        boxed = jax.eval_shape(stage.init, jax.random.key(0))
        shapes = jax.tree.map(
            lambda leaf, sharding: jax.ShapeDtypeStruct(
                leaf.shape, dtype or leaf.dtype, sharding=sharding
            ),
            nn.unbox(boxed),
            state_shardings(boxed, mesh),
        )
        return self.read(stage, shapes)

    def fingerprint(self, stage: Stage) -> str:
        """Return 16 hexadecimal digits, equal for stages that make equal images: the same weights,
        network, diffusion process and text encoder."""
        section = self.config["stages"][stage.name]
        said = {name: section[name] for name in ("resolution", "network", "schedule")}
        said |= {"low_res": stage.low_res, "parametrization": stage.parametrization}
        said |= {"text": self.config["text"], "encoder": self.encoder["fingerprint"]}
        said["weights"] = self.digest(stage)
        return fingerprint(said)[:16]


def abstract_params(stage: Stage) -> Any:
    """Return shapes and dtypes of a stage's parameters."""
    return nn.unbox(jax.eval_shape(stage.init, jax.random.key(0)))
