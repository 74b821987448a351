"""Steps that are not finite, losses that jump, hangs, and notices to stop."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import jax
import numpy as np
import pytest
import tiny

from imagen_jax.checkpoints.reading import checkpoint_steps
from imagen_jax.data.iterator import BatchIterator
from imagen_jax.main import main
from imagen_jax.train import guards, interruption, loop
from imagen_jax.train.guards import StepGuard
from imagen_jax.train.interruption import PREEMPTED, Preempted, Watchdog
from imagen_jax.train.state import TrainState

RUN = (
    *tiny.ONE_LEVEL, "stages.base.train.steps=12", "stages.base.train.log_every=2",
    "stages.base.train.sample_every=12", "stages.base.train.checkpoint_every=4",
    "stages.base.train.max_bad_steps=3", "stages.base.train.extra_ema_decays=(0.5,)",
)  # fmt: skip


def train(workdir: Path) -> TrainState:
    return loop.train(tiny.config(*RUN), "base", tiny.embeddings(), workdir).state


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> tuple[TrainState, Path]:
    workdir = tmp_path_factory.mktemp("undisturbed")
    return train(workdir), workdir / "base"


class Tampered:
    """Batches on their way to training."""

    def __init__(self) -> None:
        self.ids: dict[int, list[str]] = {}
        self.poisoned: range = range(0)
        self.signals: dict[int, signal.Signals] = {}

    def next(self, batches: BatchIterator, original: Any) -> dict[str, np.ndarray]:
        batch = original(batches)
        self.ids[batches.step] = batches.ids
        if batches.step in self.poisoned:
            batch["image"] = batch["image"].copy()
            batch["image"][2] = np.nan
        if batches.step in self.signals:
            os.kill(os.getpid(), self.signals[batches.step])
        return batch


@pytest.fixture
def tampered(monkeypatch: pytest.MonkeyPatch) -> Tampered:
    found, original = Tampered(), BatchIterator.__next__
    monkeypatch.setattr(BatchIterator, "__next__", lambda self: found.next(self, original))
    return found


@pytest.mark.slow
def test_metrics_of_a_sound_run(undisturbed: tuple[TrainState, Path]) -> None:
    state, directory = undisturbed
    assert int(state.skipped) == 0
    metrics = tiny.metrics_of(directory)
    for step in (2, 12):
        scalars = metrics[step]
        assert scalars["skipped_steps"] == scalars["loss_spikes"] == 0
        assert scalars["update_norm"] > 0
        assert scalars["steps_per_second"] > 0
        assert 0 < scalars["data_wait"] < 1
    drift = {name: value for name, value in metrics[12].items() if name.startswith("colour_drift")}
    assert drift.keys() == {"colour_drift_red", "colour_drift_green", "colour_drift_blue"}
    assert all(-255 <= value <= 255 for value in drift.values())
    assert not (directory / "bad_steps").exists()


@pytest.mark.slow
def test_a_batch_with_nan_is_skipped(tmp_path: Path, tampered: Tampered) -> None:
    tampered.poisoned = range(5, 7)  # two steps, and three would end training
    state = train(tmp_path)
    assert int(state.step) == 12
    assert int(state.skipped) == 2
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(state))
    metrics = tiny.metrics_of(tmp_path / "base")
    assert {step: m["skipped_steps"] for step, m in metrics.items()} == {
        2: 0, 4: 0, 6: 2, 8: 0, 10: 0, 12: 0
    }  # fmt: skip
    files = sorted((tmp_path / "base" / "bad_steps").iterdir())
    assert [path.name for path in files] == [
        "step_0000005_host_00000.json", "step_0000006_host_00000.json"
    ]  # fmt: skip
    content = json.loads(files[0].read_text())
    assert content["kind"] == "skipped"
    assert content["ids"] == tampered.ids[5]
    assert content["not_finite"] == [tampered.ids[5][2]]


@pytest.mark.slow
def test_nan_in_too_many_steps_ends_training_and_names_the_examples(
    tmp_path: Path, tampered: Tampered, undisturbed: tuple[TrainState, Path]
) -> None:
    tampered.poisoned = range(7, 100)
    with pytest.raises(ValueError, match="base: 3 steps in a row were not finite") as caught:
        train(tmp_path)
    assert f"examples: {tampered.ids[9][2]};" in str(caught.value)
    assert checkpoint_steps(tmp_path / "base") == [4]  # none of what may be broken
    tampered.poisoned = range(0)
    tiny.assert_identical(train(tmp_path), undisturbed[0])


@pytest.fixture
def with_a_terminal() -> Iterator[None]:
    """SIGHUP is heard, also where nohup runs the tests."""
    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)
    yield
    signal.signal(signal.SIGHUP, before)


@pytest.mark.slow
@pytest.mark.usefixtures("with_a_terminal")
def test_sigterm_saves_a_checkpoint_and_training_resumes(
    tmp_path: Path,
    tampered: Tampered,
    undisturbed: tuple[TrainState, Path],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    before = signal.getsignal(signal.SIGTERM)
    tampered.signals = {6: signal.SIGTERM}
    with pytest.raises(Preempted, match="stopped at step 6"):
        train(tmp_path)
    assert checkpoint_steps(tmp_path / "base") == [4, 6]
    tampered.signals = {9: signal.SIGTERM}
    assert main(command(tmp_path)) == PREEMPTED == 75
    assert "the same command resumes from there" in capsys.readouterr().err
    assert checkpoint_steps(tmp_path / "base") == [8, 9]
    left: list[bool] = []
    monkeypatch.setattr(interruption, "leave_terminal", lambda: left.append(True))
    tampered.signals = {11: signal.SIGHUP}  # the terminal is closed
    assert main(command(tmp_path)) == PREEMPTED
    assert checkpoint_steps(tmp_path / "base") == [9, 11]
    assert left == [True]
    tampered.signals = {}
    tiny.assert_identical(train(tmp_path), undisturbed[0])
    assert signal.getsignal(signal.SIGTERM) is before


def command(workdir: Path) -> list[str]:
    argv = ["train", "--config", str(Path(__file__).with_name("tiny_config.py"))]
    argv += ["--stage", "base", "--data", str(tiny.embeddings()), "--workdir", str(workdir)]
    return [*argv, "--set", *RUN]


@pytest.mark.slow
def test_what_ctrl_c_promises(
    tmp_path: Path,
    tampered: Tampered,
    undisturbed: tuple[TrainState, Path],
    capsys: pytest.CaptureFixture[str],
    interruptible: None,
) -> None:
    for step, kept, promise in (
        (3, [], " before the first checkpoint: nothing is kept"),
        (7, [4], "; the same command resumes from the checkpoint of step 4"),
        (6, [4], "; the same command resumes from the checkpoint of step 4"),  # a run later
    ):
        tampered.signals = {step: signal.SIGINT}
        assert main(command(tmp_path)) == 130
        said = capsys.readouterr().err
        assert said.endswith(f"\nimagen: interrupted{promise}\n")
        assert "Traceback" not in said
        assert checkpoint_steps(tmp_path / "base") == kept
    tampered.signals = {}
    tiny.assert_identical(train(tmp_path), undisturbed[0])


@pytest.mark.slow
def test_a_profiler_trace_on_demand(
    tmp_path: Path,
    tampered: Tampered,
    undisturbed: tuple[TrainState, Path],
    capsys: pytest.CaptureFixture[str],
) -> None:
    tampered.signals = {3: signal.SIGUSR1}
    tiny.assert_identical(train(tmp_path), undisturbed[0])
    (trace,) = (tmp_path / "base" / "logs" / "plugins" / "profile").glob("*/*.xplane.pb")
    assert trace.stat().st_size > 0
    assert f"profiler trace of 5 steps in {tmp_path}" in capsys.readouterr().out


def test_a_job_that_cannot_stop_is_ended() -> None:
    code = (
        "import os, signal, time; from imagen_jax.train.interruption import Preemption\n"
        "def stuck():\n"
        "    with Preemption(grace=2):\n"
        "        os.kill(os.getpid(), signal.SIGTERM); print('noticed', flush=True)\n"
        "        time.sleep(500)\n"
        "stuck()"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=600, check=False
    )
    assert done.returncode == PREEMPTED
    assert done.stdout == "noticed\n"
    assert "still running 2 s after the notice to stop" in done.stderr
    assert "in stuck" in done.stderr


def test_a_hang_is_reported_with_stacks(
    capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 0.0  # a machine that is busy would make a step late by itself
    monkeypatch.setattr(interruption, "time", SimpleNamespace(monotonic=lambda: now))
    printed = ""

    def hang_until(said: str) -> None:
        nonlocal printed
        for _ in range(6000):
            printed += capfd.readouterr().err
            if said in printed:
                return
            time.sleep(0.01)
        raise AssertionError(printed)

    with Watchdog(first=0.3, least=0.3) as watchdog:
        for step in range(1, 10):
            now += 0.05
            watchdog.beat(step)
        time.sleep(0.7)  # in which the watchdog looks
        assert capfd.readouterr().err == ""
        now += 0.6
        hang_until("in hang_until")
    assert re.search(r"host 0: no step has ended for 0\.5 s, since step 9", printed)
    with Watchdog(first=0.1):
        now += 0.2
        hang_until("since the start")


def steps_of(losses: list[float]) -> Iterator[dict[str, Any]]:
    for loss in losses:
        yield {
            "loss": np.float32(loss), "grad_norm": 1.0, "update_norm": 1.0,
            "finite": np.isfinite(loss), "loss_per_example": np.full(2, loss, np.float32),
        }  # fmt: skip


def test_loss_spikes_are_reported(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    falling = 0.1 + np.exp(-np.arange(400) / 100) * np.exp(0.1 * rng.normal(size=400))
    losses = [*falling, 1.0, *falling[-20:]]
    said: list[str] = []
    guard = StepGuard("base", tmp_path / "bad_steps", 3, [0, 1], said.append)
    spiked = [
        step
        for step, metrics in enumerate(steps_of(losses), 1)
        if guard.check(step, metrics, [f"a{step}", f"b{step}"])
    ]
    assert spiked == [401]
    assert "the loss jumped at step 401: 1, after a mean of 0.1" in said[0]
    (path,) = (tmp_path / "bad_steps").iterdir()
    assert json.loads(path.read_text())["ids"] == ["a401", "b401"]


def test_messages_name_some_examples(tmp_path: Path) -> None:
    guard = StepGuard("base", tmp_path, 2, range(30), lambda line: None)
    ids = [str(i) for i in range(30)]
    (bad,) = steps_of([float("nan")])
    bad["loss_per_example"] = np.where(np.arange(30) % 3 == 1, np.nan, 1.0)
    guard.check(1, bad, ids)
    with pytest.raises(ValueError, match=r"examples: 1, 4, 7, 10, 13, 16, 19, 22 and 2 more;"):
        guard.check(2, bad, ids)
    assert guard.in_a_row == 2
    assert guards.NAMED == 8
