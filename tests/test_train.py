"""Training: each formula against NumPy, and `train` from its first step to a resumed run."""

from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import tiny
from ml_collections import ConfigDict
from PIL import Image

from imagen_jax.diffusion.parametrization import diffuse
from imagen_jax.stage import upsample_low_res
from imagen_jax.train import loop
from imagen_jax.train.metrics import LOGSNR_EDGES, SampleGrid, summarise
from imagen_jax.train.optimizer import hidden_kernels, learning_rate_schedule, make_optimizer
from imagen_jax.train.state import TrainState, count_parameters
from imagen_jax.train.step import batch_conditioning, drop_text, ema_decay, make_train_step
from imagen_jax.typing import TextEmbedding


def state_of(params: Any, transform: optax.GradientTransformation, *extra: str) -> TrainState:
    """A state at its first step; `extra`: decays of further averages."""
    zero = jnp.zeros((), jnp.int32)
    averages = dict.fromkeys(extra, params)
    return TrainState(zero, params, params, transform.init(params), averages, zero)


def assert_identical(a: Any, b: Any) -> None:
    """The same trees, bit for bit."""
    jax.tree.map(lambda x, y: np.testing.assert_array_equal(x, y, strict=True), *(
        jax.device_get(tree) for tree in (a, b)
    ))  # fmt: skip


# what a step consists of


def test_learning_rate() -> None:
    config = tiny.stage("base", "stages.base.train.warmup_steps=10", "stages.base.train.steps=110",
                        "stages.base.train.learning_rate=0.5").train  # fmt: skip
    rate = learning_rate_schedule(config)
    for step, expected in {0: 0, 1: 0.05, 5: 0.25, 10: 0.5, 60: 0.25, 110: 0, 200: 0}.items():
        assert float(rate(step)) == pytest.approx(expected, abs=1e-7), step
    quarter = 0.5 * (1 + np.cos(np.pi / 4)) / 2
    assert float(rate(35)) == pytest.approx(quarter, abs=1e-7)
    at_once = tiny.stage("base", "stages.base.train.learning_rate=0.5").train
    assert float(learning_rate_schedule(at_once)(0)) == 0.5


@pytest.mark.parametrize("rate", [0.0, 0.3, 1.0])
def test_share_of_dropped_captions(rate: float) -> None:
    count = 20_000
    text = TextEmbedding(jnp.ones((count, 2, 1)), jnp.ones((count, 2), bool).at[:, 1].set(False))
    states, mask = drop_text(jax.random.key(0), text, rate)
    dropped = ~np.asarray(mask[:, 0])
    assert dropped.mean() == pytest.approx(rate, abs=4 * np.sqrt(rate * (1 - rate) / count))
    assert not mask[dropped].any()
    assert not states[dropped].any()
    np.testing.assert_array_equal(states[~dropped], text.states[~dropped])
    np.testing.assert_array_equal(mask[~dropped], text.mask[~dropped])


def test_low_res_is_noised_by_its_level() -> None:
    stage = tiny.stage("sr", "stages.sr.train.max_aug_level=0.5")
    batch = tiny.batch(stage, 256)
    text = TextEmbedding(batch["text_emb"], batch["text_mask"])
    given = batch_conditioning(stage, batch, text, jax.random.key(0))
    assert given.low_res is not None
    assert given.aug_level is not None
    levels = np.sort(given.aug_level)
    # Uniform: the largest distance from the diagonal is that of Kolmogorov and Smirnov.
    assert np.abs(levels - np.linspace(0, 0.5, 256)).max() < 0.5 * 1.63 / np.sqrt(256)
    clean = upsample_low_res(batch["low_res"], (stage.resolution,) * 2)
    logsnr = stage.schedule.logsnr(given.aug_level)
    noise = (given.low_res - diffuse(clean, jnp.zeros_like(clean), logsnr)) / jnp.sqrt(
        jax.nn.sigmoid(-logsnr)
    )[:, None, None, None]
    assert float(noise.mean()) == pytest.approx(0, abs=4 / np.sqrt(noise.size))
    assert float(noise.std()) == pytest.approx(1, abs=4 / np.sqrt(noise.size))

    clean_stage = tiny.stage("sr", "stages.sr.train.max_aug_level=0")
    unaltered = batch_conditioning(clean_stage, batch, text, jax.random.key(0))
    np.testing.assert_array_equal(unaltered.aug_level, 0)
    np.testing.assert_allclose(unaltered.low_res, clean, atol=1e-3)


