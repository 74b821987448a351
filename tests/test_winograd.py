"""Convolutions by Winograd's filtering compute what direct ones do, and only where they should."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from imagen_jax import chips
from imagen_jax.flops import flops_of
from imagen_jax.models.layers import Conv
from imagen_jax.native import compiling, winograd

pytestmark = pytest.mark.skipif(
    not any(map(shutil.which, compiling.COMPILERS)), reason="needs a C++ compiler"
)


def direct(x: jax.Array, kernel: jax.Array) -> jax.Array:
    return jax.lax.conv_general_dilated(
        x, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
    )


def image_and_kernel(*shape: int, features: int, dtype: Any = np.float32) -> Any:
    rng = np.random.default_rng(0)
    kernel = rng.standard_normal((3, 3, shape[-1], features)) / (3 * shape[-1] ** 0.5)
    return rng.standard_normal(shape).astype(dtype), kernel.astype(dtype)


def value_and_gradients(convolve: Any, x: Any, kernel: Any, grad: Any) -> dict[str, Any]:
    value, back = jax.vjp(convolve, x, kernel)
    found = map(np.asarray, (value, *back(grad)))
    return dict(zip(("value", "of x", "of kernel"), found, strict=True))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("shape", "features"),
    [  # on few cores, each thread takes groups of tiles of its own of the second and third
        ((2, 16, 16, 48), 32),
        ((9, 32, 64, 16), 48),
        ((4, 64, 48, 96), 16),
        ((1, 4, 12, 16), 80),
        ((3, 8, 4, 32), 16),
        # and of channels, heights and widths that fill no register and no tile
        ((2, 12, 16, 72), 100),
        ((3, 9, 6, 24), 8),
        ((9, 33, 31, 40), 17),
        ((1, 5, 3, 3), 1),
    ],
)
def test_errors_are_rounding(shape: tuple[int, ...], features: int) -> None:
    x, kernel = image_and_kernel(*shape, features=features)
    grad, _ = image_and_kernel(*shape[:3], features, features=1)
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
    return winograd.applies(*map(jnp.asarray, image_and_kernel(
        *shape, features=features, dtype=dtype)))  # fmt: skip


def test_the_kernel_takes_float32_of_enough_channels() -> None:
    assert applies(4, 16, 16, 32)
    assert applies(1, 8, 8, 16, features=48)
    assert applies(4, 18, 15, 24, features=100)
    assert not applies(4, 16, 16, 32, features=3)
    assert not applies(4, 16, 16, 3)
    assert not applies(4, 4, 8, 32)
    assert not applies(0, 16, 16, 32)
    assert not applies(4, 16, 16, 32, dtype=jnp.bfloat16)
    with jax.sharding.use_abstract_mesh(jax.sharding.AbstractMesh((2,), ("data",))):
        assert not applies(4, 16, 16, 32)


@pytest.mark.usefixtures("unchecked_shapes")
def test_bad_shapes_are_refused() -> None:
    _, kernel = image_and_kernel(1, 8, 8, 24, features=16)
    with pytest.raises(Exception, match="as many channels as the kernel takes"):
        winograd.convolve(np.ones((1, 8, 8, 32), np.float32), kernel).block_until_ready()


def test_outputs_do_not_depend_on_the_batch() -> None:
    x, kernel = image_and_kernel(64, 32, 32, 16, features=32)
    convolve = jax.jit(winograd.convolve)
    np.testing.assert_array_equal(convolve(x, kernel)[5:6], convolve(x[5:6], kernel))


def test_vmap_of_the_kernel() -> None:
    x, kernel = image_and_kernel(3, 2, 8, 8, features=16)
    x = np.repeat(x[..., None], 16, axis=-1)
    kernel = np.broadcast_to(kernel[:, :, :1], (3, 3, 16, 16))
    found = jax.vmap(winograd.convolve, (0, None))(x, kernel)
    for one, of in zip(x, found, strict=True):
        np.testing.assert_array_equal(winograd.convolve(one, kernel), of)


def test_without_a_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", str(Path(sys.executable).with_name("no-such-compiler")))
    compiling.register.cache_clear()
    with pytest.warns(UserWarning, match="CXX"):
        assert not applies(4, 16, 16, 32)
    compiling.register.cache_clear()


def test_layer_uses_it() -> None:
    x, kernel = image_and_kernel(4, 16, 16, 32, features=32)
    layer = Conv(32, jnp.float32)
    params = {"params": {"conv": {"kernel": kernel, "bias": np.zeros(32, np.float32)}}}
    apply = lambda x: layer.apply(params, x)  # noqa: E731
    assert "conv_general_dilated" not in str(jax.make_jaxpr(apply)(x))
    np.testing.assert_allclose(apply(x), direct(x, kernel), atol=1e-5)
    with jax.sharding.use_abstract_mesh(chips.no_platform()):
        assert "conv_general_dilated" in str(jax.make_jaxpr(apply)(x))
    pairs = (3 * 16 - 2) ** 2  # of an output and a tap that meet no padding
    assert flops_of(apply, x) == 2 * 4 * 32 * 32 * pairs
