"""Convolutions by Winograd's filtering compute what direct ones do, and only where they should."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from imagen_jax import sharding
from imagen_jax.flops import flops_of
from imagen_jax.models import winograd
from imagen_jax.models.layers import Conv


def direct(x: jax.Array, kernel: jax.Array) -> jax.Array:
    return jax.lax.conv_general_dilated(
        x, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
    )


def picture_and_kernel(*shape: int, features: int, dtype: Any = np.float32) -> Any:
    rng = np.random.default_rng(0)
    kernel = rng.standard_normal((3, 3, shape[-1], features)) / (3 * shape[-1] ** 0.5)
    return rng.standard_normal(shape).astype(dtype), kernel.astype(dtype)


def value_and_gradients(convolve: Any, x: Any, kernel: Any, grad: Any) -> dict[str, Any]:
    value, back = jax.vjp(convolve, x, kernel)
    found = map(np.asarray, (value, *back(grad)))
    return dict(zip(("value", "of x", "of kernel"), found, strict=True))


@pytest.mark.parametrize("shape", [(2, 16, 16, 48), (1, 4, 12, 5), (3, 8, 4, 1)])
def test_errors_are_rounding(shape: tuple[int, ...]) -> None:
    x, kernel = picture_and_kernel(*shape, features=7)
    grad, _ = picture_and_kernel(*shape[:3], 7, features=1)
    with jax.enable_x64(True):
        exact = value_and_gradients(direct, *(a.astype(np.float64) for a in (x, kernel, grad)))
    plain = value_and_gradients(direct, x, kernel, grad)
    found = value_and_gradients(winograd.convolve, x, kernel, grad)
    for name, truth in exact.items():
        error, usual = (
            np.sqrt(np.square(of[name] - truth).mean()) / np.sqrt(np.square(truth).mean())
            for of in (found, plain)
        )
        assert error < 2e-6, name
        assert error < 10 * max(usual, 2**-24), name


def test_transforms_are_exact_without_rounding() -> None:
    rng = np.random.default_rng(0)
    d, g = rng.standard_normal(6), rng.standard_normal(3)
    filtered = winograd.A @ ((winograd.G @ g) * (winograd.B @ d))
    np.testing.assert_allclose(filtered, np.correlate(d, g), rtol=1e-12, atol=1e-13)


def applies(*shape: int, features: int = 32, dtype: Any = np.float32) -> bool:
    return winograd.applies(*map(jnp.asarray, picture_and_kernel(
        *shape, features=features, dtype=dtype)))  # fmt: skip


def test_where_it_applies() -> None:
    assert applies(4, 16, 16, 32)
    assert applies(1, 32, 32, 32)
    assert not applies(4, 16, 16, 31)
    assert not applies(4, 16, 16, 32, features=3)
    assert not applies(4, 18, 16, 32)
    assert not applies(3, 16, 16, 32)
    assert not applies(1, 256, 256, 32)
    assert not applies(4, 16, 16, 32, dtype=jnp.bfloat16)


def test_layer_uses_it() -> None:
    x, kernel = picture_and_kernel(4, 16, 16, 32, features=32)
    layer = Conv(32, jnp.float32)
    params = {"params": {"conv": {"kernel": kernel, "bias": np.zeros(32, np.float32)}}}
    apply = lambda x: layer.apply(params, x)  # noqa: E731
    assert "conv_general_dilated" not in str(jax.make_jaxpr(apply)(x))
    np.testing.assert_allclose(apply(x), direct(x, kernel), atol=1e-5)
    with jax.sharding.use_abstract_mesh(sharding.no_platform()):
        assert "conv_general_dilated" in str(jax.make_jaxpr(apply)(x))
    pairs = (3 * 16 - 2) ** 2  # of an output and a tap that meet no padding
    assert flops_of(apply, x) == 2 * 4 * 32 * 32 * pairs
