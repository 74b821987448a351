"""The contract of a network: what a class of the user's own gets, and what it must keep."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from foreign_network import Foreign
from ml_collections import ConfigDict

from imagen_jax.cascade import Cascade
from imagen_jax.config import to_plain
from imagen_jax.embed import embed
from imagen_jax.errors import UserError
from imagen_jax.main import main
from imagen_jax.stage import Stage, make_stage

FOREIGN = "foreign_network:Foreign"


class WithState(Foreign):
    @nn.compact
    def __call__(self, x: Any, logsnr: Any, conditioning: Any, train: bool = False) -> Any:
        return nn.BatchNorm(use_running_average=not train)(x)


class WithoutColours(Foreign):
    @nn.compact
    def __call__(self, x: Any, logsnr: Any, conditioning: Any, train: bool = False) -> Any:
        return nn.Conv(self.width, (3, 3))(x)


def config_of(kind: str, *overrides: str, **fields: Any) -> ConfigDict:
    """The tiny config with this network in both stages."""
    config = to_plain(tiny.config(*overrides))
    for section in config["stages"].values():
        section["network"] = {"kind": kind, **fields}
    return ConfigDict(config)


def foreign(name: str, kind: str = FOREIGN) -> Stage:
    return make_stage(config_of(kind, width=8), name)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["base", "sr"])
def test_a_foreign_network_is_a_stages(name: str) -> None:
    stage = foreign(name)
    params = jax.jit(stage.init)(jax.random.key(0))
    given = tiny.conditioning(stage, 2)
    x = jnp.ones((2, stage.resolution, stage.resolution, 3))
    plain = jax.jit(stage.apply)(params, x, jnp.zeros(2), given)
    assert plain.shape == x.shape
    cached = stage.cache_text(params, given)  # has no cache of text, and needs none
    np.testing.assert_allclose(stage.apply(params, x, jnp.zeros(2), cached), plain, atol=1e-6)


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("unett", r"kind is 'unett'; choices: unet, efficient_unet.* or 'module:Class'"),
        ("no_such_module:Pixels", r"'no_such_module' is not imported: .* --import no_such_module"),
        ("foreign_network:Foreing", "but foreign_network has no 'Foreing'"),
        ("flax.linen:Dense", "no subclass of imagen_jax.models.base.BaseNetwork"),
        (f"{__name__}:foreign", "no subclass of imagen_jax.models.base.BaseNetwork"),
    ],
)
def test_kind_that_names_no_network(kind: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        foreign("base", kind)


def test_fields_of_a_foreign_network_are_checked() -> None:
    with pytest.raises(UserError, match=r"unknown key 'stages\.base\.network\.widht'.*'width'"):
        make_stage(config_of(FOREIGN, widht=8), "base")
    with pytest.raises(UserError, match=r"stages\.base\.network lacks the key 'width'"):
        make_stage(config_of(FOREIGN), "base")


def test_dtype_and_remat_that_a_network_does_not_have() -> None:
    network = foreign("base").network
    assert network.with_dtype("float32") is network
    assert network.with_remat("none") is network
    with pytest.raises(UserError, match=r"Foreign has no field 'dtype'.*'bfloat16'"):
        network.with_dtype("bfloat16")
    with pytest.raises(UserError, match=r"Foreign has no field 'remat'.*'blocks'"):
        network.with_remat("blocks")


def test_networks_that_break_the_contract() -> None:
    stage = foreign("base", f"{__name__}:WithState")
    with pytest.raises(UserError, match=r"WithState has variables in \['batch_stats'\]"):
        jax.eval_shape(stage.init, jax.random.key(0))
    stage = foreign("base", f"{__name__}:WithoutColours")
    params = jax.eval_shape(stage.init, jax.random.key(0))
    x = jnp.zeros((1, stage.resolution, stage.resolution, 3))
    with pytest.raises(UserError, match=r"returns float32\(1, 4, 4, 8\) .* must return"):
        jax.eval_shape(stage.apply, params, x, jnp.zeros(1), tiny.conditioning(stage, 1))


@pytest.mark.slow
def test_a_foreign_network_from_training_to_export(tmp_path: Path) -> None:
    """Train, validate, resume, sample, evaluate, plan and export, all by the command."""
    tiny_config = str(Path(tiny.__file__).with_name("tiny_config.py"))
    config = tmp_path / "config.py"
    config.write_text(
        "from ml_collections import ConfigDict\n"
        "from imagen_jax.config import load_config\n"
        "def get_config():\n"
        f"    config = ConfigDict(load_config({tiny_config!r}))\n"
        "    for stage in config.stages.values():\n"
        f"        stage.network = ConfigDict({{'kind': {FOREIGN!r}, 'width': 8}})\n"
        "        stage.train.update(steps=4, validation_batches=1, optimizer='muon')\n"
        "    return config\n"
    )
    data = tiny.embed_colours(tmp_path / "data")
    embed(
        tiny.Colours(),
        data,
        encoder=tiny.encoder(),
        split="validation",
        image_size=tiny.SR,
        num_shards=1,
    )
    workdir = tmp_path / "workdir"
    for name in ("base", "sr"):
        argv = ["train", "--config", str(config), "--stage", name, "--data", str(data)]
        assert main([*argv, "--workdir", str(workdir)]) == 0
        record = json.loads((workdir / name / "stage.json").read_text())
        assert record["config"]["stages"][name]["network"] == {"kind": FOREIGN, "width": 8}
        assert "validation_loss" in tiny.metrics_of(workdir / name)[4]
    before = Cascade.load(workdir).sample(["a red image"], seed=3, show_progress=False)

    shutil.rmtree(workdir / "sr" / "checkpoints" / "4")  # as if it had been killed
    assert main([*argv, "--workdir", str(workdir)]) == 0
    after = Cascade.load(workdir).sample(["a red image"], seed=3, show_progress=False)
    np.testing.assert_array_equal(before.images, after.images)

    there = ["--workdir", str(workdir)]
    assert main(["sample", "a red image", "--seed", "3", *there, "--output", f"{tmp_path}/s"]) == 0
    prompts = tmp_path / "prompts.csv"
    prompts.write_text("Prompts,Category\na red image,Colors\na blue image,Colors\n")
    output = str(tmp_path / "evaluated")
    assert (
        main(["evaluate", "prompts", "--drawbench", str(prompts), *there, "--output", output]) == 0
    )
    for job in ("train", "sample"):
        assert main(["plan", "--config", str(config), "--stage", "sr", "--job", job]) == 0
    for form in ("safetensors", "compiled"):
        argv = ["export", *there, "--output", str(tmp_path / form), "--format", form]
        assert main(argv) == 0
    exported = Cascade.load(tmp_path / "safetensors").sample(["a red image"], seed=3)
    difference = np.abs(exported.images.astype(int) - after.images)  # of weights in float16
    assert difference.max() <= 2
