"""`imagen train --init-from`: the demo, and an imported DeepFloyd IF."""

from __future__ import annotations

import json
from pathlib import Path

import deepfloyd_files as files
import numpy as np
import pytest
import tiny

import imagen_jax
from imagen_jax.checkpoints.cascades import open_cascade
from imagen_jax.checkpoints.deepfloyd import import_deepfloyd
from imagen_jax.checkpoints.exported import flat_weights
from imagen_jax.config import load_config
from imagen_jax.diffusion.samplers import DDPM, parse_sampler
from imagen_jax.main import main

DEMO = Path(imagen_jax.__file__).parent / "demo"
CONFIG = """
import json
from ml_collections import ConfigDict

def get_config():
    return ConfigDict(json.loads(open({path!r}).read())["config"])
"""


def trained_on(origin: Path, given: str, data: Path, tmp_path: Path) -> Path:
    """The work directory of one step of the base stage that changes nothing."""
    config = tmp_path / "config.py"
    config.write_text(CONFIG.format(path=str(origin / "cascade.json")))
    changes = ("steps=1", "learning_rate=0", "warmup_steps=0", "batch_size=1", "sample_every=0")
    argv = ["--config", str(config), "--stage", "base", "--init-from", given, "--data", str(data)]
    argv += ["--workdir", str(tmp_path / "run"), "--set"]
    argv += [f"stages.base.train.{change}" for change in changes]
    assert main(["train", *argv]) == 0
    return tmp_path / "run"


def assert_the_same(origin: Path, run: Path) -> None:
    before, after = (
        flat_weights(cascade.weights(cascade.stages[0]))
        for cascade in (open_cascade(origin), open_cascade(run))
    )
    assert before.keys() == after.keys()
    for name, value in before.items():
        np.testing.assert_array_equal(after[name], value, err_msg=name)


@pytest.mark.slow
def test_from_the_demo(tmp_path: Path) -> None:
    side = json.loads((DEMO / "cascade.json").read_text())["config"]["stages"]["sr"]["resolution"]
    tiny.embed_scenes("quickstart", 2, side, 0, "minilm", tmp_path / "data", num_shards=1)
    assert_the_same(DEMO, trained_on(DEMO, "demo", tmp_path / "data", tmp_path))


def test_what_was_tuned_is_not_sampled_with_a_variance_that_was_not() -> None:
    config = load_config("deepfloyd")
    for name in config.cascade:
        sampler = parse_sampler(config.stages[name].sample.sampler)
        assert isinstance(sampler, DDPM)
        assert sampler.variance == "small"


@pytest.mark.slow
def test_from_an_imported_cascade(tmp_path: Path) -> None:
    one = files.write_text_encoder(files.write_stage(tmp_path / "one", "I"))
    origin = tmp_path / "imported"
    import_deepfloyd([one], origin, show=lambda line: None)
    tiny.embed_scenes(
        "quickstart", 2, 32, 0, "t5-if", tmp_path / "data", num_shards=1, weights=str(one)
    )
    run = trained_on(origin, str(origin), tmp_path / "data", tmp_path)
    assert_the_same(origin, run)
    assert open_cascade(run).license == open_cascade(origin).license
