"""Configs: loading, overriding, checking against dataclasses, fingerprints."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Literal

import pytest
import tiny
from ml_collections import ConfigDict

from imagen_jax import config as config_lib
from imagen_jax.config import load_config
from imagen_jax.errors import UserError
from imagen_jax.stage import make_stage
from imagen_jax.train.optimizer import make_optimizer

SOURCE = """
from ml_collections import ConfigDict

def get_config():
    config = ConfigDict()
    config.seed = 0
    config.name = "tiny"
    config.limit = None
    config.stages = {
        "base": {
            "model": {"width": 16, "multipliers": (1, 2), "attention": (False, True)},
            "optimizer": {"kind": "adam", "learning_rate": 1e-3},
            "ema": True,
        }
    }
    return config
"""


@pytest.fixture
def config_file(tmp_path: Path) -> Path:
    path = tmp_path / "tiny.py"
    path.write_text(SOURCE)
    return path


@dataclasses.dataclass(frozen=True)
class Model:
    width: int
    multipliers: tuple[int, ...]
    attention: tuple[bool, ...]

    def __post_init__(self) -> None:
        if len(self.multipliers) != len(self.attention):
            raise ValueError(
                f"attention must have one entry per level, {len(self.multipliers)}, "
                f"got {self.attention!r}"
            )


@dataclasses.dataclass(frozen=True)
class Optimizer:
    kind: Literal["adam", "adafactor"]
    learning_rate: float


@dataclasses.dataclass(frozen=True)
class Stage:
    model: Model
    optimizer: Optimizer
    ema: bool
    clip: float | None = None


def load(path: Path, *overrides: str) -> ConfigDict:
    return config_lib.load_config(path, overrides)


def test_loaded_config_is_frozen_and_complete(config_file: Path) -> None:
    config = load(config_file)
    assert config.stages.base.model.width == 16
    with pytest.raises(AttributeError):
        config.seed = 1


def test_config_is_found_by_name(config_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(config_lib, "CONFIGS", config_file.parent)
    assert config_lib.load_config("tiny").name == "tiny"
    with pytest.raises(UserError, match=r"'tinny'.*one of the names tiny"):
        config_lib.load_config("tinny")


def test_file_without_get_config(tmp_path: Path) -> None:
    path = tmp_path / "empty.py"
    path.write_text("x = 1\n")
    with pytest.raises(ValueError, match="must define get_config"):
        load(path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("\ndef get_config(:\n", r"cannot be run: line 2: SyntaxError: "),
        ("def get_config():\n    return undefined\n", "line 2: NameError: name 'undefined' is not"),
        ("import nothing_here\n", "line 1: ModuleNotFoundError: No module named 'nothing_here'"),
        ("def get_config():\n    pass\n", r"get_config\(\) of .* returns None, not a ConfigDict"),
    ],
)
def test_a_file_that_cannot_be_run(content: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "broken.py"
    path.write_text(content)
    with pytest.raises(UserError, match=message):
        load(path)


def test_overrides_keep_the_type_of_the_key(config_file: Path) -> None:
    config = load(
        config_file,
        "stages.base.model.width=32",
        "stages.base.optimizer.learning_rate=1",
        "stages.base.model.multipliers=[1, 2, 4]",
        "stages.base.ema=false",
        "name=other-name",
        "limit=7",
    )
    base = config.stages.base
    assert base.model.width == 32
    assert isinstance(base.optimizer.learning_rate, float)
    assert base.model.multipliers == (1, 2, 4)
    assert base.ema is False
    assert config.name == "other-name"
    assert config.limit == 7


def test_override_of_one_stage_leaves_the_others(tmp_path: Path) -> None:
    path = tmp_path / "shared.py"
    path.write_text(
        "from ml_collections import ConfigDict\n"
        "def get_config():\n"
        "    train = {'steps': 1}\n"
        "    return ConfigDict({'stages': {'base': {'train': train}, 'sr': {'train': train}}})\n"
    )
    stages = load(path, "stages.base.train.steps=7").stages
    assert (stages.base.train.steps, stages.sr.train.steps) == (7, 1)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("seed", "form key=value"),
        ("sead=3", r"unknown key 'sead'.*mean 'seed'"),
        ("stages.bass.model.width=3", r"unknown key .*mean 'base'"),
        ("stages.base.model=3", "is a section; set one of its keys: "),
        ("seed.x=3", "seed is no section"),
        ("seed=many", r"seed is of type int \(0\), got str"),
        ("seed=1.5", "seed is of type int"),
        ("stages.base.ema=1", "ema is of type bool"),
    ],
)
def test_bad_override_names_the_key(config_file: Path, override: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        load(config_file, override)


def test_build_makes_nested_dataclasses(config_file: Path) -> None:
    stage = config_lib.build(Stage, load(config_file).stages.base, "stages.base")
    assert stage == Stage(Model(16, (1, 2), (False, True)), Optimizer("adam", 1e-3), True)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"modle": {}}, r"unknown key 'stages.base.modle' \(did you mean 'model'\?\)"),
        ({"model": {"width": 3}}, r"stages.base.model lacks the keys 'multipliers', 'attention'"),
        ({"model": 3}, "stages.base.model must be a section of keys, got 3"),
        ({"ema": 1}, "stages.base.ema must be of type bool, got 1"),
        (
            {"optimizer": {"kind": "sgd", "learning_rate": 1}},
            "stages.base.optimizer.kind must be one of 'adam', 'adafactor', got 'sgd'",
        ),
        (
            {"model": {"width": True, "multipliers": (1,), "attention": (True,)}},
            "stages.base.model.width must be of type int, got True",
        ),
        (
            {"model": {"width": 1, "multipliers": (1, "2"), "attention": (True,)}},
            r"stages.base.model.multipliers\[1\] must be of type int, got '2'",
        ),
        (
            {"model": {"width": 1, "multipliers": (1,), "attention": ()}},
            "stages.base.model: attention must have one entry per level, 1",
        ),
        (
            {"model": {"width": 1, "multipliers": 3, "attention": (True,)}},
            "stages.base.model.multipliers must be a tuple, got 3",
        ),
        ({"clip": "hard"}, "stages.base.clip must be of type float, got 'hard'"),
    ],
)
def test_build_names_the_wrong_key(config_file: Path, change: dict, message: str) -> None:
    section = load(config_file).stages.base.to_dict() | change
    with pytest.raises(ValueError, match=message):
        config_lib.build(Stage, section, "stages.base")


def test_a_key_that_a_stage_leaves_out_is_overridden_and_a_misspelt_one_is_named(
    config_file: Path,
) -> None:
    config = load(config_file, "stages.base.clip=2", "stages.base.model.widht=3")
    assert config.stages.base.clip == 2
    with pytest.raises(UserError, match=r"'stages.base.model.widht' \(did you mean 'width'"):
        config_lib.build(Stage, config.stages.base, "stages.base")
    # In another stage than the one that is made, too.
    config = tiny.config("stages.sr.train.learning_rat=1.0")
    with pytest.raises(UserError, match=r"'stages.sr.train.learning_rat' \(did you mean"):
        make_stage(config, "base")


def test_none_is_not_written_as_zero() -> None:
    for change in ("stages.base.low_res=0", "stages.sr.crop=0"):
        with pytest.raises(UserError, match="0; it must be at least 1, or left out for none"):
            tiny.stage(change.split(".")[1], change)
    assert tiny.stage("base", "stages.base.low_res=None").low_res is None


def test_values_without_a_json_form_are_refused() -> None:
    with pytest.raises(TypeError, match=r"config\.stage\.f must be a number"):
        config_lib.to_plain({"stage": {"f": print}})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            ["kind=cosin"],
            r"stages.base.schedule.kind is 'cosin'; choices: cosine, .*linear, shifted",
        ),
        (["kind=cosine"], "unknown key 'stages.base.schedule.image_size'"),
        (["image_size=8"], r"base.schedule.image_size is 8, but .* resolution is 4; .* be equal"),
        (["reference_size=0"], r"stages.base.schedule: image_size and .* got .*reference_size=0"),
    ],
)
def test_schedule_of_a_stage(changes: list[str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        tiny.stage("base", *(f"stages.base.schedule.{change}" for change in changes))


@pytest.mark.parametrize(
    ("stage", "change", "message"),
    [
        (None, "stages.base.resolution=4", "which stage? Choices: base, sr"),
        ("top", "stages.base.resolution=4", "unknown stage 'top'; choices: base, sr"),
        ("sr", "stages.sr.resolution=9", "stages.sr: resolution 9 is not a multiple of low_res 4"),
        ("sr", "stages.sr.crop=3", "a crop of 3 of 8 pixels is no whole number of the 4 pixels"),
        ("base", "stages.base.train.optimizer=sgd", "train.optimizer is 'sgd'; choices: "),
        ("base", "stages.base.train.warmup_steps=99999999",
         "warmup_steps is 99999999; it must be in [0, steps) with steps = "),
        ("base", "stages.base.diffusion.parametrization=noise",
         "parametrization is 'noise'; choices: eps, v, x0"),
    ],
)  # fmt: skip
def test_stages_that_cannot_be_made(stage: str | None, change: str, message: str) -> None:
    with pytest.raises(UserError) as error:
        make_optimizer(make_stage(tiny.config(change), stage))
    assert message in str(error.value)


def test_configs_that_are_no_python_and_networks_that_are_not_there(tmp_path: Path) -> None:
    (tmp_path / "config.txt").write_text("steps: 3")
    with pytest.raises(UserError, match=r"config\.txt is no Python file: its name must end in"):
        load_config(tmp_path / "config.txt")
    with pytest.raises(UserError, match="'nowhere:Net', but there is no module 'nowhere'; install"):
        load_config("quickstart", ["stages.base.network.kind=nowhere:Net"])
    values = tiny.config().to_dict()
    values["stages"]["base"]["network"] = 3
    with pytest.raises(UserError, match=r"stages\.base\.network must be a section of keys, got 3"):
        make_stage(ConfigDict(values), "base")
