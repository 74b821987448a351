"""Validation of every stage that the package has a config of, shrunk."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
from ml_collections import ConfigDict

from imagen_jax import sharding
from imagen_jax.config import CONFIGS, load_config
from imagen_jax.embed import embed
from imagen_jax.stage import Stage, make_stage
from imagen_jax.train.state import abstract_state, create_state
from imagen_jax.train.validation import Validation

SIZE = 32


class Images(tiny.Colours):
    size = SIZE


def shrunk(config_name: str, stage_name: str) -> Stage:
    """The stage with its own topology, on 16 or 32 pixels, with 4 to 8 channels."""
    config = ConfigDict(load_config(config_name))
    config.text.update(encoder="tiny", width=tiny.WIDTH, max_length=5)
    stage = config.stages[stage_name]
    is_base = not stage.get("low_res")
    stage.resolution = 16 if is_base else SIZE
    if not is_base:
        stage.low_res = 8
    if stage.get("crop"):
        stage.crop = 16
    if "image_size" in stage.schedule:
        stage.schedule.image_size = stage.resolution
    if stage.network.kind == "jit":
        stage.network.update(width=16, depth=1, head_channels=4, bottleneck=8)
    else:
        levels = len(stage.network.blocks)
        one_number = isinstance(stage.network.channels, int)
        stage.network.update(
            channels=4 if one_number else (8,) * levels,
            blocks=(1,) * levels, head_channels=4, text_channels=8,
        )  # fmt: skip
    if stage.network.kind == "deepfloyd_unet":
        config.text.max_length = 77
        stage.network.update(features=16, groups=4, pool_heads=2)
    stage.train.update(batch_size=4, validation_batches=2)
    return make_stage(config, stage_name)


def distinct() -> dict[str, Stage]:
    """Shrunk stages of all configs; those that are equal then come once."""
    found: dict[Any, tuple[str, Stage]] = {}
    for path in sorted(CONFIGS.glob("*.py")):
        for name in load_config(path.stem).stages:
            stage = shrunk(path.stem, name)
            key = (stage.network, stage.schedule, stage.diffusion, stage.low_res, stage.crop)
            found.setdefault(key, (f"{path.stem}-{name}", stage))
    return dict(found.values())


STAGES = distinct()


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("validation") / "embeddings"
    options: dict[str, Any] = {"image_size": SIZE, "num_shards": 1}
    embed(Images(), directory, encoder=tiny.encoder(), split="validation", **options)
    return directory


@pytest.mark.slow
@pytest.mark.parametrize("name", STAGES)
def test_every_stage_can_be_validated(name: str, data: Path) -> None:
    stage = STAGES[name]
    mesh = sharding.make_mesh()
    said: list[str] = []
    shardings = abstract_state(stage, mesh)[1].params
    validation = Validation(stage, str(data), mesh, shardings, said.append)
    params = create_state(stage, mesh).params
    first = validation(params)
    assert first == validation(params)
    assert np.isfinite(first["validation_loss"])
    assert first["validation_loss"] > 0
