"""3x3 convolutions in float32 on CPUs by Winograd's minimal filtering (Lavin & Gray 2016).

Tiles of 4 x 4 outputs and the kernel are transformed, multiplied at 36 points and transformed back:
36 products a tile in place of 144, in matrix products, which XLA's CPU backend also runs nearer to
the machine's peak than its convolutions. Rounding errors grow to about five times those of the
direct sum (tests/test_winograd.py).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import jax.export
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from imagen_jax import sharding

OUTPUTS, TAPS = 4, 3
"""Of one tile, along an axis."""
INPUTS = OUTPUTS + TAPS - 1
POINTS = (0.0, 2 / 3, -2 / 3, 3 / 2, -3 / 2)
"""Where the polynomials of a tile and of the kernel are multiplied, beside infinity. Reciprocals
keep the numbers in the transforms small and with them the rounding errors (Barabasz et al. 2020,
"Error analysis and improving the accuracy of Winograd convolution for deep neural networks")."""
MIN_TILES = 64
"""Tiles of a batch from which on it is faster: each of the 36 products has as many rows."""
MIN_CHANNELS = 32
"""In and out, from which on it is faster: with fewer, transforms take what products save."""
MIN_CHANNELS_UNCACHED = 96
"""The same where a picture is larger than CACHED."""
CACHED = 6 * 2**20
"""Bytes of a picture whose transformed tiles, 2.25 times as many, still fit caches."""


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
    """Whether convolve takes this picture [b, h, w, in] and kernel [3, 3, in, out], and is faster
    on a CPU."""
    batch, height, width, _ = x.shape
    if jax.export.is_symbolic_dim(batch):  # in a program that is exported for any
        return False
    pixels = batch * height * width
    *window, channels, features = kernel.shape
    cached = 4 * pixels * max(channels, features) <= CACHED
    return (
        not sharding.divides_pictures()
        and window == [TAPS, TAPS]
        and x.dtype == kernel.dtype == jnp.float32
        and not (height % OUTPUTS or width % OUTPUTS)
        and pixels >= MIN_TILES * OUTPUTS**2
        and min(channels, features) >= (MIN_CHANNELS if cached else MIN_CHANNELS_UNCACHED)
    )


@jax.custom_vjp
def convolve(
    x: Float[Array, "b h w c"], kernel: Float[Array, "3 3 c d"]
) -> Float[Array, "b h w d"]:
    """3x3 convolution with zero padding; height and width are multiples of 4."""
    return _filter(x, kernel, "cd")


def _filter(x: jax.Array, kernel: jax.Array, channels: str) -> jax.Array:
    """The convolution with a kernel whose last axes are `channels`: cd, in and out, or dc."""
    rows = _apply(G, list(kernel))
    taps = _apply(G, [rows[:, i] for i in range(TAPS)])  # [6 (width), 6 (height), ...]
    product = jnp.einsum(f"jithwc,ji{channels}->jithwd", _transformed(x), taps)
    columns = _apply(A, list(product))
    tiles = _apply(A, [columns[:, i] for i in range(INPUTS)])
    return tiles.transpose(2, 3, 0, 4, 1, 5).reshape(*x.shape[:3], -1)


def _forward(x: jax.Array, kernel: jax.Array) -> tuple[jax.Array, Any]:
    return convolve(x, kernel), (x, kernel)


def _backward(residuals: Any, grad: jax.Array) -> tuple[jax.Array, jax.Array]:
    x, kernel = residuals
    return _filter(grad, kernel[::-1, ::-1], "dc"), _kernel_gradient(x, grad)


convolve.defvjp(_forward, _backward)


def _kernel_gradient(x: jax.Array, grad: jax.Array) -> jax.Array:
    rows = _apply(A.T, [grad[:, i::OUTPUTS] for i in range(OUTPUTS)])
    product = _apply(A.T, [rows[:, :, :, i::OUTPUTS] for i in range(OUTPUTS)])
    # As matrices: contracted over several axes, XLA copies both with those axes in another order.
    matrices = (y.reshape(INPUTS, INPUTS, -1, y.shape[-1]) for y in (_transformed(x), product))
    taps = jnp.einsum("jinc,jind->jicd", *matrices)
    columns = _apply(G.T, list(taps))  # [3 (width), 6 (height), c, d]
    return _apply(G.T, [columns[:, i] for i in range(INPUTS)])


# A transformed picture is [points of the width, points of the height, b, h / 4, w / 4, c]. Each
# transform of an axis is a barrier of its own: fused with the next, it is computed many times.


def _apply(matrix: np.ndarray, terms: Sequence[jax.Array]) -> jax.Array:
    """matrix [n, m] times a sequence of m arrays, [n, ...], as sums: products are slower."""
    rows = [sum(float(c) * term for c, term in zip(row, terms, strict=True) if c) for row in matrix]
    return jax.lax.optimization_barrier(jnp.stack(rows))


def _transformed(x: jax.Array) -> jax.Array:
    _, height, width, _ = x.shape
    padded = jax.lax.optimization_barrier(jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0))))

    def every_fourth(x: jax.Array, axis: int, size: int) -> list[jax.Array]:
        return [jax.lax.slice_in_dim(x, i, i + size - OUTPUTS + 1, OUTPUTS, axis)
                for i in range(INPUTS)]  # fmt: skip

    rows = _apply(B, every_fourth(padded, 1, height))
    return _apply(B, every_fourth(rows, 3, width))
