"""Stages as compiled artefacts and as weights, that others can use."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
import tiny

import imagen_jax.main as main_lib
from imagen_jax.cascade import Cascade
from imagen_jax.cascade.compiled import export_stages
from imagen_jax.checkpoints.cascades import export_cascade, open_cascade
from imagen_jax.sampling import from_uint8, to_uint8

PROMPTS = ["a red image", "one blue image", "green"]


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    parent = tmp_path_factory.mktemp("export")
    return tiny.write_cascade(parent / "cascade", tiny.encoder(), scale=0.2)


@pytest.fixture(scope="module")
def exported(directory: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("compiled")
    argv = ["export", "--workdir", str(directory), "--output", str(output)]
    assert main_lib.main([*argv, "--format", "compiled", "--steps", "sr=3"]) == 0
    return output


@pytest.mark.slow
def test_files_and_arguments_of_a_compiled_export(exported: Path, directory: Path) -> None:
    assert sorted(path.name for path in exported.iterdir()) == [
        "base.jax", "base.json", "base.safetensors", "run_exported.py",
        "sr.jax", "sr.json", "sr.safetensors",
    ]  # fmt: skip
    base, sr = (json.loads((exported / f"{name}.json").read_text()) for name in ("base", "sr"))
    assert list(base["arguments"]) == [
        "text_states", "text_mask", "seeds", "negative_states", "negative_mask", "guidance"
    ]  # fmt: skip
    assert list(sr["arguments"]) == ["text_states", "text_mask", "seeds", "low_res", "aug_level"]
    assert base["arguments"]["text_states"]["shape"] == ["b", 32, tiny.WIDTH]
    assert sr["result"]["shape"] == ["b", tiny.SR, tiny.SR, 3]
    assert sr["settings"]["steps"] == 3
    cascade = open_cascade(directory)
    assert sr["fingerprint"] == cascade.fingerprint(cascade.stages[1])
    assert len((exported / "run_exported.py").read_text().splitlines()) < 50


@pytest.mark.slow
def test_for_platforms_that_are_not_here(directory: Path, tmp_path: Path) -> None:
    cascade = open_cascade(directory)
    export_stages(cascade, tmp_path, platforms=["cpu", "tpu"], stages=cascade.stages[:1])
    assert json.loads((tmp_path / "base.json").read_text())["platforms"] == ["cpu", "tpu"]


@pytest.mark.slow
def test_a_compiled_export_runs_without_this_package(
    exported: Path, directory: Path, tmp_path: Path
) -> None:
    cascade = Cascade.load(directory)
    steps, guidance = {"sr": 3}, {"base": 2.5}
    samples = cascade.sample(
        PROMPTS, seed=[7, 8, 9], steps=steps, guidance=guidance, negative_prompts=["", "black", ""],
        show_progress=False,
    )  # fmt: skip
    text, negative = cascade.encode(PROMPTS), cascade.encode(["", "black", ""])
    given = {"text_states": text.states, "text_mask": text.mask, "seeds": np.uint32([7, 8, 9])}
    of_base = {
        "negative_states": negative.states,
        "negative_mask": negative.mask,
        "guidance": np.float32(2.5),
    }
    of_sr = {
        "low_res": from_uint8(samples.stages["base"]),
        "aug_level": np.float32(cascade.stages[1].sample.aug_level),
    }
    for name, inputs in (("base", given | of_base), ("sr", given | of_sr)):
        for count in (3, 1):  # one program for all batch sizes
            rows = {key: x[:count] if np.ndim(x) else x for key, x in inputs.items()}
            np.savez(tmp_path / "inputs.npz", **rows)
            argv = [str(exported / "run_exported.py"), str(exported), name,
                    str(tmp_path / "inputs.npz"), str(tmp_path / "made.npy")]  # fmt: skip
            blocked = (
                "import runpy, sys; sys.modules |= dict.fromkeys(['imagen_jax', 'flax', 'optax']);"
                "sys.argv = sys.argv[1:]; runpy.run_path(sys.argv[0], run_name='__main__')"
            )
            done = subprocess.run(
                [sys.executable, "-c", blocked, *argv],
                capture_output=True, text=True, check=False, timeout=600, cwd=tmp_path,
            )  # fmt: skip
            assert done.returncode == 0, done.stderr[-3000:]
            made = to_uint8(np.load(tmp_path / "made.npy"))
            assert np.abs(made.astype(int) - samples.stages[name][:count]).max() <= 1


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["float16", "float32"])
def test_compiled_weights_round_trip(directory: Path, tmp_path: Path, dtype: str) -> None:
    """Of an exported cascade, and of a trained one."""
    for source in (directory, tiny.workdir()):
        output = tmp_path / source.name
        export_cascade(source, output, dtype=dtype)
        before, after = open_cascade(source), open_cascade(output)
        for stage in before.stages:
            jax.tree.map(
                lambda a, b: np.testing.assert_array_equal(np.float32(a.astype(dtype)), b),
                *jax.device_get((before.weights(stage), after.weights(stage))),
            )


def test_weights_that_may_not_be_read_are_not_taken_for_absent(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Or the other stage alone would be exported."""
    listed = os.listdir

    def of_base_closed(path: Path) -> list[str]:
        if "base" in Path(path).parts:
            raise PermissionError(13, "Permission denied", str(path))
        return listed(path)

    monkeypatch.setattr(os, "listdir", of_base_closed)
    with pytest.raises(PermissionError, match="base/checkpoints"):
        open_cascade(tiny.workdir())


def test_a_stage_whose_record_was_not_copied_is_named(tmp_path: Path) -> None:
    workdir = tmp_path / "copied"
    shutil.copytree(tiny.workdir(), workdir)
    (workdir / "base" / "stage.json").unlink()
    with pytest.raises(ValueError, match=r"base has checkpoints, but no stage\.json; copy it"):
        open_cascade(workdir)


def test_an_exported_program_is_not_replaced(directory: Path, tmp_path: Path) -> None:
    cascade = open_cascade(directory)
    (tmp_path / "base.json").write_text("another one's")
    with pytest.raises(ValueError, match=r"base\.json"):
        export_stages(cascade, tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["base.json"]


def test_mistakes(capsys: pytest.CaptureFixture[str], directory: Path, tmp_path: Path) -> None:
    argv = ["export", "--workdir", str(directory), "--output", str(tmp_path / "o")]
    assert main_lib.main([*argv, "--steps", "3"]) == 64
    assert main_lib.main([*argv, "--format", "compiled", "--dtype", "float32"]) == 64
    assert main_lib.main([*argv, "--ema-decay", "0.9"]) == 64
    said = capsys.readouterr().err
    for words in ("give --format compiled", "leave out --dtype", "with one average alone"):
        assert words in said
    assert not (tmp_path / "o").exists()
