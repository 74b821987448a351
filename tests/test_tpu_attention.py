"""Attention as a TPU computes it is attention; the kernel is interpreted here, or compiled only."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict

from imagen_jax import sharding
from imagen_jax.config import load_config
from imagen_jax.models import attention, tpu_attention
from imagen_jax.plan.programs import train_program
from imagen_jax.plan.topology import topology_devices
from imagen_jax.stage import make_stage


def heads(b: int, queries: int, keys: int, n: int, channels: int) -> list[Any]:
    """Queries, keys, values, and a gradient of the result."""
    rng = np.random.default_rng(0)
    lengths = (queries, keys, keys, queries)
    return [rng.standard_normal((b, of, n, channels)).astype(np.float32) for of in lengths]


def seen(b: int, keys: int) -> np.ndarray:
    """A mask of keys, in which the first example sees its first key alone."""
    mask = np.random.default_rng(1).random((b, keys)) < 0.7
    mask[0] = np.arange(keys) == 0
    return mask


def plain(q: Any, k: Any, v: Any, mask: np.ndarray | None = None) -> Any:
    return jax.nn.dot_product_attention(q, k, v, mask=None if mask is None else mask[:, None, None])


def value_and_gradients(function: Any, *args: Any, grad: Any) -> list[Any]:
    def both(*args: Any) -> Any:
        value, back = jax.vjp(function, *args)
        return value, *back(grad)

    return [np.asarray(x, np.float32) for x in jax.jit(both)(*args)]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("shape", "blocks", "masked"),
    [
        ((2, 130, 77, 3, 16), (512, 2048), True),  # both are padded
        ((1, 128, 128, 1, 64), (512, 2048), False),
        ((2, 300, 270, 1, 24), (128, 256), True),  # three blocks of queries, two of keys
    ],
)
def test_float32_is_plain_attention_to_rounding(
    shape: Any, blocks: Any, masked: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = ("QUERY_BLOCK", "KEY_BLOCK")
    for name, longest in zip(names, blocks, strict=True):
        monkeypatch.setattr(tpu_attention, name, longest)
    q, k, v, grad = heads(*shape)
    mask = seen(shape[0], shape[2]) if masked else None
    of = {
        function: value_and_gradients(lambda *x, f=function: f(*x, mask), q, k, v, grad=grad)
        for function in (plain, tpu_attention.attend)
    }
    for expected, found in zip(of[plain], of[tpu_attention.attend], strict=True):
        np.testing.assert_allclose(found, expected, atol=1e-5 * np.abs(expected).max())
    if mask is not None:
        for of_keys in of[tpu_attention.attend][2:]:
            assert not of_keys[~mask].any()


@pytest.mark.slow
def test_bfloat16_is_as_exact_as_plain_attention() -> None:
    *inputs, grad = (jnp.asarray(x, jnp.bfloat16) for x in heads(2, 128, 200, 2, 48))
    mask = seen(2, 200)
    exact = value_and_gradients(
        lambda *x: plain(*x, mask),
        *(x.astype("float32") for x in inputs),
        grad=grad.astype("float32"),
    )
    usual = value_and_gradients(lambda *x: plain(*x, mask), *inputs, grad=grad)
    found = value_and_gradients(lambda *x: tpu_attention.attend(*x, mask), *inputs, grad=grad)
    for truth, of_usual, of_found in zip(exact, usual, found, strict=True):
        size = np.abs(truth).max()
        assert np.abs(of_found - truth).max() < 2 * np.abs(of_usual - truth).max() + 2**-9 * size
        assert np.abs(of_found - truth).max() < 2**-6 * size


def layer(to_image: bool) -> Any:
    """A layer of attention to text, its parameters, and an image, text and no visible token."""
    block = attention.ImageAttention(16, to_image, to_text=True, dtype=jnp.dtype("float32"))
    rng = np.random.default_rng(0)
    x, text = (rng.standard_normal(of).astype(np.float32) for of in ((2, 8, 8, 32), (2, 5, 24)))
    mask = np.zeros((2, 5), bool)
    return block, nn.unbox(block.init(jax.random.key(0), x, text, mask)), x, text, mask


@pytest.mark.slow
@pytest.mark.parametrize("to_image", [True, False])
def test_text_without_a_visible_token(to_image: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    block, params, x, text, mask = layer(to_image)
    of = []
    for attend in (plain, tpu_attention.attend):
        monkeypatch.setattr(attention, "attend", attend)
        value, back = jax.vjp(lambda *args: block.apply(*args, mask), params, x, text)
        of.append(jax.tree.leaves((value, back(jnp.ones_like(value)))))
    for expected, found in zip(*of, strict=True):
        np.testing.assert_allclose(found, expected, atol=1e-5 * np.abs(expected).max() + 1e-9)


def test_the_rule() -> None:
    def taken(queries: int, keys: int, channels: int = 64, dtype: Any = jnp.bfloat16) -> bool:
        of = [jax.ShapeDtypeStruct((8, n, 16, channels), dtype) for n in (queries, keys, keys)]
        return tpu_attention.applies(*of)

    assert taken(1024, 1153)
    assert taken(4096, 4225, 128, jnp.float32)
    assert taken(576, 705)
    assert not taken(1024, 129)  # text alone
    assert not taken(256, 385)  # 16 x 16 positions
    assert not taken(1, 129)  # pooling
    assert not taken(1024, 1153, dtype=jnp.float16)
    assert not taken(1024, 1153, 512)


@pytest.mark.parametrize(
    ("axes", "taken"), [({"tensor": 2}, True), ({"tensor": 3}, False), ({"spatial": 4}, False)]
)
def test_the_rule_on_a_mesh(axes: dict[str, int], taken: bool) -> None:
    sizes = tuple(axes.get(name, 1) for name in sharding.MESH_AXES)
    of = jax.ShapeDtypeStruct((8, 1024, 16, 64), jnp.bfloat16)
    with jax.sharding.use_abstract_mesh(jax.sharding.AbstractMesh(sizes, sharding.MESH_AXES)):
        assert tpu_attention.applies(of, of, of) == taken


EIGHT_DEVICES = """
import jax, numpy as np
from jax.sharding import NamedSharding
from imagen_jax import sharding
from imagen_jax.models import tpu_attention

