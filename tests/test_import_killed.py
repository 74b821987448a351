"""An import that is killed, wherever it is, is written again by the same command."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import deepfloyd_files as files
import pytest

HALTING = Path(__file__).with_name("halting.py")


def names(directory: Path) -> list[str]:
    return sorted(path.name for path in directory.iterdir()) if directory.is_dir() else []


@pytest.mark.slow
def test_killed_at_every_file(tmp_path: Path) -> None:
    one = files.write_text_encoder(files.write_stage(tmp_path / "one", "I"))
    two = files.write_stage(tmp_path / "two", "II")
    argv = ["import", "deepfloyd", str(one), str(two), "--output"]

    def run(output: Path) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "imagen_jax.main", *argv, str(output)],
            capture_output=True, text=True, check=False,
        )  # fmt: skip

    whole, killed = tmp_path / "whole", tmp_path / "killed"
    assert run(whole).returncode == 0
    for at in (".lock", ".unfinished", "base.safetensors"):
        process = subprocess.Popen(
            [sys.executable, HALTING, killed, at, "1", *argv, killed], stderr=subprocess.DEVNULL
        )
        while at not in names(killed):
            assert process.poll() is None
            time.sleep(0.01)
        process.kill()
        process.wait()
        assert "cascade.json" not in names(killed)
    done = run(killed)
    assert done.returncode == 0, done.stderr
    assert f"{killed} has what an export or import left that was killed; removed: " in done.stderr
    assert names(killed) == names(whole)
    for name in names(whole):
        assert (killed / name).read_bytes() == (whole / name).read_bytes()
    done = run(killed)
    assert done.returncode == 64
    assert "killed has cascade.json, NOTICE.txt, base.safetensors, sr.safetensors already" in (
        done.stderr
    )
    assert names(killed) == names(whole)
