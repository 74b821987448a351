"""launch/compare_deepfloyd.py: our half against stored outputs of diffusers, and the verdict."""

from __future__ import annotations

import importlib.util
import runpy
from pathlib import Path

import deepfloyd_files as files
import numpy as np
import pytest

from imagen_jax.checkpoints.deepfloyd import import_deepfloyd
from imagen_jax.errors import UserError

pytestmark = pytest.mark.slow

SCRIPT = runpy.run_path(str(Path(__file__).parent.parent / "launch" / "compare_deepfloyd.py"))
REFERENCE = Path(__file__).parent / "testdata" / "deepfloyd_network.npz"


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Stage I, stage II, and the cascade that was imported from both."""
    parent = tmp_path_factory.mktemp("compared")
    one = files.write_text_encoder(files.write_stage(parent / "one", "I"))
    two = files.write_stage(parent / "two", "II")
    import_deepfloyd([one, two], parent / "cascade", show=lambda text: None)
    return [str(one), str(two), str(parent / "cascade")]


@pytest.mark.parametrize(("stage", "name"), [("I", "base"), ("II", "sr")])
def test_our_half_gives_the_stored_outputs(folders: list[str], stage: str, name: str) -> None:
    expected = np.load(REFERENCE)[f"{stage}/output"]
    made = SCRIPT["ours"](folders[2], name, files.inputs(stage))
    equal, said = SCRIPT["verdict"](made, expected, 2e-5)
    assert equal, said
    other = {**files.inputs(stage), "step": np.array([38, 811])}
    equal, said = SCRIPT["verdict"](SCRIPT["ours"](folders[2], name, other), expected, 1e-4)
    assert not equal, "another step is told apart"
    assert "NOT equal" in said


def test_values_that_are_no_numbers_are_not_equal() -> None:
    made = np.array([1.0, np.nan])
    assert not SCRIPT["verdict"](made, np.ones(2), 1e-4)[0]
    assert not SCRIPT["verdict"](np.ones(3), np.ones(2), 1e-4)[0]


def test_missing_packages_and_files(
    folders: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert SCRIPT["main"](folders) == 2
    assert "torch is not installed in" in capsys.readouterr().err
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: name)
    assert SCRIPT["main"]([f"{folders[0]}/none", folders[2]]) == 2
    assert "config.json" in capsys.readouterr().err
    with pytest.raises(UserError, match="has no stage 'sr1024'; it has base, sr"):
        SCRIPT["ours"](folders[2], "sr1024", {})


def test_both_halves(folders: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("torch")
    pytest.importorskip("diffusers")
    assert SCRIPT["main"](folders) == 0
    assert capsys.readouterr().out.count(": equal") == 2
