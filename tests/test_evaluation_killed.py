"""An evaluation that a signal ends, or SIGKILL, goes on by the same command."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

HALTING = Path(__file__).with_name("halting.py")


def images(directory: Path) -> dict[str, int]:
    """Name -> time of the last change."""
    return {path.name: path.stat().st_mtime_ns for path in directory.rglob("0*.png")}


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_the_same_command_goes_on(number: signal.Signals, tmp_path: Path) -> None:
    argv = ["evaluate", "scenes", "--splits", "unseen", "--count", "33", "--steps", "1"]
    argv += ["--output", str(tmp_path / "out")]
    process = subprocess.Popen(
        [sys.executable, HALTING, tmp_path, "0*.png", "17", *argv],
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip
    while len(images(tmp_path)) < 17:
        assert process.poll() is None, process.communicate()[0]
        time.sleep(0.01)
    process.send_signal(number)
    said, _ = process.communicate(timeout=600)
    if number == signal.SIGKILL:
        assert process.returncode == -number
    else:
        assert process.returncode == 130
        assert said.endswith("\nimagen: interrupted; the same command resumes here\n")
    before = images(tmp_path)
    assert len(before) == 17
    (first,) = tmp_path.rglob("000000.png")
    first.with_name("000032.png.0.tmp").touch()  # as a kill may leave
    command = [sys.executable, "-m", "imagen_jax.main", *argv]
    done = subprocess.run(command, capture_output=True, text=True, timeout=1800, check=True)
    assert "images: 16 of 33 images\n" in done.stderr
    after = images(tmp_path)
    assert len(after) == 33
    kept = [f"{i:06d}.png" for i in range(16)]
    assert [after[name] for name in kept] == [before[name] for name in kept]
    assert (tmp_path / "out" / "scores.json").is_file()
    assert not list(tmp_path.rglob("*.tmp"))
