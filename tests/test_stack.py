"""Rows of blocks as a loop, rematerialised or not, and text computed once: the same network."""

from __future__ import annotations

import dataclasses
import functools
import re
from typing import Any

import flax.traverse_util
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

from imagen_jax.models import stack
from imagen_jax.stage import Stage
from imagen_jax.train.step import loss_and_gradients, stage_loss
from imagen_jax.typing import TextEmbedding

DEEP = (
    "stages.base.network.multipliers=(1,)", "stages.base.network.blocks=(3,)",
    "stages.base.network.attention=(True,)", "stages.base.network.text_layers=0",
    "stages.sr.network.channels=(8,)", "stages.sr.network.blocks=(4,)",
    "stages.sr.network.self_attention=(True,)", "stages.sr.network.cross_attention=(True,)",
    "stages.sr.network.text_layers=0",
)  # fmt: skip


def deep(name: str) -> Stage:
    """A stage of one resolution with rows of blocks that are worth a loop."""
    if name == "jit":
        return tiny.stage("sr").with_network(tiny.JIT)
    stage = tiny.stage(name, *DEEP)
    if name == "base":
        return stage
    return stage.with_network(stage.network.clone(attend="block", qk_norm=True))


def gradients(stage: Stage, params: Any) -> Any:
    batch = tiny.batch(stage, 2)

    def loss(params: Any) -> jax.Array:
        return jnp.mean(stage_loss(stage, params, batch, jax.random.key(1)).per_example)

    return jax.device_get(jax.jit(jax.value_and_grad(loss))(params))


@functools.cache
def expected(name: str) -> Any:
    """Loss and gradients of a deep stage, whose blocks are a loop and save all that they need."""
    stage = deep(name)
    return gradients(stage, tiny.random_params(stage))


def unstacked(params: Any) -> Any:
    """The parameters of every block of a stack, under the names that blocks have without."""
    flat = {}
    for path, leaf in flax.traverse_util.flatten_dict(params, sep="/").items():
        found = re.match(r"(\w+)_(\d+)_stack/block/(.*)", path)
        if found is None:
            flat[path] = leaf
            continue
        for i, value in enumerate(leaf):
            flat[f"{found[1]}_{int(found[2]) + i}/{found[3]}"] = value
    return flax.traverse_util.unflatten_dict(flat, sep="/")


def assert_same(a: Any, b: Any) -> None:
    def check(path: Any, x: Any, y: Any) -> None:
        error = float(np.abs(x - y).max())
        assert error <= 1e-4 * max(float(np.abs(y).max()), 1e-3), (
            f"{jax.tree_util.keystr(path)}: {error}"
        )

    jax.tree_util.tree_map_with_path(check, a, b)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["base", "sr", "jit"])
def test_a_loop_of_blocks_is_the_blocks(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    stage = deep(name)
    params = tiny.random_params(stage)
    assert any("_stack" in key for key in params)
    loss, grads = expected(name)
    monkeypatch.setattr(stack, "SCAN_FROM", 100)
    plain_loss, plain_grads = gradients(stage, unstacked(params))
    np.testing.assert_allclose(loss, plain_loss, rtol=1e-5)
    assert_same(unstacked(grads), plain_grads)


@pytest.mark.slow
@pytest.mark.parametrize("remat", [name for name in stack.REMAT if name != "none"])
@pytest.mark.parametrize("name", ["base", "sr", "jit"])
def test_rematerialisation_changes_no_gradient(name: str, remat: str) -> None:
    stage = deep(name)
    again = stage.with_network(stage.network.with_remat(remat))
    assert_same(gradients(again, tiny.random_params(stage)), expected(name))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["base", "sr", "jit"])
def test_rematerialisation_saves_less(name: str) -> None:
    """Residuals of the forward pass for the backward pass, by policy."""
    sizes = {}
    for remat in stack.REMAT:
        stage = deep(name)
        stage = stage.with_network(stage.network.with_remat(remat))
        params = tiny.random_params(stage)
        batch = tiny.batch(stage, 2)

        def loss(params: Any, stage: Stage = stage, batch: Any = batch) -> jax.Array:
            return jnp.mean(stage_loss(stage, params, batch, jax.random.key(1)).per_example)

        saved = jax.eval_shape(lambda p, loss=loss: jax.vjp(loss, p)[1], params)
        sizes[remat] = sum(leaf.size for leaf in jax.tree.leaves(saved))
    assert sizes["blocks"] < sizes["products"] < sizes["none"]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["base", "sr"])
def test_cached_text_is_the_text(name: str) -> None:
    """With the cache, only the mask of the text is read, and the output is the same."""
    stage = deep(name)
    params = tiny.random_params(stage)
    conditioning = tiny.conditioning(stage, 2)
    x = jnp.asarray(np.random.default_rng(0).normal(size=(2, *[stage.resolution] * 2, 3)))
    logsnr = jnp.asarray([-1.0, 2.0])
    cached = jax.jit(stage.cache_text)(params, conditioning)
    text = TextEmbedding(jnp.full_like(cached.text.states, jnp.nan), cached.text.mask)
    apply = jax.jit(stage.apply)
    np.testing.assert_allclose(
        apply(params, x, logsnr, cached._replace(text=text)),
        apply(params, x, logsnr, conditioning),
        atol=1e-5,
    )


@pytest.mark.slow
@pytest.mark.parametrize("name", ["base", "sr"])
def test_accumulated_gradients_are_the_mean_over_parts(name: str) -> None:
    stage = tiny.stage(name, *tiny.ONE_LEVEL)
    parts = dataclasses.replace(stage, train=dataclasses.replace(stage.train, accumulation=2))
    params, batch, key = tiny.random_params(stage), tiny.batch(stage, 4), jax.random.key(3)
    loss, detail, grads = jax.jit(lambda *a: loss_and_gradients(parts, *a))(params, batch, key)
    one = jax.jit(lambda *a: loss_and_gradients(stage, *a))
    halves = [
        one(params, jax.tree.map(lambda x, i=i: x[i::2], batch), part)
        for i, part in enumerate(jax.random.split(key, 2))
    ]
    np.testing.assert_allclose(loss, np.mean([half[0] for half in halves]), rtol=1e-5)
    assert_same(grads, jax.tree.map(lambda a, b: (a + b) / 2, halves[0][2], halves[1][2]))
    for i in range(2):
        np.testing.assert_allclose(detail.per_example[i::2], halves[i][1].per_example, rtol=1e-4)
