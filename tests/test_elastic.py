"""The same command in two processes, and moved from one device to four."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import tiny

ROOT = Path(__file__).resolve().parent.parent
STEPS = 6
TOLERANCE = 2e-5
"""Relative, of losses: other meshes add the same numbers in another order."""


def arguments(workdir: Path) -> list[str]:
    return [
        "--config", str(ROOT / "tests" / "tiny_config.py"), "--stage", "base",
        "--data", str(tiny.embeddings()), "--workdir", str(workdir), "--set", *tiny.ONE_LEVEL,
        "stages.base.train.batch_size=8", f"stages.base.train.steps={STEPS}",
        "stages.base.train.sample_every=0", f"stages.base.train.checkpoint_every={STEPS}",
    ]  # fmt: skip


def train(workdir: Path, devices: int, command: list[str]) -> str:
    done = subprocess.run(
        [*command, *arguments(workdir)], cwd=ROOT, stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT, text=True, timeout=1200, check=False,
        env=os.environ | {"JAX_NUM_CPU_DEVICES": str(devices), "PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    return f"{done.stdout}\nstatus {done.returncode}"


def losses(workdir: Path) -> list[float]:
    metrics = tiny.metrics_of(workdir / "base")
    return [metrics[step]["loss"] for step in range(1, STEPS + 1)]


@pytest.mark.slow
def test_losses_do_not_depend_on_where_training_runs(tmp_path: Path) -> None:
    two = tmp_path / "two"
    printed = train(two, 4, ["bash", str(ROOT / "launch" / "processes.sh"), "2"])
    assert "on 8 cpu device(s) of 2 host(s)" in printed

    moved = tmp_path / "moved"
    until = [sys.executable, str(ROOT / "tests" / "train_until.py")]
    for devices, stop, begin in ((1, 2, 0), (4, STEPS + 1, 2)):
        printed = train(moved, devices, [*until, str(stop)])
        assert f"steps {begin} -> {STEPS} on {devices} cpu device(s)" in printed
        assert printed.endswith("status 75" if stop < STEPS else "status 0")
    assert losses(moved) == pytest.approx(losses(two), rel=TOLERANCE)