def test_upsampling_of_low_res() -> None:
    flat = jnp.full((2, 4, 4, 3), 0.3)
    np.testing.assert_allclose(upsample_low_res(flat, (16, 16)), 0.3, rtol=1e-6)
    rng = np.random.default_rng(0)
    x = jnp.asarray(rng.normal(size=(2, 4, 6, 3)), jnp.float32)
    np.testing.assert_allclose(upsample_low_res(x, (4, 6)), x, atol=1e-6)
    turned = upsample_low_res(jnp.rot90(x, axes=(1, 2)), (12, 8))
    upsampled = upsample_low_res(x, (8, 12))
    np.testing.assert_allclose(turned, jnp.rot90(upsampled, axes=(1, 2)), atol=1e-6)
    for shape, size in (((1, 4, 4, 3), (10, 10)), ((1, 4, 8, 3), (16, 16))):
        message = f"4 x {shape[2]} cannot condition one of {size[0]} x {size[1]} pixels"
        with pytest.raises(ValueError, match=message):
            upsample_low_res(jnp.zeros(shape), size)


@pytest.mark.parametrize("optimizer", ["adam", "adafactor", "muon"])
def test_steps_and_their_average(optimizer: str) -> None:
    stage = tiny.stage(
        "base", *tiny.ONE_LEVEL, f"stages.base.train.optimizer={optimizer}",
        "stages.base.train.steps=20", "stages.base.train.ema_decay=0.3",
        "stages.base.train.clip_norm=0.01", "stages.base.train.extra_ema_decays=(0.15,)",
    )  # fmt: skip
    transform = make_optimizer(stage.train)
    params = tiny.random_params(stage)
    state = state_of(params, transform, "0.15")
    step, batch = jax.jit(make_train_step(stage, transform)), tiny.batch(stage, 4)
    again, _ = step(state, batch)

    averages = dict.fromkeys((0.3, 0.15), jax.device_get(params))
    rate = learning_rate_schedule(stage.train)
    for n in range(5):
        before = state.params
        state, metrics = step(state, batch)
        if n == 0:
            assert_identical(again, state)
        assert int(state.step) == n + 1
        assert float(metrics["learning_rate"]) == float(rate(n))
        assert float(metrics["loss"]) == pytest.approx(float(metrics["loss_per_example"].mean()))
        assert metrics["logsnr"].shape == (4,)
        assert float(metrics["grad_norm"]) > 0.01
        moved = jax.tree.map(lambda a, b: bool((a != b).any()), before, state.params)
        assert all(jax.tree.leaves(moved))
        decay = min(0.3, (1 + n) / (10 + n))
        assert float(ema_decay(jnp.int32(n), 0.3)) == pytest.approx(decay)
        for highest, found in ((0.3, state.ema), (0.15, state.extra_ema["0.15"])):
            decay = min(highest, (1 + n) / (10 + n))
            averages[highest] = jax.tree.map(
                lambda e, p, d=decay: d * e + (1 - d) * np.asarray(p, np.float64),
                averages[highest], state.params,
            )  # fmt: skip
            jax.tree.map(lambda e, a: np.testing.assert_allclose(e, a, rtol=1e-4, atol=1e-6),
                         jax.device_get(found), averages[highest])  # fmt: skip

    # One that is not finite counts, and changes nothing else.
    bad = batch | {"image": batch["image"].at[1, 0, 0, 0].set(jnp.inf)}
    skipped, metrics = step(state, bad)
    assert not metrics["finite"]
    assert (int(skipped.step), int(skipped.skipped)) == (6, 1)
    assert_identical(dataclasses.replace(skipped, step=state.step, skipped=state.skipped), state)
    following, metrics = step(skipped, batch)
    assert metrics["finite"]
    assert float(metrics["learning_rate"]) == float(rate(5))  # the optimiser's sixth step
    assert (int(following.step), int(following.skipped)) == (7, 1)


