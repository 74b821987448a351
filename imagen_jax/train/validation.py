"""Validation: the EMA weights on examples that training does not see."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from imagen_jax import sharding
from imagen_jax.data.iterator import BatchIterator
from imagen_jax.diffusion.parametrization import amplitudes, diffuse, split_variance, to_x0
from imagen_jax.errors import UserError
from imagen_jax.low_noise import LEVELS, X0Errors, last_level
from imagen_jax.sampling import image_keys
from imagen_jax.stage import Stage
from imagen_jax.stage_config import VALIDATION_LOSS
from imagen_jax.stage_programs import stage_conditioning
from imagen_jax.train.start import open_batches
from imagen_jax.train.step import Batch, stage_loss
from imagen_jax.typing import TextEmbedding

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
    two steps differ in their weights alone; and errors of x0 by noise level on the first of them.

    Attributes:
      x0_errors: errors that the last call measured; there are none before it.
    """

    x0_errors: X0Errors

    def __init__(
        self,
        stage: Stage,
        data_dir: str,
        mesh: Mesh,
        params_shardings: Any,
        report: Callable[[str], None],
    ):
        """Args:
        stage: the stage that is trained; reads train.validation_batches batches of the split
          "validation", and repeats its examples if there are fewer.
        data_dir: directory of embeddings, as for training.
        mesh: devices that the weights lie on.
        params_shardings: shardings of the weights.
        report: shows a line.

        Raises:
          UserError: the data has no such split.
        """
        self._stage, self._report = stage, report
        self._count = stage.train.validation_batches
        self._batches = open_validation(stage, data_dir, mesh, "validation_batches")
        self._shardings = sharding.batch_shardings(mesh, stage.batch_names)
        self._last = last_level(stage, stage.sample)
        lowest, highest = (float(stage.schedule.logsnr(t)) for t in (1.0, 0.0))
        within = {level for level in LEVELS if lowest <= level <= highest}
        self._levels = tuple(sorted(within | {self._last}))

        def loss(params: Any, batch: Batch, index: jax.Array) -> jax.Array:
            key = jax.random.fold_in(jax.random.key(stage.train.seed + 1), index)
            return jnp.mean(stage_loss(stage, params, batch, key, train=False).per_example)

        self._loss, self._errors = (
            jax.jit(
                sharding.on_mesh(function, mesh),
                in_shardings=(params_shardings, self._shardings, sharding.replicated(mesh)),
                out_shardings=sharding.replicated(mesh),
            )
            for function in (loss, lambda *args: x0_errors(stage, *args))
        )

    def __call__(self, params: Any) -> dict[str, float]:
        """Measure, and report errors by noise level in a line, with a warning if there is reason.

        Returns:
          {"validation_loss": mean over the batches} and X0Errors.metrics, the same on every host.
        """
        self._batches.seek(0)
        losses, errors = [], []
        for index in np.arange(self._count):
            batch = sharding.global_arrays(next(self._batches), self._shardings)
            losses.append(self._loss(params, batch, index))
            if index == 0:
                errors = [self._errors(params, batch, np.float32(at)) for at in self._levels]
        self._batches.close()  # no reading ahead until the next checkpoint
        network, identity = np.array(jax.device_get(errors), float).T
        found = X0Errors(self._levels, tuple(network.tolist()), tuple(identity.tolist()))
        self.x0_errors = found
        self._report(f"{self._stage.name}: {found.summary()}")
        if fault := found.fault(self._last):
            self._report(f"{self._stage.name}: WARNING: {fault}")
        return {VALIDATION_LOSS: float(np.mean(jax.device_get(losses))), **found.metrics()}


def x0_errors(
    stage: Stage, params: Any, batch: Batch, logsnr: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Root mean squared errors of x0 at a noise level, of the network and of x_t / alpha.

    The network is called as sampling calls it, without guidance: with the text, and with the
    low-resolution image noised by sample.aug_level. The noise is the same at every level.

    Args:
      stage: the stage.
      params: weights of its network.
      batch: a training batch of b examples.
      logsnr: [] noise level.
    """
    x0 = batch["image"]
    count, size = x0.shape[0], (stage.train_resolution,) * 2
    conditioning = stage_conditioning(
        stage,
        TextEmbedding(batch["text_emb"].astype(jnp.float32), batch["text_mask"]),
        image_keys(jnp.arange(count)),
        batch.get("low_res"),
        stage.sample.aug_level,
        size,
    )
    eps = jax.random.normal(jax.random.key(stage.train.seed), x0.shape)
    levels = jnp.broadcast_to(logsnr, (count,))
    x_t = diffuse(x0, eps, levels)
    output, _ = split_variance(stage.apply(params, x_t, levels, conditioning), x0.shape[-1])
    estimate = to_x0(stage.parametrization, output, x_t, levels)
    alpha, sigma = amplitudes(levels, x0)
    errors = estimate - x0, sigma / alpha * eps
    return tuple(jnp.sqrt(jnp.mean(jnp.square(error))) for error in errors)  # type: ignore[return-value]
