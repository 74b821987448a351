"""A training whose data, work directory and curves are in a bucket, killed and resumed there.

TensorStore, Orbax and TensorFlow are the real ones, against a server that speaks Google's protocol.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import pytest
import tiny
from gcs_server import Bucket

from imagen_jax.checkpoints.cascades import SHIPPED, open_cascade
from imagen_jax.checkpoints.reading import checkpoint_steps
from imagen_jax.main import main
from imagen_jax.train.loop import train

RUN, DATA = "gs://bucket/run", "gs://bucket/embeddings"
CONFIG = Path(__file__).with_name("tiny_config.py")
CHANGES = (
    *tiny.ONE_LEVEL,
    *(
        f"stages.base.train.{change}"
        for change in ("steps=6", "checkpoint_every=2", "keep_checkpoints=1", "log_every=1",
                       "sample_every=3")
    ),
)  # fmt: skip
IN_A_CHECKPOINT = "run/base/checkpoints/4/state/"


def start() -> subprocess.Popen[str]:
    """Starts `imagen train` in a process of its own."""
    command = [sys.executable, "-m", "imagen_jax.main", "train", "--config", str(CONFIG)]
    command += ["--stage", "base", "--data", DATA, "--workdir", RUN]
    command += [part for change in CHANGES for part in ("--set", change)]
    return subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=dict(os.environ)
    )


@pytest.mark.slow
def test_a_training_in_a_bucket_is_killed_in_a_checkpoint_and_resumed(
    bucket: Bucket, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    bucket.put_folder("embeddings", tiny.embeddings())
    bucket.slow[IN_A_CHECKPOINT] = 3600
    killed = start()
    while not any("POST " + IN_A_CHECKPOINT in request for request in bucket.requests):
        assert killed.poll() is None, killed.communicate()[0]
        time.sleep(0.1)
    killed.send_signal(signal.SIGKILL)
    killed.communicate()
    assert checkpoint_steps(f"{RUN}/base") == [2]
    assert bucket.names("run/base/checkpoints/4/")
    assert "run/base/.lock" in bucket.names()

    bucket.slow.clear()
    resumed = start()
    said, _ = resumed.communicate(timeout=1800)
    assert resumed.returncode == 0, said
    assert "4 in gs://bucket/run/base/checkpoints was not written to its end" in said
    assert "steps 2 -> 6" in said
    assert checkpoint_steps(f"{RUN}/base") == [6]
    there = (name for name in bucket.names("run/base/checkpoints/") if name[-1] != "/")
    steps = {name.split("/")[3] for name in there}
    assert steps == {"6"}  # what was removed is gone
    assert "run/base/.lock" not in bucket.names()
    assert {"run/base/samples/0000003.png", "run/base/samples/0000006.png"} <= {*bucket.names()}

    local = train(tiny.config(*CHANGES), "base", str(tiny.embeddings()), str(tmp_path / "run"))
    in_bucket, here = (
        cascade.weights(cascade.stages[0]) for cascade in map(open_cascade, (RUN, tmp_path / "run"))
    )
    jax.tree.map(np.testing.assert_array_equal, in_bucket, here)
    curves = metrics_of(f"{RUN}/base/logs")
    assert curves == dict(zip(*map(list, local["loss"]), strict=True))

    # The rest of a cascade's life, by commands.
    capfd.readouterr()
    assert main(["export", "--workdir", RUN, "--output", "gs://bucket/mine"]) == 0
    assert capfd.readouterr().out.split() == [
        "gs://bucket/mine/cascade.json", "gs://bucket/mine/base.safetensors"
    ]  # fmt: skip
    bucket.put("prompts.txt", b"a red image\na blue image\n")
    for where in (RUN, "gs://bucket/mine"):
        argv = ["sample", "--workdir", where, "--prompts", "gs://bucket/prompts.txt"]
        argv += ["--steps", "1", "--output", f"{where}-samples"]
        assert main(argv) == 0
    names = ["0000.png", "0001.png", "grid.png", "metadata.csv"]
    for where in ("run", "mine"):
        assert bucket.names(f"{where}-samples/") == [f"{where}-samples/{name}" for name in names]


def metrics_of(directory: str) -> dict[int, float]:
    """The loss by step, as TensorBoard reads it."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    from tensorboard.util.tensor_util import make_ndarray

    events = EventAccumulator(directory, {"tensors": 0})
    events.Reload()
    found = events.Tensors("loss")
    assert len(found) == len({event.step for event in found})
    return {event.step: float(make_ndarray(event.tensor_proto)) for event in found}


@pytest.mark.slow
def test_an_evaluation_in_a_bucket_is_resumed(bucket: Bucket) -> None:
    bucket.put_folder("demo", SHIPPED)
    argv = ["evaluate", "scenes", "--workdir", "gs://bucket/demo", "--count", "2", "--steps", "2"]
    argv += ["--splits", "train", "--output", "gs://bucket/scores"]
    assert main(argv) == 0
    first = dict(bucket.objects)
    assert "scores/scores.json" in first
    removed = next(name for name in first if "/images/" in name)
    del bucket.objects[removed], bucket.objects["scores/scores.json"]
    assert main(argv) == 0
    assert {name: content for name, (content, _) in bucket.objects.items()} == {
        name: content for name, (content, _) in first.items()
    }
