"""Attention as a CPU computes it is attention, to rounding."""

from __future__ import annotations

import shutil
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from imagen_jax.models.attention import attend
from imagen_jax.native import attention, compiling

pytestmark = pytest.mark.skipif(
    not any(map(shutil.which, compiling.COMPILERS)), reason="needs a C++ compiler"
)


def heads(b: int, queries: int, keys: int, n: int, channels: int, size: float = 1) -> list[Any]:
    """Queries, keys, values, and a gradient of the result."""
    rng = np.random.default_rng(0)
    lengths = (queries, keys, keys, queries)
    found = [rng.standard_normal((b, length, n, channels)) for length in lengths]
    return [(x * size).astype(np.float32) for x in found]


def seen(b: int, keys: int) -> np.ndarray:
    return np.random.default_rng(1).random((b, keys)) < 0.7


def value_and_gradients(attention: Any, q: Any, k: Any, v: Any, grad: Any) -> dict[str, Any]:
    value, back = jax.vjp(attention, q, k, v)
    found = map(np.asarray, (value, *back(grad)))
    return dict(zip(("value", "of q", "of k", "of v"), found, strict=True))


@pytest.mark.slow
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize(
    ("shape", "size"),
    [
        ((2, 5, 7, 3, 4), 1),
        ((1, 200, 100, 1, 16), 1),  # one head, whose queries threads divide
        ((4, 130, 70, 3, 32), 1),  # heads enough for all threads
        ((1, 64, 64, 2, 48), 6),  # logits of some hundred
        ((2, 1, 33, 1, 64), 1),
    ],
)
def test_errors_are_rounding(shape: Any, size: float, masked: bool) -> None:
    inputs = heads(*shape, size)
    mask = seen(shape[0], shape[2]) if masked else None
    plain = lambda q, k, v: jax.nn.dot_product_attention(  # noqa: E731
        q, k, v, mask=None if mask is None else mask[:, None, None]
    )
    with jax.enable_x64(True):
        exact = value_and_gradients(plain, *(x.astype(np.float64) for x in inputs))
    usual = value_and_gradients(plain, *inputs)
    found = value_and_gradients(lambda q, k, v: attend(q, k, v, mask), *inputs)
    for name, truth in exact.items():
        of_found, of_usual = (np.abs(of[name] - truth).max() for of in (found, usual))
        assert of_found < 10 * max(of_usual, 2**-24 * np.abs(truth).max()), name
        assert of_found < 3e-5 * np.abs(truth).max(), name


def test_masked_keys_do_not_matter() -> None:
    q, k, v, grad = heads(2, 70, 40, 2, 16)
    mask = seen(2, 40)
    masked = lambda q, k, v: attend(q, k, v, mask)  # noqa: E731
    found = value_and_gradients(masked, q, k, v, grad)
    other = np.where(mask[..., None, None], (k, v), 1e3).astype(np.float32)
    np.testing.assert_array_equal(masked(q, *other), found["value"])
    assert not found["of k"][~mask].any()
    assert not found["of v"][~mask].any()


@pytest.mark.usefixtures("unchecked_shapes")
def test_bad_shapes_are_refused() -> None:
    q, k, v, _ = heads(2, 6, 5, 2, 16)
    for keys, values in ((k[:1], v[:1]), (k[:, :, :1], v[:, :, :1]), (k[..., :8], v[..., :8])):
        with pytest.raises(Exception, match="the queries' batch, heads and channels"):
            attend(q, keys, values).block_until_ready()
    with pytest.raises(Exception, match="of one shape"):
        attend(q, k, v[..., :8]).block_until_ready()


def test_nan_spreads_as_in_plain_attention() -> None:
    q, k, v, _ = heads(1, 70, 40, 1, 16)
    for changed in (q, k, v):
        kept = changed[0, 13, 0, 3]
        changed[0, 13, 0, 3] = np.nan
        lost = np.isnan(attend(q, k, v))[0, :, 0]
        changed[0, 13, 0, 3] = kept
        rows = np.arange(70) == 13 if changed is q else np.ones(70, bool)
        columns = np.arange(16) == 3 if changed is v else np.ones(16, bool)
        np.testing.assert_array_equal(lost, rows[:, None] & columns)


def test_outputs_do_not_depend_on_the_batch() -> None:
    q, k, v, _ = heads(9, 100, 50, 2, 16)
    all_of_them = jax.jit(attend)(q, k, v)
    np.testing.assert_array_equal(all_of_them[5:6], jax.jit(attend)(q[5:6], k[5:6], v[5:6]))


def test_vmap_of_the_kernel() -> None:
    q, k, v, _ = (np.stack([x, -x]) for x in heads(1, 9, 8, 2, 16))
    found = jax.vmap(attention.attend)(q, k, v)
    np.testing.assert_array_equal(found[1], attention.attend(q[1], k[1], v[1]))


def test_the_kernel_takes_float32_on_one_device() -> None:
    def kernel(inputs: Any) -> bool:
        return "attention_forward" in str(jax.make_jaxpr(attend)(*inputs))

    inputs = heads(1, 9, 8, 2, 16)[:3]
    assert kernel(inputs)
    assert not kernel([jnp.asarray(x, jnp.bfloat16) for x in inputs])
    with jax.sharding.use_abstract_mesh(jax.sharding.AbstractMesh((2,), ("data",))):
        assert not kernel(inputs)
