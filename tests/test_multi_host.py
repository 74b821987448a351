"""Several processes that train together compute what one does on the same batches."""

from __future__ import annotations

import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import jax
import numpy as np
import pytest
import tiny
from ports import free_port

from imagen_jax import sharding
from imagen_jax.checkpoints.pretrained import abstract_params
from imagen_jax.checkpoints.reading import checkpoint_steps, newest_checkpoint, restore_ema
from imagen_jax.data.features import View
from imagen_jax.data.iterator import train_batches
from imagen_jax.embed import embed
from imagen_jax.errors import MachineError, UserError
from imagen_jax.main import main
from imagen_jax.train.evaluation import Evaluation
from imagen_jax.train.interruption import PREEMPTED
from imagen_jax.train.state import create_state
from imagen_jax.train.step import make_train_step

ROOT = Path(__file__).resolve().parent.parent
SCRIPT = ROOT / "launch" / "processes.sh"
CONFIG = str(ROOT / "tests" / "tiny_config.py")
HOSTS = 2


def arguments(data: Path, workdir: Path, *overrides: str) -> list[str]:
    return ["--config", CONFIG, "--stage", "sr", "--data", str(data), "--workdir", str(workdir),
            "--set", *tiny.ONE_LEVEL, *overrides]  # fmt: skip


def start_two(data: Path, workdir: Path, *overrides: str) -> list[subprocess.Popen[str]]:
    """Two processes that train, each with its own output."""
    port = free_port()
    argv = [sys.executable, "-m", "imagen_jax.main", "train"]
    argv += arguments(data, workdir, *overrides)
    return [
        subprocess.Popen(
            [*argv, "--multi-host", f"{host}/{HOSTS}@localhost:{port}"], cwd=ROOT,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        )
        for host in range(HOSTS)
    ]  # fmt: skip


def wait_for(condition: Callable[[], bool], process: subprocess.Popen[str]) -> None:
    """Waits until a condition holds; the process must not end before."""
    while not condition():
        assert process.poll() is None, process.communicate()[0]
        time.sleep(0.01)


@pytest.mark.slow
def test_two_hosts_train_as_one_stop_together_and_one_goes_on_after_the_loss_of_the_other(
    tmp_path: Path,
) -> None:
    settings = ("steps=50", "checkpoint_every=10", "sample_every=10", "evaluate_every=10",
                "evaluate_images=4")  # fmt: skip
    overrides = [f"stages.sr.train.{setting}" for setting in settings]
    stage = tiny.stage("sr", *tiny.ONE_LEVEL, *overrides)
    data, workdir = tiny.embed_colours(tmp_path / "data"), tmp_path / "workdir"
    embed(
        tiny.Colours(), data, encoder=tiny.encoder(), split="validation", image_size=tiny.SR,
        num_shards=1,
    )  # fmt: skip
    told, other = start_two(data, workdir, *overrides)
    wait_for((workdir / "sr" / "samples" / "0000010.png").exists, told)
    told.send_signal(signal.SIGTERM)
    printed = [process.communicate(timeout=600)[0] for process in (told, other)]
    assert (told.returncode, other.returncode) == (PREEMPTED, PREEMPTED), printed
    assert sum("2 cpu device(s) of 2 host(s)" in text for text in printed) == 1  # one reports
    stopped = [re.search(r"stopped at step (\d+)", text) for text in printed]
    assert all(stopped)
    saved = checkpoint_steps(workdir / "sr")[-1]
    assert {int(match[1]) for match in stopped if match} == {saved}

    here = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    targets = jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=here),
        abstract_params(stage),
    )
    ema = restore_ema(newest_checkpoint(workdir / "sr"), targets)

    left, killed = start_two(data, workdir, *overrides)
    wait_for(lambda: checkpoint_steps(workdir / "sr")[-1] > saved, left)
    killed.kill()
    noticed, _ = (process.communicate(timeout=600)[0] for process in (left, killed))
    assert f"steps {saved} -> 50" in noticed
    assert left.returncode not in (0, PREEMPTED, None)
    assert "imagen: error: host 0 of 2 has lost another" in noticed

    assert main(["train", *arguments(data, workdir, *overrides)]) == 0  # on the host that is left

    logged = tiny.metrics_of(workdir / "sr")
    batches = [
        train_batches(data, View(stage.resolution, stage.low_res, stage.text.max_length),
                      stage.train.batch_size, stage.train.seed, host=(host, HOSTS))
        for host in range(HOSTS)
    ]  # fmt: skip
    state = create_state(stage, sharding.make_mesh())
    step = jax.jit(make_train_step(stage))
    evaluation = Evaluation(stage, str(data), sharding.make_mesh())
    for n in range(1, 51):
        shares = [next(host) for host in batches]
        batch = {name: np.concatenate([share[name] for share in shares]) for name in shares[0]}
        state, metrics = step(state, batch)
        assert logged[n]["loss"] == pytest.approx(float(metrics["loss"]), rel=1e-4)
        if n == 10:
            for name, value in evaluation(state.ema).items():
                assert logged[n][name] == pytest.approx(value, rel=0.02, abs=1e-3), name
        if n == saved:
            for leaf, expected in zip(*map(jax.tree.leaves, (ema, state.ema)), strict=True):
                np.testing.assert_allclose(leaf, expected, atol=1e-5)


@pytest.mark.slow
def test_the_failure_of_one_host_ends_all(tmp_path: Path) -> None:
    done = subprocess.run(
        ["bash", SCRIPT, str(HOSTS), "train",
         *arguments(tmp_path / "absent", tmp_path / "workdir")],
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=600, check=False,
    )  # fmt: skip
    assert done.returncode != 0
    assert "imagen: error" in done.stdout
    assert "absent" in done.stdout


@pytest.mark.parametrize(
    ("raised", "error"),
    [(ValueError("coordinator_address should be defined."), UserError),
     (RuntimeError("DEADLINE_EXCEEDED"), MachineError)],
)  # fmt: skip
def test_hosts_that_do_not_answer_are_no_mistake_of_the_user(
    raised: Exception, error: type[Exception], monkeypatch: pytest.MonkeyPatch
) -> None:
    def initialize() -> None:
        raise raised

    monkeypatch.setattr(jax.distributed, "initialize", initialize)
    with pytest.raises(error, match=str(raised)):
        sharding.join_hosts("auto")


@pytest.mark.parametrize("where", ["2/2@localhost:1", "0/2", "0/2@localhost", "one/2@localhost:1"])
def test_malformed_multi_host_addresses(where: str, capsys: pytest.CaptureFixture[str]) -> None:
    argv = ["train", "--config", CONFIG, "--stage", "sr", "--data", "d=1", "--workdir", "w"]
    assert main([*argv, "--multi-host", where]) != 0
    assert f"multi-host is '{where}'; it must be 'auto', or ID/COUNT@HOST:PORT" in (
        capsys.readouterr().err
    )
