"""The same command goes on elsewhere: from one host of eight devices to four of two each, and to
two of four each."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import tiny

from imagen_jax.main import main

ROOT = Path(__file__).resolve().parent.parent
STEPS = 8
TOLERANCE = 2e-5
"""Relative, of losses: other meshes add the same numbers in another order."""


def arguments(workdir: Path) -> list[str]:
    return [
        "--config", str(ROOT / "tests" / "tiny_config.py"), "--stage", "base",
        "--data", str(tiny.embeddings()), "--workdir", str(workdir), "--set", *tiny.ONE_LEVEL,
        "stages.base.train.batch_size=8", f"stages.base.train.steps={STEPS}",
        "stages.base.train.sample_every=0", f"stages.base.train.checkpoint_every={STEPS}",
    ]  # fmt: skip


def losses(workdir: Path) -> list[float]:
    metrics = tiny.metrics_of(workdir / "base")
    return [metrics[step]["loss"] for step in range(1, STEPS + 1)]


@pytest.mark.slow
def test_losses_do_not_depend_on_where_training_runs(tmp_path: Path) -> None:
    here, moved = tmp_path / "here", tmp_path / "moved"
    assert main(["train", *arguments(here)]) == 0

    command = [sys.executable, ROOT / "tests" / "hosts.py", "1x8:2,4x2:4", *arguments(moved)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=1800, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"steps 0 -> {STEPS} on 8 cpu device(s) of 1 host(s)" in done.stdout
    assert f"steps 2 -> {STEPS} on 8 cpu device(s) of 4 host(s)" in done.stdout

    done = subprocess.run(
        ["bash", ROOT / "launch" / "processes.sh", "2", "train", *arguments(moved)],
        env=os.environ | {"JAX_NUM_CPU_DEVICES": "4"},
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=1800, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout
    assert f"-> {STEPS} on 8 cpu device(s) of 2 host(s)" in done.stdout
    assert losses(moved) == pytest.approx(losses(here), rel=TOLERANCE)