def test_muon_orthogonalises_hidden_kernels_alone() -> None:
    """The first update of a matrix has equal singular values, up to Newton and Schulz's steps."""
    stage = tiny.stage("base", *tiny.ONE_LEVEL, "stages.base.train.optimizer=muon")
    params = tiny.random_params(stage)
    transform = make_optimizer(stage.train)
    updates = jax.jit(lambda grads: transform.update(grads, transform.init(params), params)[0])(
        jax.tree.map(lambda p: p + 0.01, params)
    )
    is_leaf = lambda leaf: leaf is None or hasattr(leaf, "reduction_axis")  # noqa: E731
    chosen, _ = jax.tree_util.tree_flatten_with_path(hidden_kernels(params), is_leaf=is_leaf)
    rate = float(learning_rate_schedule(stage.train)(0))
    assert rate > 0
    hidden = 0
    for path, dimensions in chosen:
        name = jax.tree_util.keystr(path)
        update = updates
        for key in path:
            update = update[key.key]
        is_hidden = name.endswith("['kernel']") and not name.startswith(("['conv_in", "['conv_out"))
        assert (dimensions is not None) == is_hidden, name
        if is_hidden:
            hidden += 1
            matrix = np.asarray(update, np.float64).reshape(-1, update.shape[-1]) / rate
            scale = 0.2 * np.sqrt(max(matrix.shape))
            assert np.linalg.norm(matrix, 2) <= 1.3 * scale, name
            rms = np.sqrt(np.mean(matrix**2))
            assert 0.1 <= rms <= 0.26, name
    assert hidden > 10


def test_gradients_are_clipped_together() -> None:
    stage = tiny.stage(
        "base", "stages.base.train.optimizer=adam", "stages.base.train.clip_norm=0.5"
    )
    transform = make_optimizer(stage.train)
    params = {"a": jnp.zeros(3), "b": jnp.zeros((2, 2))}
    for size, norm in ((100.0, 0.5), (0.01, 0.01 * np.sqrt(7))):
        grads = jax.tree.map(lambda p, size=size: jnp.full(p.shape, size), params)
        _, state = transform.update(grads, transform.init(params), params)
        mean = optax.tree.get(state, "mu")  # of Adam: a tenth of the first gradient
        assert float(optax.global_norm(mean)) == pytest.approx(0.1 * norm, rel=1e-4)


def test_summary_of_steps() -> None:
    rng = np.random.default_rng(0)
    steps = [
        {
            "loss": rng.uniform(), "grad_norm": rng.uniform(), "learning_rate": 0.1,
            "update_norm": rng.uniform(), "finite": True,
            "loss_per_example": rng.uniform(size=50), "logsnr": rng.uniform(-20, 5, 50),
        }
        for _ in range(3)
    ]  # fmt: skip
    found = summarise(steps)
    assert found["loss"] == pytest.approx(np.mean([s["loss"] for s in steps]))
    loss = np.concatenate([s["loss_per_example"] for s in steps])
    logsnr = np.concatenate([s["logsnr"] for s in steps])
    for low, high in zip(LOGSNR_EDGES, LOGSNR_EDGES[1:], strict=False):
        inside = (logsnr >= low) & (logsnr < high)
        name = f"loss_logsnr_{low:g}_{high:g}"
        if inside.any():
            assert found[name] == pytest.approx(loss[inside].mean(), rel=1e-5)
        else:
            assert name not in found
    assert "loss_logsnr_6_20" not in found


# the whole of it

RUN = (
    *tiny.ONE_LEVEL, "cascade=('base',)", "stages.base.train.steps=60",
    "stages.base.train.learning_rate=0.01", "stages.base.train.log_every=10",
    "stages.base.train.sample_every=30", "stages.base.train.checkpoint_every=20",
    "stages.base.train.keep_checkpoints=2", "stages.base.network.dropout=0.1",
    # What one colour for a picture is learnt from in a few steps.
    "stages.base.diffusion.parametrization=x0", "stages.base.diffusion.weighting=x0",
)  # fmt: skip


class Run:
    """One uninterrupted run, and how to start it in another place."""

    def __init__(self, directory: Path):
        self.directory = directory / "base"
        self.state = self.train(directory)

    def train(self, workdir: Path, *overrides: str, init_from: Path | None = None) -> TrainState:
        return loop.train(
            tiny.config(*RUN, *overrides), "base", str(tiny.embeddings()), str(workdir),
            init_from=None if init_from is None else str(init_from),
        )  # fmt: skip


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    return Run(tmp_path_factory.mktemp("run"))


def checkpoints(stage_directory: Path) -> list[int]:
    return sorted(int(path.name) for path in (stage_directory / "checkpoints").iterdir())


