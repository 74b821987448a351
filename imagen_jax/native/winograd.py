"""3x3 convolutions in float32 on CPUs by Winograd's minimal filtering (Lavin & Gray 2016).

Tiles of 4 x 4 outputs and the kernel are transformed, multiplied at 36 points and transformed back,
by winograd.cc: 36 products a tile in place of 144. Rounding errors grow to about
five times those of the direct sum (tests/test_winograd.py).
"""

from __future__ import annotations

from typing import Any

import jax
import jax.export
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from imagen_jax.native import devices
from imagen_jax.native.compiling import register

OUTPUTS, TAPS = 4, 3
"""Of one tile, along an axis."""
INPUTS = OUTPUTS + TAPS - 1
POINTS = (0.0, 2 / 3, -2 / 3, 3 / 2, -3 / 2)
"""Points where the polynomials of a tile and of the kernel are multiplied, beside infinity.
Reciprocals keep the numbers in the transforms small and with them the rounding errors
(Barabasz et al. 2020, "Error analysis and improving the accuracy of Winograd convolution for deep
neural networks")."""
MIN_CHANNELS = 8
"""In and out, from which on it is faster: half of the numbers in a vector register of AVX-512."""
MIN_PIXELS = 64
"""Of an image, from which on it is faster."""


def _transforms() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Toom and Cook's matrices B [INPUTS, INPUTS], G [INPUTS, TAPS] and A [OUTPUTS, INPUTS], such
    that A ((G g) * (B d)) is the convolution of inputs d with taps g, without a flip."""
    b, g = np.zeros((INPUTS, INPUTS)), np.zeros((INPUTS, TAPS))
    for i, point in enumerate(POINTS):
        others = np.delete(POINTS, i)
        b[i, :-1] = np.poly(others)[::-1]  # coefficients of the product of (x - other)
        g[i] = point ** np.arange(TAPS) / np.prod(point - others)
    b[-1], g[-1, -1] = np.poly(POINTS)[::-1], 1  # infinity
    a = np.vander([*POINTS, 0], OUTPUTS, increasing=True).T
    a[:, -1] = np.arange(OUTPUTS) == OUTPUTS - 1
    return b, g, a


B, G, A = _transforms()


def applies(x: jax.Array, kernel: jax.Array) -> bool:
    """True if convolve takes these images [b, h, w, in] and this kernel [3, 3, in, out], and is
    faster on CPUs."""
    batch, height, width, _ = x.shape
    *window, channels, features = kernel.shape
    return (
        window == [TAPS, TAPS]
        and x.dtype == kernel.dtype == jnp.float32
        and min(channels, features) >= MIN_CHANNELS
        and height * width >= MIN_PIXELS
        and not jax.export.is_symbolic_dim(batch)  # in a program that runs elsewhere
        and batch > 0
        and devices.can_divide(batch)
        and _registered()
    )


def convolve(
    x: Float[Array, "b h w c"], kernel: Float[Array, "3 3 c d"]
) -> Float[Array, "b h w d"]:
    """3x3 convolution with zero padding, of what applies."""
    return devices.by_example(_convolve, x, whole=(kernel,))


@jax.custom_vjp
def _convolve(x: jax.Array, kernel: jax.Array) -> jax.Array:
    return _call("winograd_convolve", (*x.shape[:3], kernel.shape[3]), x, kernel)


def _forward(x: jax.Array, kernel: jax.Array) -> tuple[jax.Array, Any]:
    return _convolve(x, kernel), (x, kernel)


def _backward(residuals: Any, grad: jax.Array) -> tuple[jax.Array, jax.Array]:
    x, kernel = residuals
    return (
        _call("winograd_convolve_transposed", x.shape, grad, kernel),
        _call("winograd_kernel_gradient", kernel.shape, x, grad),
    )


_convolve.defvjp(_forward, _backward)


def _call(function: str, shape: tuple[int, ...], *args: jax.Array) -> jax.Array:
    if not _registered():
        raise RuntimeError("no C++ compiler: see applies")
    result = jax.ShapeDtypeStruct(shape, jnp.float32)
    return jax.ffi.ffi_call(function, result, vmap_method="sequential")(*args)


def _registered() -> bool:
    functions = ("winograd_convolve", "winograd_convolve_transposed", "winograd_kernel_gradient")
    matrices = {"WINOGRAD_A": _braces(A), "WINOGRAD_B": _braces(B), "WINOGRAD_G": _braces(G)}
    return register("winograd.cc", functions, **matrices)


def _braces(matrix: np.ndarray) -> str:
    """A matrix as C++ writes it."""
    rows = (", ".join(f"{np.float32(value)!s}f" for value in row) for row in matrix)
    return "{" + ", ".join(f"{{{row}}}" for row in rows) + "}"
