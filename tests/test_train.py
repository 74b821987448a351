"""`train` from its first step to a resumed run."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import tiny
from clu import metric_writers
from ml_collections import ConfigDict
from PIL import Image

from imagen_jax import sharding
from imagen_jax.checkpoints.cascades import export_cascade
from imagen_jax.checkpoints.claim import claim_stage, open_origin
from imagen_jax.data.manifest import load_manifest
from imagen_jax.errors import UserError
from imagen_jax.stage import make_stage
from imagen_jax.train import loop
from imagen_jax.train.log import History
from imagen_jax.train.optimizer import learning_rate_schedule
from imagen_jax.train.samples import SampleGrid
from imagen_jax.train.start import open_batches, stage_record
from imagen_jax.train.state import TrainState, count_parameters, create_state

pytestmark = pytest.mark.slow  # all need a cascade that was trained or made first

RUN = (
    *tiny.ONE_LEVEL, "cascade=('base',)", "stages.base.train.steps=60",
    "stages.base.train.learning_rate=0.01", "stages.base.train.log_every=10",
    "stages.base.train.sample_every=30", "stages.base.train.checkpoint_every=20",
    "stages.base.train.keep_checkpoints=2", "stages.base.network.dropout=0.1",
    "stages.base.train.optimizer=muon",
    # What one colour for an image is learnt from in a few steps.
    "stages.base.diffusion.parametrization=x0", "stages.base.diffusion.weighting=x0",
)  # fmt: skip


class Run:
    """One uninterrupted run, and how to start it in another place."""

    def __init__(self, directory: Path):
        self.directory = directory / "base"
        self.history = self.start(directory)
        self.state = self.history.state

    def start(self, workdir: Path, *overrides: str, **options: Any) -> History:
        config = tiny.config(*RUN, *overrides)
        return loop.train(config, "base", tiny.embeddings(), workdir, **options)

    def train(self, workdir: Path, *overrides: str, **options: Any) -> TrainState:
        return self.start(workdir, *overrides, **options).state


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    return Run(tmp_path_factory.mktemp("run"))


def checkpoints(stage_directory: Path) -> list[int]:
    return sorted(int(path.name) for path in (stage_directory / "checkpoints").iterdir())


def test_training_writes_checkpoints_samples_and_metrics(run: Run) -> None:
    assert sorted(path.name for path in run.directory.iterdir()) == [
        ".lock", "checkpoints", "logs", "samples", "stage.json"
    ]  # fmt: skip
    assert checkpoints(run.directory) == [40, 60]
    assert int(run.state.step) == 60
    samples = sorted((run.directory / "samples").iterdir())
    assert [path.name for path in samples] == ["0000030.png", "0000060.png"]
    width, height = Image.open(samples[0]).size
    assert width >= 4 * 128
    assert height >= 2 * 128  # the first shard's eight examples, four in a row
    metrics = tiny.metrics_of(run.directory)
    assert {10, 20, 30, 40, 50, 60} <= metrics.keys()
    rate = learning_rate_schedule(tiny.stage("base", *RUN).train)
    for step in (10, 60):
        assert metrics[step]["images_per_second"] > 0
        assert metrics[step]["grad_norm"] > 0
        mean = np.mean([rate(n) for n in range(step - 10, step)])
        assert metrics[step]["learning_rate"] == pytest.approx(mean, rel=1e-4)
        assert any(name.startswith("loss_logsnr_") for name in metrics[step])
    record = tiny.record(run.directory.parent, "base")
    assert record["encoder"]["name"] == "tiny"
    assert record["source"] == {"train": {"name": "colours"}}
    assert record["config"]["stages"].keys() == {"base"}


def test_history_is_what_was_logged(run: Run) -> None:
    assert run.history.directory == run.directory
    logged = tiny.metrics_of(run.directory)
    assert [row["step"] for row in run.history.rows] == sorted(logged)
    for row in run.history.rows:
        for name, value in logged[row["step"]].items():
            assert value == pytest.approx(row[name], rel=1e-6), name
    steps, losses = run.history["loss"]
    assert steps.tolist() == [10, 20, 30, 40, 50, 60]
    assert losses[-1] == pytest.approx(logged[60]["loss"])
    with pytest.raises(KeyError, match=r"no metric 'lose'; there are .*loss"):
        run.history["lose"]


def test_a_hook_sees_what_is_measured_and_ends_training(run: Run, tmp_path: Path) -> None:
    seen: list[Measured] = []

    def enough(measured: Measured) -> bool:
        seen.append(measured)
        assert int(measured.state.step) == measured.step
        return measured.step == 30

    history = run.start(tmp_path, hooks=[enough])
    assert [measured.step for measured in seen] == [10, 20, 30]
    for measured, row in zip(seen, run.history.rows, strict=False):
        assert measured.metrics["loss"] == row["loss"]
    assert int(history.state.step) == 30
    assert checkpoints(tmp_path / "base") == [20, 30]
    tiny.assert_identical(run.train(tmp_path), run.state)


def test_loss_falls(run: Run) -> None:
    metrics = tiny.metrics_of(run.directory)
    assert metrics[60]["loss"] < 0.6 * metrics[10]["loss"]


def test_ema_follows_the_parameters(run: Run) -> None:
    assert count_parameters(run.state.params) == count_parameters(run.state.ema)
    distance = optax.global_norm(jax.tree.map(jnp.subtract, run.state.params, run.state.ema))
    assert 0 < float(distance) < 0.2 * float(optax.global_norm(run.state.params))


def test_resumed_equals_uninterrupted(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(self: SampleGrid, step: int, params: Any) -> None:
        raise KeyboardInterrupt(step)

    with monkeypatch.context() as patch:
        patch.setattr(SampleGrid, "write", interrupt)
        with pytest.raises(KeyboardInterrupt, match="30"):
            run.train(tmp_path)
    assert checkpoints(tmp_path / "base") == [20]
    # As if it had been killed later: what was logged after the checkpoint is measured again.
    writer = metric_writers.create_default_writer(str(tmp_path / "base" / "logs"))
    writer.write_scalars(25, {"loss": 0.5})
    writer.close()
    resumed = run.train(tmp_path)
    tiny.assert_identical(resumed, run.state)
    there, here = (tiny.metrics_of(path) for path in (run.directory, tmp_path / "base"))
    assert here.keys() == there.keys()
    for step in there:
        assert here[step]["loss"] == there[step]["loss"]
    for path in (run.directory / "samples").iterdir():
        assert (tmp_path / "base" / "samples" / path.name).read_bytes() == path.read_bytes()


def test_resuming_a_finished_run_does_nothing(run: Run) -> None:
    before = {path: path.stat().st_mtime_ns for path in run.directory.rglob("*") if path.is_file()
              and path.parent.name != "logs" and path.name != ".lock"}  # fmt: skip
    tiny.assert_identical(run.train(run.directory.parent), run.state)
    assert {path: path.stat().st_mtime_ns for path in before} == before


def test_settings_that_decide_no_weight_may_change_on_resume(run: Run, tmp_path: Path) -> None:
    workdir = tmp_path / "workdir"
    shutil.copytree(run.directory.parent, workdir)
    changes = {"sample.guidance": 7.5, "train.log_every": 3, "train.sample_every": 0,
               "train.checkpoint_every": 7, "train.keep_checkpoints": 9,
               "train.evaluate_every": 0, "train.max_bad_steps": 1}  # fmt: skip
    said = [f"stages.base.{name}={value}" for name, value in changes.items()]
    said.append("cascade=('base',)")  # other stages may come and go
    tiny.assert_identical(run.train(workdir, *said), run.state)
    section = tiny.record(workdir, "base")["config"]["stages"]["base"]
    for name, value in changes.items():
        kind, field = name.split(".")
        assert section[kind][field] == value
    for change in ("train.steps=70", "train.batch_size=8", "train.accumulation=2"):
        with pytest.raises(
            UserError, match=rf"(?s){change.split('=')[0]}: .*--init-from {workdir}"
        ):
            run.train(workdir, f"stages.base.{change}")


def test_the_work_directory_is_not_claimed_before_the_first_checkpoint(
    run: Run, tmp_path: Path
) -> None:
    def fail(measured: Measured) -> None:
        raise RuntimeError("before the first checkpoint")

    with pytest.raises(RuntimeError, match="before the first"):
        run.train(tmp_path, "stages.base.train.learning_rate=0.1", hooks=[fail])
    assert checkpoints(tmp_path / "base") == []
    tiny.assert_identical(run.train(tmp_path), run.state)


def test_two_trainings_in_one_work_directory_are_refused(run: Run, tmp_path: Path) -> None:
    message = rf"{tmp_path}/base is being written by imagen train \(process {os.getpid()} on "

    def start_another(measured: Measured) -> None:
        with pytest.raises(UserError, match=message):
            run.train(tmp_path)

    tiny.assert_identical(run.train(tmp_path, hooks=[start_another]), run.state)


@pytest.mark.parametrize(
    "error", [MemoryError(), jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory")]
)
def test_out_of_memory_says_what_to_change(
    error: Exception, run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any) -> Any:
        raise error

    with monkeypatch.context() as patch:
        patch.setattr(loop, "jit_train_step", lambda *_: fail)
        with pytest.raises(UserError, match=r"batch_size 4 does not fit.*accumulation.*remat"):
            run.train(tmp_path)
    tiny.assert_identical(run.train(tmp_path), run.state)


def test_another_seed_is_another_run() -> None:
    mesh = sharding.make_mesh()
    stages = [tiny.stage("base", *RUN, f"stages.base.train.seed={seed}") for seed in (0, 0, 1)]
    batches = [open_batches(stage, str(tiny.embeddings()), mesh) for stage in stages]
    for each in batches:
        next(each)
    assert batches[0].ids == batches[1].ids != batches[2].ids
    first, again, other = (create_state(stage, mesh).params for stage in stages)
    tiny.assert_identical(first, again)
    same = jax.tree.map(lambda a, b: bool((a == b).all()), first, other)
    assert not all(jax.tree.leaves(same))


def test_fine_tuning_starts_from_the_ema(run: Run, tmp_path: Path) -> None:
    still = ("stages.base.train.steps=1", "stages.base.train.learning_rate=0",
             "stages.base.train.sample_every=0")  # fmt: skip
    state = run.train(tmp_path, *still, init_from=run.directory.parent)
    assert int(state.step) == 1
    tiny.assert_identical(state.params, run.state.ema)
    tiny.assert_identical(state.ema, run.state.ema)
    assert tiny.record(tmp_path, "base")["init_from"]["train"]["steps"] == 60
    export_cascade(run.directory.parent, tmp_path / "exported", dtype="float32")
    from_exported = run.train(tmp_path / "other", *still, init_from=tmp_path / "exported")
    tiny.assert_identical(from_exported, state)
    # Once it has a checkpoint of its own, it goes on without where it came from.
    for init_from in (None, tmp_path / "gone"):
        tiny.assert_identical(run.train(tmp_path, *still, init_from=init_from), state)


def test_weights_without_a_checkpoint_are_refused_before_anything_is_written(
    run: Run, tmp_path: Path
) -> None:
    other = tmp_path / "other"
    shutil.copytree(run.directory.parent, other, ignore=lambda *_: ["checkpoints"])
    with pytest.raises(UserError, match=f"no checkpoint in {other}"):
        run.train(tmp_path / "workdir", init_from=other)
    assert not (tmp_path / "workdir").exists()


def test_weights_that_do_not_fit_are_refused(run: Run, tmp_path: Path) -> None:
    for change, message in {
        "stages.base.network.text_channels=12": "network.text_channels: 8 != 12",
        "stages.base.diffusion.parametrization=v": "parametrization: 'x0' != 'v'",
    }.items():
        with pytest.raises(ValueError, match="of another network.*" + message):
            run.train(tmp_path / "workdir", change, init_from=run.directory.parent)
    with pytest.raises(UserError, match=r"no work directory .*absent"):
        run.train(tmp_path / "workdir", init_from=tmp_path / "absent")
    assert not (tmp_path / "workdir").exists()


@pytest.mark.parametrize("change", ["", "stages.base.train.lora_rank=2"])
def test_the_licence_of_the_weights_to_start_from_stays_with_the_stage(
    change: str, tmp_path: Path
) -> None:
    licensed = tiny.write_cascade(tmp_path / "licensed", tiny.encoder())
    path = licensed / "cascade.json"
    licence = {"attribution": "of somebody", "terms_shown": "2026-01-01"}
    path.write_text(json.dumps(json.loads(path.read_text()) | {"license": licence}))
    changes = (change, "stages.base.train.ema_decay=0") if change else ()
    config = tiny.config(*tiny.ONE_LEVEL, "text.max_length=32", *changes)
    origin = open_origin(licensed, "base")
    manifest = load_manifest(tiny.embeddings())
    record = stage_record(config, make_stage(config, "base"), manifest, tmp_path / "w", origin)
    assert record["license"] == licence
    # Resumed without its origin, as a later call does.
    claim_stage(tmp_path / "w", "base", record)
    (tmp_path / "w" / "base" / "checkpoints" / "1").mkdir(parents=True)
    resumed = stage_record(config, make_stage(config, "base"), manifest, tmp_path / "w", None)
    assert resumed == record
    with pytest.raises(UserError, match=r"no stage 'other' to start from in .*; it has base, sr"):
        open_origin(licensed, "other")


def test_nan_losses_end_training_without_a_checkpoint(run: Run, tmp_path: Path) -> None:
    message = (
        r"base: 10 steps in a row were not finite.*At step \d+ the loss is .* lower train.lear"
    )
    with pytest.raises(ValueError, match=message):
        run.train(tmp_path, "stages.base.train.learning_rate=1e38", "stages.base.train.log_every=7",
                  "stages.base.train.checkpoint_every=3")  # fmt: skip
    assert checkpoints(tmp_path / "base") == []


def test_a_stage_trains_on_crops_of_sound_records(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = tiny.embed_colours(tmp_path / "data")
    shard = data / "train-00001-of-00002.tfrecord"
    content = bytearray(shard.read_bytes())
    content[40] ^= 1  # in its first record
    shard.write_bytes(content)
    config = ConfigDict(tiny.config(*tiny.ONE_LEVEL, "stages.sr.train.sample_every=0"))
    config.stages.sr.crop = 4
    config.stages.sr.train.max_damaged = 0.1
    state = loop.train(config, "sr", str(data), str(tmp_path / "workdir")).state
    assert int(state.step) == 2
    assert f"{shard}: record 0 is damaged or unsuitable" in capsys.readouterr().err


def test_a_split_may_be_added_to_the_embeddings(tmp_path: Path) -> None:
    from imagen_jax.embed import embed

    data = tiny.embed_colours(tmp_path / "data")
    config = tiny.config(
        *tiny.ONE_LEVEL, "stages.base.train.steps=1", "stages.base.train.sample_every=0"
    )
    state = loop.train(config, "base", str(data), str(tmp_path / "workdir")).state
    assert sorted(path.name for path in (tmp_path / "workdir" / "base").iterdir()) == [
        ".lock", "checkpoints", "logs", "stage.json"
    ]  # fmt: skip
    embed(
        tiny.Colours(), data, encoder=tiny.encoder(), split="test", image_size=tiny.SR, num_shards=1
    )
    again = loop.train(config, "base", str(data), str(tmp_path / "workdir")).state
    tiny.assert_identical(again, state)


@pytest.mark.parametrize("metric", ["validation_loss", "frechet_mobilenet_v2"])
def test_validation_changes_no_weight_and_keeps_the_best_checkpoint(
    metric: str, run: Run, tmp_path: Path
) -> None:
    from imagen_jax.embed import embed

    data = tiny.embed_colours(tmp_path / "data")
    wanted = ["keep_best=1", "keep_checkpoints=1", f"best_metric={metric}", "sample_every=0"]
    if metric == "validation_loss":
        wanted.append("validation_batches=2")
    else:
        wanted += ["evaluate_every=20", "evaluate_images=4"]
    config = tiny.config(*RUN, *(f"stages.base.train.{change}" for change in wanted))
    with pytest.raises(ValueError, match=r"unknown split 'validation'(?s:.*)--split validation"):
        loop.train(config, "base", str(data), str(tmp_path / "workdir"))
    assert not (tmp_path / "workdir").exists()
    embed(
        tiny.Colours(), data, encoder=tiny.encoder(), split="validation", image_size=tiny.SR,
        num_shards=1,
    )  # fmt: skip
    state = loop.train(config, "base", str(data), str(tmp_path / "workdir")).state
    tiny.assert_identical(state, run.state)
    directory = tmp_path / "workdir" / "base"
    measured = {
        step: scalars[metric]
        for step, scalars in tiny.metrics_of(directory).items()
        if metric in scalars
    }
    assert measured.keys() == {20, 40, 60}
    assert measured[60] < measured[20]
    best = min(measured, key=measured.__getitem__)
    assert checkpoints(directory) == sorted({best, 60})
