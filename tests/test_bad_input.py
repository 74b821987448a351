"""Mistakes of a user about a run end in one clear line, and lose nothing."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import tiny

import imagen_jax.main as main_lib
from imagen_jax.files import LOCK

TINY = str(Path(__file__).with_name("tiny_config.py"))


def error_of(argv: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    """The message of a command that must fail as a user's mistake does."""
    capsys.readouterr()
    assert main_lib.main(argv) == 64
    error = capsys.readouterr().err
    (start,) = (i for i, line in enumerate(error.splitlines()) if "imagen: error: " in line)
    return "\n".join(error.splitlines()[start:])


def train(data: Path, workdir: str | Path, *changes: str, stage: str = "base") -> list[str]:
    argv = ["train", "--config", TINY, "--stage", stage, "--data", str(data)]
    argv += ["--workdir", str(workdir)]
    for change in (*tiny.ONE_LEVEL, *changes):
        argv += ["--set", change]
    return argv


def files(directory: Path) -> dict[str, int]:
    """Every file under a directory with the time of its last change."""
    found = directory.rglob("*")
    return {
        str(p.relative_to(directory)): p.stat().st_mtime_ns
        for p in found
        if p.is_file() and p.name != LOCK
    }


@pytest.fixture(scope="module")
def cascade(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.write_cascade(tmp_path_factory.mktemp("bad_input") / "cascade")


def test_no_prompts(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    empty = tmp_path / "prompts.txt"
    empty.write_text("\n  \n")
    message = error_of(["sample", "--prompts", str(empty)], capsys)
    assert message == f"imagen: error: {empty} has no prompts: it is to have one on each line"
    assert error_of(["sample"], capsys) == (
        'imagen: error: no prompt: give one or more, as in imagen sample "a red apple"'
    )


@pytest.mark.slow
def test_no_checkpoint(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "empty").mkdir()
    message = error_of(["sample", "a cat", "--workdir", str(tmp_path / "empty")], capsys)
    assert "no trained stage under" in message
    assert "imagen train makes them" in message

    workdir = tmp_path / "workdir"
    shutil.copytree(tiny.workdir(), workdir)
    for stage in ("base", "sr"):
        shutil.rmtree(workdir / stage / "checkpoints")
    message = error_of(["sample", "a cat", "--workdir", str(workdir)], capsys)
    assert f"no checkpoint in {workdir / 'base' / 'checkpoints'}" in message
    assert "imagen train --stage base" in message

    message = error_of(["sample", "a cat", "--workdir", str(workdir / "base")], capsys)
    assert f"the folder of one stage; give the work directory, {workdir}" in message


def test_embeddings_of_another_encoder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = tiny.embed_colours(tmp_path / "data", tiny.encoder("other"))
    message = error_of(train(data, tmp_path / "workdir"), capsys)
    assert "the config wants text embeddings of encoder 'tiny'" in message
    assert "were made by 'other'" in message
    assert not (tmp_path / "workdir").exists()


def test_embeddings_of_another_width(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = tiny.embed_colours(tmp_path / "data", tiny.encoder(width=2 * tiny.WIDTH))
    message = error_of(train(data, tmp_path / "workdir"), capsys)
    assert str(tiny.WIDTH) in message
    assert str(2 * tiny.WIDTH) in message
    assert "wid" in message
    assert not (tmp_path / "workdir").exists()


def test_a_cascade_of_another_encoder(
    cascade: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The encoder of the same name has changed since the cascade was trained."""
    changed = tmp_path / "cascade"
    shutil.copytree(cascade, changed)
    record = json.loads((changed / "cascade.json").read_text())
    record["encoder"]["fingerprint"] = "0123"
    (changed / "cascade.json").write_text(json.dumps(record))
    message = error_of(["sample", "a cat", "--workdir", str(changed)], capsys)
    assert "fingerprint 0123, but the one here has" in message


def test_unknown_config_key(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    argv = train(tiny.embeddings(), tmp_path / "workdir", "stages.base.train.learning_rat=1.0")
    message = error_of(argv, capsys)
    assert "unknown key 'stages.base.train.learning_rat' (did you mean 'learning_rate'?)" in message
    assert not (tmp_path / "workdir").exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            "network.channels=0",
            "network UNet of stage 'base' cannot be made: one of its sizes is below 1",
        ),
        ("network.channels=-8", "one of its sizes is below 1"),
        ("train.clip_norm=0", "clip_norm is 0.0; it must be in [1e-09, inf)"),
        ("train.seed=2147483648", "seed is 2147483648; it must be in [0, 2147483646]"),
        ("train.learning_rate=1e999", "learning_rate is inf; it must be in [0, inf)"),
    ],
)
def test_numbers_that_cannot_be(
    change: str, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    argv = train(tiny.embeddings(), tmp_path / "workdir", f"stages.base.{change}")
    assert message in error_of(argv, capsys)
    assert not (tmp_path / "workdir").exists()


@pytest.mark.slow
def test_work_directory_of_another_config(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    workdir = tmp_path / "workdir"
    shutil.copytree(tiny.workdir(), workdir)
    before = files(workdir)
    argv = train(tiny.embeddings(), workdir, "stages.base.train.learning_rate=0.123")
    message = error_of(argv, capsys)
    assert "was started with another config or data" in message
    assert "learning_rate" in message
    assert "0.123" in message
    assert f"--init-from {workdir} starts there from these weights" in message
    argv = train(tiny.embeddings(), workdir, "stages.base.network.channels=24")
    message = error_of(argv, capsys)
    assert "channels" in message
    assert "--init-from" not in message  # which would refuse other shapes
    assert files(workdir) == before


def test_impossible_size(cascade: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = tmp_path / "images"
    argv = ["sample", "a cat", "--workdir", str(cascade), "--output", str(output)]
    message = error_of([*argv, "--size", "31x16"], capsys)
    assert f"this cascade ({tiny.BASE} -> {tiny.SR} pixels) cannot make images of 31" in message
    assert "must be multiples of 2; the nearest is 32 x 16" in message
    assert not output.exists()


def test_an_image_size_that_the_data_cannot_give(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    argv = train(tiny.embeddings(), tmp_path / "workdir",
                 "stages.base.resolution=3", "stages.base.schedule.image_size=3")  # fmt: skip
    message = error_of(argv, capsys)
    assert "3" in message
    assert not (tmp_path / "workdir").exists()


def test_directories_that_are_no_work_directory(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    workdir = tmp_path / "workdir"
    shutil.copytree(tiny.workdir(), workdir)
    (tmp_path / "file").write_text("")
    for given, message in (
        (tmp_path / "file", f"{tmp_path / 'file'} is a file; give the path of a folder"),
        (workdir / "base", f"the folder of one stage; give the work directory, {workdir}"),
        ("s3://bucket/run", "s3://bucket/run is an address of a kind that is not read or written"),
        ("gs:/bucket/run", "gs:/bucket/run is no path; an address in a bucket begins with gs://"),
        ("~nobody-here/run", "~nobody-here/run: Could not determine home directory. Give the"),
        (tmp_path / "run[1]", "run[1] has [ in it, and checkpoints that are written there could"),
        (tmp_path / "what?", "has ? in it"),
    ):
        assert message in error_of(train(tiny.embeddings(), given), capsys)


@pytest.mark.slow
@pytest.mark.parametrize("blocks", [2, 30])
def test_a_full_disk_is_one_line(blocks: int, tmp_path: Path) -> None:
    """No file can grow beyond what the smallest ones of a checkpoint need, or of TensorBoard."""

    argv = train(tiny.embeddings(), tmp_path, "stages.base.network.channels=32",
                 "stages.base.train.sample_every=0")  # fmt: skip
    limited = f'ulimit -f {blocks}; exec "$0" -m imagen_jax.main "$@"'
    done = subprocess.run(
        ["bash", "-c", limited, sys.executable, *argv],
        env=os.environ | {"JAX_ENABLE_COMPILATION_CACHE": "0"},
        capture_output=True, text=True, check=False, timeout=600,
    )  # fmt: skip
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    assert done.stderr.splitlines()[-1] == (
        f"imagen: error: cannot write a checkpoint to {tmp_path / 'base' / 'checkpoints'}: File "
        "too large; those before it are as they were"
    )
    assert done.stderr.count("imagen: error") == 1
