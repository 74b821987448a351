"""Validation loss: the EMA weights on examples that training does not see."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from imagen_jax import sharding
from imagen_jax.data.iterator import BatchIterator
from imagen_jax.errors import UserError
from imagen_jax.stage import Stage
from imagen_jax.stage_config import VALIDATION_LOSS
from imagen_jax.train.start import open_batches
from imagen_jax.train.step import Batch, stage_loss

SPLIT = "validation"


def open_validation(stage: Stage, data_dir: str, mesh: Mesh, key: str) -> BatchIterator:
    """Batches of the split that training does not see.

    Args:
      stage, data_dir, mesh: see open_batches.
      key: key of the stage's train section that asked for validation, for the message.

    Raises:
      UserError: the data has no such split.
    """
    try:
        return open_batches(stage, data_dir, mesh, SPLIT)
    except UserError as error:
        raise UserError(
            f"stages.{stage.name}.train.{key} is {getattr(stage.train, key)}: {error}. It needs a "
            f"split {SPLIT!r} in {data_dir}; embed one with imagen embed --split {SPLIT}, or do "
            "without it (0)"
        ) from error


class Validation:
    """Diffusion loss on fixed batches with fixed noise, without dropout of text or units, so that
    two steps differ in their weights alone."""

    def __init__(self, stage: Stage, data_dir: str, mesh: Mesh, params_shardings: Any):
        """Args:
        stage: the stage that is trained; reads train.validation_batches batches of the split
          "validation", and repeats its examples if there are fewer.
        data_dir: directory of embeddings, as for training.
        mesh: devices that the weights lie on.
        params_shardings: shardings of the weights.

        Raises:
          UserError: the data has no such split.
        """
        self._count = stage.train.validation_batches
        self._batches = open_validation(stage, data_dir, mesh, "validation_batches")
        self._shardings = sharding.batch_shardings(mesh, stage.batch_names)

        def loss(params: Any, batch: Batch, index: jax.Array) -> jax.Array:
            key = jax.random.fold_in(jax.random.key(stage.train.seed + 1), index)
            return jnp.mean(stage_loss(stage, params, batch, key, train=False).per_example)

        self._loss = jax.jit(
            sharding.on_mesh(loss, mesh),
            in_shardings=(params_shardings, self._shardings, sharding.replicated(mesh)),
            out_shardings=sharding.replicated(mesh),
        )

    def __call__(self, params: Any) -> dict[str, float]:
        """{"validation_loss": mean over the batches}, the same on every host."""
        self._batches.seek(0)
        losses = [
            self._loss(params, sharding.global_arrays(next(self._batches), self._shardings), index)
            for index in np.arange(self._count)
        ]
        self._batches.close()  # no reading ahead until the next checkpoint
        return {VALIDATION_LOSS: float(np.mean(jax.device_get(losses)))}
