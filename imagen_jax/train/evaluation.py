"""Distance of EMA samples from real images while a stage trains.

Sampled are captions of the data's split "validation", always from the same noise; a
super-resolution stage starts from the true low-resolution images of theirs. As many other
images of the split are what they are compared with, so that the true images of the captions,
compared with the same others, are what a perfect stage gets: the floor.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh

from imagen_jax.data.records import Record
from imagen_jax.data.scenes.levels import Level
from imagen_jax.data.scenes.scene import Scene
from imagen_jax.data.scenes.source import scene_of
from imagen_jax.data.sources import described_level
from imagen_jax.errors import UserError
from imagen_jax.eval.alignment import score_all
from imagen_jax.eval.features.network import load_network
from imagen_jax.eval.metrics.frechet import frechet_of_features
from imagen_jax.eval.metrics.kernel import squared_mmd
from imagen_jax.sampling import to_uint8
from imagen_jax.stage import Stage
from imagen_jax.stage_config import ALL_CORRECT, FRECHET, KERNEL
from imagen_jax.train.samples import FixedSampler, true_images
from imagen_jax.train.validation import SPLIT, open_validation


class Evaluation:
    """Distances on features of MobileNetV2, and, of built-in scenes, how many are as described."""

    def __init__(self, stage: Stage, data_dir: str, mesh: Mesh):
        """Args:
        stage: the stage in training; of the split, 2 * train.evaluate_images examples are taken, at
          even distances.
        data_dir: embeddings, as for training.
        mesh: devices that the weights lie on.

        Raises:
          UserError: no weights of MobileNetV2; the data has no such split, too few examples in it,
            or is no built-in scenes where all_correct is what decides.
        """
        batches = open_validation(stage, data_dir, mesh, "evaluate_every")
        count = stage.train.evaluate_images
        try:
            records = batches.spread_records(2 * count)
        except ValueError as error:
            raise UserError(
                f"stages.{stage.name}.train.evaluate_images is {count}, and as many others of "
                f"the split {SPLIT!r} are compared with: {error}"
            ) from error
        captioned, others = records[::2], records[1::2]
        self._scenes = _scenes(batches.manifest["source"].get(SPLIT), captioned)
        if stage.train.best_metric == ALL_CORRECT and self._scenes is None:
            raise UserError(
                f"stages.{stage.name}.train.best_metric is {ALL_CORRECT!r}, which is measured on "
                f"built-in scenes, whose layouts are known; the split {SPLIT!r} of {data_dir} has "
                f"other images, of which {FRECHET!r} is"
            )
        self._network = load_network("mobilenet-v2")
        self._sampler = FixedSampler(stage, captioned, mesh)
        of_others, of_captions = (
            to_uint8(true_images(chosen, stage.resolution)) for chosen in (others, captioned)
        )
        self._others = self._network(of_others)
        bounds = {FRECHET: "floor", KERNEL: "floor", ALL_CORRECT: "ceiling"}
        self._bounds = {
            f"{name}_{bounds[name]}": value for name, value in self._measure(of_captions).items()
        }

    def __call__(self, params: Any) -> dict[str, float]:
        """Samples, and measures what comes out; all hosts must call it.

        Returns:
          frechet_mobilenet_v2, kernel_mobilenet_v2 and the <name>_floor of each; of scenes
          all_correct, share of 0 to 1, and all_correct_ceiling, that of the true images. The same
          on every host.
        """
        made = self._sampler(params)
        scalars = self._measure(made) | self._bounds
        # Hosts may differ in the last digit, but not in which checkpoints they keep.
        values = multihost_utils.broadcast_one_to_all(np.array([*scalars.values()]))
        return dict(zip(scalars, map(float, values), strict=True))

    def _measure(self, images: np.ndarray) -> dict[str, float]:
        """Of images of the captions."""
        features = self._network(images)
        scalars = {
            FRECHET: frechet_of_features(self._others, features),
            KERNEL: squared_mmd(*(f.astype(np.float64) for f in (self._others, features))),
        }
        if self._scenes is not None:
            level, scenes = self._scenes
            right = [found["all_correct"] for found in score_all(scenes, images, level)]
            scalars[ALL_CORRECT] = float(np.mean(right))
        return scalars


def _scenes(
    description: Mapping[str, Any] | None, records: Sequence[Record]
) -> tuple[Level, list[Scene]] | None:
    """The level and the scenes of records whose source is described; None for other sources."""
    if description is None or description["name"] != "scenes":
        return None
    level = described_level(description)
    split, seed = description["split"], description["seed"]
    return level, [scene_of(record.id, level, split, seed) for record in records]