assert len(jax.devices()) == 8
rng = np.random.default_rng(0)
q, k, v = (rng.standard_normal((8, n, 2, 16)).astype(np.float32) for n in (256, 70, 70))
seen = rng.random((8, 70)) < 0.7
seen[:, 0] = True

def plain(q, k, v, seen):
    return jax.nn.dot_product_attention(q, k, v, mask=seen[:, None, None])

def value_and_gradients(attend):
    def both(*args):
        value, back = jax.vjp(lambda *x: attend(*x, args[3]), *args[:3])
        return value, back(args[0])
    return both

expected = value_and_gradients(plain)(q, k, v, seen)
for axes in ({"data": 2, "fsdp": 4}, {"fsdp": 4, "tensor": 2}, {"data": 4, "spatial": 2}):
    mesh = sharding.make_mesh(axes)
    by_example = NamedSharding(mesh, sharding.BATCH_SPEC)
    step = jax.jit(sharding.on_mesh(value_and_gradients(tpu_attention.attend), mesh),
                   in_shardings=by_example)
    for ours, truth in zip(jax.tree.leaves(step(q, k, v, seen)), jax.tree.leaves(expected)):
        np.testing.assert_allclose(ours, truth, atol=1e-5 * np.abs(truth).max(), err_msg=str(axes))
"""


@pytest.mark.slow
def test_eight_devices_compute_the_same() -> None:
    done = subprocess.run(
        [sys.executable, "-c", EIGHT_DEVICES], env=os.environ | {"JAX_NUM_CPU_DEVICES": "8"},
        capture_output=True, text=True, check=False, timeout=600,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr


SHRUNK = (
    "channels=64", "multipliers=(1,2)", "blocks=(1,1)", "attention=(False,True)",
    "text_channels=64",
)  # fmt: skip
"""base64 with attention at 32 x 32 alone."""


@pytest.mark.slow
@pytest.mark.parametrize("kernel", [True, False])
def test_a_train_step_for_tpus_has_no_array_of_weights(
    kernel: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("libtpu", reason="the TPU compiler is for Linux x86_64")
    network = "stages.base64.network"
    small = [f"{network}.{key}" for key in SHRUNK] + ["stages.base64.train.batch_size=8"]
    stage = make_stage(ConfigDict(load_config("base64", [*small, "text.width=64"])), "base64")
    if not kernel:
        monkeypatch.setattr(tpu_attention, "applies", lambda *_: False)
    mesh = sharding.make_mesh({"data": 2, "fsdp": 2}, topology_devices("v4:2x2x1"))
    program = train_program(stage, mesh, "v4:2x2x1", "quick").compiled.as_text()
    queries, keys = 32 * 32, 32 * 32 + 1 + 128
    weights = rf"\[[\d,]*(?:{queries},(?:{keys}|1280)|(?:{keys}|1280),{queries})\]"
    # The backward pass does not run the forward kernel again.
    forward, backward = (
        len(re.findall(rf"%splash_mha_{name}\S* = .*custom-call", program))
        for name in ("fwd", "dkv")
    )
    assert forward == backward
    assert (forward > 0) == kernel
    assert bool(re.search(weights, program)) != kernel
