"""Images that are sampled while a stage trains."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding

from imagen_jax.data.images import open_image
from imagen_jax.data.records import Record
from imagen_jax.files import atomic_path
from imagen_jax.grid import labelled_grid
from imagen_jax.sampling import from_uint8, image_keys, sample_stage, to_uint8
from imagen_jax.sharding import BATCH_SPEC, IMAGE_SPEC, batch_divisor
from imagen_jax.stage import Stage
from imagen_jax.stage_programs import StageInputs
from imagen_jax.typing import TextEmbedding


def true_images(records: Sequence[Record], side: int) -> jax.Array:
    """The images of records, averaged over areas: float32 [n, side, side, 3] in [-1, 1]."""
    whole = np.stack([np.asarray(open_image(record.image).image) for record in records])
    n, factor = len(whole), whole.shape[1] // side
    blocks = jnp.asarray(from_uint8(whole)).reshape(n, side, factor, side, factor, 3)
    return blocks.mean((2, 4))


class FixedSampler:
    """Samples the same captions from the same noise again and again.

    A super-resolution stage starts from the true low-resolution images.
    """

    def __init__(self, stage: Stage, records: Sequence[Record], mesh: Mesh):
        """Args:
        stage: the stage in training; sampled as its config says.
        records: captions with their token states, and images; the same on every host.
        mesh: devices that the weights lie on, over which images are divided.
        """
        self._stage, self._mesh = stage, mesh
        by_row: Any = NamedSharding(mesh, BATCH_SPEC)
        by_image: Any = NamedSharding(mesh, IMAGE_SPEC)
        # Through jit, which makes arrays of all hosts of what each of them has.
        self._divided = jax.jit(
            lambda text, seeds, low_res: StageInputs(text, image_keys(seeds), low_res),
            out_shardings=StageInputs(by_row, by_row, by_image if stage.low_res else None),
        )
        self._states = [record.states[0] for record in records]
        self._low_res = None
        if stage.low_res is not None:
            self._low_res = np.asarray(true_images(records, stage.low_res))
        devices = batch_divisor(mesh)
        most = stage.train.batch_size // stage.train.accumulation  # what the devices have room for
        self._together = min(most, -(-len(records) // devices) * devices)

    def __call__(self, params: Any) -> np.ndarray:
        """uint8 [n, resolution, resolution, 3], the same on every host; all must call it."""
        count, parts = len(self._states), []
        for start in range(0, count, self._together):
            rows = np.arange(start, min(start + self._together, count))
            inputs = self._inputs(np.resize(rows, self._together))
            made = sample_stage(self._stage, params, inputs, self._stage.sample, mesh=self._mesh)
            everywhere = multihost_utils.process_allgather(made, tiled=True)
            parts.append(to_uint8(everywhere)[: len(rows)])
        return np.concatenate(parts)

    def _inputs(self, rows: np.ndarray) -> StageInputs:
        text = self._stage.text
        states: Any = np.zeros((len(rows), text.max_length, text.width), np.float32)
        mask: Any = np.zeros(states.shape[:2], bool)
        for i, row in enumerate(rows):
            own = self._states[row]
            states[i, : len(own)], mask[i, : len(own)] = own, True
        low_res = None if self._low_res is None else self._low_res[rows]
        return self._divided(TextEmbedding(states, mask), rows, low_res)


class SampleGrid:
    """A grid of samples to watch a stage learn: of the first captions of the training shards."""

    def __init__(self, stage: Stage, directory: Path, records: Sequence[Record], mesh: Mesh):
        """Args:
        stage: the stage to train.
        directory: folder for <step>.png.
        records, mesh: as for FixedSampler.
        """
        self._sampler = FixedSampler(stage, records, mesh)
        self._directory = directory
        self._captions = [record.captions[0] for record in records]
        self._scale = max(1, 128 // stage.resolution)
        self._colour = to_uint8(true_images(records, stage.resolution)).mean((0, 1, 2))

    def write(self, step: int, params: Any) -> tuple[np.ndarray, dict[str, float]]:
        """Samples with `params`, and writes <directory>/<step>.png.

        Returns:
          (the grid as [h, w, 3] uint8, how much redder, greener and bluer the samples are than the
          true images of their captions: colour_drift_<channel>, mean of 0 to 255).
        """
        images = self._sampler(params)
        grid = labelled_grid(images, self._captions, columns=4, scale=self._scale)
        if jax.process_index() == 0:
            self._directory.mkdir(parents=True, exist_ok=True)
            with atomic_path(self._directory / f"{step:07d}.png") as part:
                grid.save(part, format="png")
        drift = images.mean((0, 1, 2)) - self._colour
        named = zip(("red", "green", "blue"), drift, strict=True)
        return np.asarray(grid.convert("RGB")), {
            f"colour_drift_{channel}": float(value) for channel, value in named
        }
