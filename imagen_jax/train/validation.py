"""How well the averaged weights do on examples that training does not see."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from imagen_jax import sharding
from imagen_jax.data.iterator import BatchIterator
from imagen_jax.errors import UserError
from imagen_jax.stage import VALIDATION_LOSS, Stage
from imagen_jax.train.start import open_batches
from imagen_jax.train.step import Batch, stage_loss

SPLIT = "validation"


def open_validation(stage: Stage, data_dir: str, mesh: Mesh, key: str) -> BatchIterator:
    """The split of the data that training does not see.

    Args:
      stage, data_dir, mesh: as for open_batches.
      key: of the stage's train section, that asks for it where it is not 0.

    Raises:
      UserError: the data has no such split.
    """
    try:
        return open_batches(stage, data_dir, mesh, SPLIT)
    except ValueError as error:
        raise UserError(
            f"stages.{stage.name}.train.{key} is {getattr(stage.train, key)}: {error}. It needs a "
            f"split {SPLIT!r} in {data_dir}; embed one with imagen embed --split {SPLIT}, or do "
            "without it (0)"
        ) from error


class Validation:
    """The diffusion loss of the same batches with the same noise, again and again.

    What differs between two steps is the weights alone: text is not dropped, units neither.
    """

    def __init__(self, stage: Stage, data_dir: str, mesh: Mesh, params_shardings: Any):
        """Args:
        stage: what is trained; its train.validation_batches are read of the data's split
          "validation", whose examples come again where they are fewer.
        data_dir: embeddings, as for training.
        mesh: devices that the weights lie on.
        params_shardings: how they lie there.

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
        self._batches.close()  # reads nothing ahead while training goes on
        return {VALIDATION_LOSS: float(np.mean(jax.device_get(losses)))}