def test_what_training_writes(run: Run) -> None:
    assert sorted(path.name for path in run.directory.iterdir()) == [
        "checkpoints", "logs", "samples", "stage.json"
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


def test_loss_falls(run: Run) -> None:
    metrics = tiny.metrics_of(run.directory)
    assert metrics[60]["loss"] < 0.6 * metrics[10]["loss"]


def test_average_follows_the_parameters(run: Run) -> None:
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
    resumed = run.train(tmp_path)
    assert_identical(resumed, run.state)
    there, here = (tiny.metrics_of(path) for path in (run.directory, tmp_path / "base"))
    for step in (30, 40, 50, 60):
        assert here[step]["loss"] == there[step]["loss"]
    for path in (run.directory / "samples").iterdir():
        assert (tmp_path / "base" / "samples" / path.name).read_bytes() == path.read_bytes()


def test_a_finished_run_has_nothing_to_do(run: Run) -> None:
    before = {path: path.stat().st_mtime_ns for path in run.directory.rglob("*") if path.is_file()
              and path.parent.name != "logs"}  # fmt: skip
    assert_identical(run.train(run.directory.parent), run.state)
    assert {path: path.stat().st_mtime_ns for path in before} == before


def test_new_sampling_settings_are_recorded(run: Run, tmp_path: Path) -> None:
    workdir = tmp_path / "workdir"
    shutil.copytree(run.directory.parent, workdir)
    assert_identical(run.train(workdir, "stages.base.sample.guidance=7.5"), run.state)
    section = tiny.record(workdir, "base")["config"]["stages"]["base"]
    assert section["sample"]["guidance"] == 7.5


def test_another_seed_is_another_run(run: Run, tmp_path: Path) -> None:
    other = run.train(tmp_path, "stages.base.train.seed=1", "stages.base.train.steps=1")
    same = jax.tree.map(lambda a, b: bool((a == b).all()), other.params, run.state.params)
    assert not all(jax.tree.leaves(same))


def test_fine_tuning_starts_from_the_average(run: Run, tmp_path: Path) -> None:
    still = ("stages.base.train.steps=1", "stages.base.train.learning_rate=0")
    state = run.train(tmp_path, *still, init_from=run.directory.parent)
    assert int(state.step) == 1
    assert_identical(state.params, run.state.ema)
    assert_identical(state.ema, run.state.ema)
    assert tiny.record(tmp_path, "base")["init_from"]["train"]["steps"] == 60
    # Once it has a checkpoint of its own, it goes on without where it came from.
    for init_from in (None, tmp_path / "gone"):
        assert_identical(run.train(tmp_path, *still, init_from=init_from), state)


def test_weights_without_a_checkpoint_are_refused_before_anything_is_written(
    run: Run, tmp_path: Path
) -> None:
    other = tmp_path / "other"
    shutil.copytree(run.directory.parent, other, ignore=lambda *_: ["checkpoints"])
    with pytest.raises(FileNotFoundError, match=f"no checkpoint in {other}"):
        run.train(tmp_path / "workdir", init_from=other)
    assert not (tmp_path / "workdir").exists()


def test_weights_that_do_not_fit_are_refused(run: Run, tmp_path: Path) -> None:
    for change, message in {
        "stages.base.network.text_channels=12": r"\n *network.text_channels: 8 != 12",
        "stages.base.diffusion.parametrization=v": r"\n *parametrization: 'x0' != 'v'",
    }.items():
        with pytest.raises(ValueError, match="of another network.*" + message):
            run.train(tmp_path / "workdir", change, init_from=run.directory.parent)
    with pytest.raises(FileNotFoundError, match="no stage 'base' under"):
        run.train(tmp_path / "workdir", init_from=tmp_path / "absent")
    assert not (tmp_path / "workdir").exists()


def test_divergence_stops_before_the_checkpoint(run: Run, tmp_path: Path) -> None:
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
    config = ConfigDict(tiny.config(*tiny.ONE_LEVEL, "stages.sr.train.steps=4"))
    config.stages.sr.crop = 4
    config.stages.sr.train.max_damaged = 0.1
    state = loop.train(config, "sr", str(data), str(tmp_path / "workdir"))
    assert int(state.step) == 4
    assert f"{shard}: record 0 is damaged or unsuitable" in capsys.readouterr().err


def test_a_split_may_be_added_to_the_embeddings(tmp_path: Path) -> None:
    from imagen_jax.embed import embed

    data = tiny.embed_colours(tmp_path / "data")
    config = tiny.config(*tiny.ONE_LEVEL, "stages.base.train.steps=1")
    state = loop.train(config, "base", str(data), str(tmp_path / "workdir"))
    embed(tiny.Colours(), tiny.encoder(), data, split="test", image_size=tiny.SR, num_shards=1)
    assert_identical(loop.train(config, "base", str(data), str(tmp_path / "workdir")), state)
