"""A training step: each of its formulas against NumPy, and what is measured of it."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import tiny

from imagen_jax import chips
from imagen_jax.diffusion.augment import upsample_low_res
from imagen_jax.train.metrics import LOGSNR_EDGES, Clock, summarise
from imagen_jax.train.optimizer import hidden_kernels, learning_rate_schedule, make_optimizer
from imagen_jax.train.state import TrainState
from imagen_jax.train.step import (
    batch_conditioning,
    drop_text,
    ema_decay,
    make_train_step,
    model_flops,
)
from imagen_jax.typing import TextEmbedding


def state_of(params: Any, transform: optax.GradientTransformation, *extra: str) -> TrainState:
    """A state at its first step; `extra`: decays of further averages."""
    zero = jnp.zeros((), jnp.int32)
    averages = dict.fromkeys(extra, params)
    return TrainState(zero, params, params, transform.init(params), averages, zero)


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
    """Whatever the stage's own schedule."""
    stage = tiny.stage("sr", "stages.sr.train.max_aug_level=0.5", "stages.sr.schedule.kind=linear")
    batch = tiny.batch(stage, 256)
    text = TextEmbedding(batch["text_emb"], batch["text_mask"])
    given = batch_conditioning(stage, batch, text, jax.random.key(0))
    assert given.low_res is not None
    assert given.aug_level is not None
    levels = np.sort(given.aug_level)
    # Uniform: the largest distance from the diagonal is that of Kolmogorov and Smirnov.
    assert np.abs(levels - np.linspace(0, 0.5, 256)).max() < 0.5 * 1.63 / np.sqrt(256)
    clean = upsample_low_res(batch["low_res"], (stage.resolution,) * 2)
    sigma = jnp.sin(jnp.pi / 2 * given.aug_level)[:, None, None, None]
    noise = (given.low_res - jnp.sqrt(1 - sigma**2) * clean) / sigma
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


@pytest.mark.slow
@pytest.mark.parametrize("optimizer", ["adam", "adafactor", "muon"])
def test_steps_and_their_ema(optimizer: str) -> None:
    stage = tiny.stage(
        "base", *tiny.ONE_LEVEL, f"stages.base.train.optimizer={optimizer}",
        "stages.base.train.steps=20", "stages.base.train.ema_decay=0.3",
        "stages.base.train.clip_norm=0.01", "stages.base.train.extra_ema_decays=(0.15,)",
    )  # fmt: skip
    transform = make_optimizer(stage)
    params = tiny.random_params(stage)
    state = state_of(params, transform, "0.15")
    step, batch = jax.jit(make_train_step(stage)), tiny.batch(stage, 4)
    again, _ = step(state, batch)

    averages = dict.fromkeys((0.3, 0.15), jax.device_get(params))
    rate = learning_rate_schedule(stage.train)
    for n in range(5):
        before = state.params
        state, metrics = step(state, batch)
        if n == 0:
            tiny.assert_identical(again, state)
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
    tiny.assert_identical(
        dataclasses.replace(skipped, step=state.step, skipped=state.skipped), state
    )
    following, metrics = step(skipped, batch)
    assert metrics["finite"]
    assert float(metrics["learning_rate"]) == float(rate(5))  # the optimiser's sixth step
    assert (int(following.step), int(following.skipped)) == (7, 1)


@pytest.mark.slow
def test_muon_orthogonalises_hidden_kernels_alone() -> None:
    """The first update of a matrix has equal singular values, up to Newton and Schulz's steps."""
    stage = tiny.stage("base", *tiny.ONE_LEVEL, "stages.base.train.optimizer=muon")
    params = tiny.random_params(stage)
    transform = make_optimizer(stage)
    updates = jax.jit(lambda grads: transform.update(grads, transform.init(params), params)[0])(
        jax.tree.map(lambda p: p + 0.01, params)
    )
    is_leaf = lambda leaf: leaf is None or hasattr(leaf, "reduction_axis")  # noqa: E731
    chosen, _ = jax.tree_util.tree_flatten_with_path(
        hidden_kernels(params, stage.network.outer_layers), is_leaf=is_leaf
    )
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
    transform = make_optimizer(stage)
    params = {"a": jnp.zeros(3), "b": jnp.zeros((2, 2))}
    for size, norm in ((100.0, 0.5), (0.01, 0.01 * np.sqrt(7))):
        grads = jax.tree.map(lambda p, size=size: jnp.full(p.shape, size), params)
        _, state = transform.update(grads, transform.init(params), params)
        mean = optax.tree.get(state, "mu")  # of Adam: a tenth of the first gradient
        assert float(optax.global_norm(mean)) == pytest.approx(0.1 * norm, rel=1e-4)


def test_metrics_of_several_steps() -> None:
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


@pytest.mark.slow
def test_utilisation_of_a_chip(monkeypatch: pytest.MonkeyPatch) -> None:
    stage = tiny.stage("base", *tiny.ONE_LEVEL)
    assert "mfu" not in Clock(stage, 2).rates(3)  # a CPU's peak is not known
    monkeypatch.setitem(chips.KINDS, "cpu", chips.CHIPS["v4"])
    rates = Clock(stage, 2).rates(3)
    expected = rates["steps_per_second"] * model_flops(stage) / (2 * 275e12)
    assert rates["mfu"] == pytest.approx(expected)
    recomputing = stage.with_network(stage.network.with_remat("blocks"))
    assert model_flops(recomputing) == model_flops(stage) > 0
