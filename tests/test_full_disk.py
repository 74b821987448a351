"""Output, temporary files and compiled programs that cannot be written: one line, no remains."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from imagen_jax.caches import drop_broken_programs
from imagen_jax.cli.status import REFUSED, one_line, status_of
from imagen_jax.main import make_parser

FULL = "imagen: error: standard output cannot be written: No space left on device\n"


@pytest.mark.parametrize("unbuffered", ["", "1"])
@pytest.mark.parametrize("argv", ["--help", "train --help", "--version", "data words"])
def test_a_full_standard_output(argv: str, unbuffered: str) -> None:
    """Help, too, of which argparse itself would say that it is done."""
    with open("/dev/full", "w") as full:
        done = subprocess.run(
            [sys.executable, "-m", "imagen_jax.main", *argv.split()],
            env=os.environ | {"PYTHONUNBUFFERED": unbuffered},
            stdout=full, stderr=subprocess.PIPE, text=True, check=False, timeout=600,
        )  # fmt: skip
    assert (done.returncode, done.stderr) == (REFUSED, FULL)


def test_no_room_for_temporary_files() -> None:
    error = FileNotFoundError(2, "No usable temporary directory found in ['/tmp', '/var/tmp']")
    args = make_parser().parse_args(["doctor"])
    assert status_of(error, args) == REFUSED
    assert one_line(error, args) == (
        "no temporary file can be written in any of ['/tmp', '/var/tmp']; make room, or set TMPDIR"
    )


PROGRAM = """
import warnings, jax
from imagen_jax import main
warnings.formatwarning = main._warn_in_one_line
jax.jit(lambda x: x * 2 + 1)(1.0)
"""


def test_compiled_programs_that_are_not_whole_are_written_again(tmp_path: Path) -> None:
    environment = os.environ | {
        "JAX_COMPILATION_CACHE_DIR": str(tmp_path),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    }

    def run() -> str:
        return subprocess.run(
            [sys.executable, "-c", PROGRAM],
            env=environment, capture_output=True, text=True, check=True, timeout=600,
        ).stderr  # fmt: skip

    assert run() == ""
    programs = [path for path in tmp_path.iterdir() if path.name.endswith("-cache")]
    sizes = [path.stat().st_size for path in programs]
    for path in programs:
        os.truncate(path, path.stat().st_size // 2)
    said = run()
    assert said.startswith(
        f"imagen: warning: the compiled program 'jit__lambda' in {tmp_path} cannot be read, and is "
        "compiled again: "
    )
    assert said.count("\n") == 1
    assert [path.stat().st_size for path in programs] == pytest.approx(sizes, rel=0.1)
    assert run() == ""


def test_compiled_programs_that_cannot_be_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", str(tmp_path))
    for name in ("jit_step-1-cache", "jit_step_of_others-1-cache"):
        (tmp_path / name).write_bytes(b"half")
    said = drop_broken_programs(
        "Error writing persistent compilation cache entry for 'jit_step': OSError: [Errno 28] No "
        "space left on device"
    )
    assert said == (
        f"the compiled program 'jit_step' cannot be kept in {tmp_path}: OSError: [Errno 28] No "
        "space left on device"
    )
    assert [path.name for path in tmp_path.iterdir()] == ["jit_step_of_others-1-cache"]
    assert drop_broken_programs("prompt 0 is long") is None
