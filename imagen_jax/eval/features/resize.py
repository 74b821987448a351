"""Resizing as the protocols of distances demand it, as products with matrices on the device.

A feature network wants images of one size, and how they are brought to it moves a distance by
more than many a result differs from the next (Parmar et al. 2022, arXiv:2104.11222):

  clean       bicubic, a = -0.5, widened when images shrink (no aliasing), in float32: PIL's
              filter on single channels, as clean-fid applies it
  tf1         bilinear with corners aligned at the top left (output y reads input y * in / out),
              never widened: resize_bilinear of TensorFlow 1, in the graph that the first FIDs were
              computed with, and in torch-fidelity
  half-pixel  bilinear between centres of pixels, never widened: pytorch-fid
  8-bit       as clean, rounded to whole values after each of its two passes: PIL on 8-bit
              images, as CLIP was trained

Enlarged by a factor of 4 or more, as 64 px images for these networks, aliasing plays no part, and
what remains is the difference of filters and the shift of `tf1`.
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from imagen_jax.errors import UserError

KINDS = ("clean", "tf1", "half-pixel", "8-bit")


@functools.cache
def resize_matrix(kind: str, before: int, after: int) -> np.ndarray:
    """The matrix [after, before] float32 that resizes one axis of an image.

    Raises:
      UserError: an unknown kind.
    """
    if kind not in KINDS:
        raise UserError(f"unknown way to resize {kind!r}; choices: {', '.join(KINDS)}")
    scale = before / after
    pixel = np.arange(before)
    if kind in ("clean", "8-bit"):
        width = max(scale, 1.0)
        centre = (np.arange(after)[:, None] + 0.5) * scale
        weights = _bicubic((pixel + 0.5 - centre) / width)
        # PIL takes whole pixels within the support only, cut where it rounds.
        first, end = np.floor(centre - 2 * width + 0.5), np.floor(centre + 2 * width + 0.5)
        weights = np.where((pixel >= first) & (pixel < end), weights, 0)
        return (weights / weights.sum(1, keepdims=True)).astype(np.float32)
    place = np.arange(after) * scale
    if kind == "half-pixel":
        place = np.maximum(place + 0.5 * scale - 0.5, 0)
    low = np.minimum(place.astype(int), before - 1)
    high = np.minimum(low + 1, before - 1)
    part = place - low
    matrix = np.zeros((after, before))
    np.add.at(matrix, (np.arange(after), low), 1 - part)
    np.add.at(matrix, (np.arange(after), high), part)
    return matrix.astype(np.float32)


def _bicubic(x: np.ndarray, a: float = -0.5) -> np.ndarray:
    """Keys' kernel."""
    x = np.abs(x)
    near = ((a + 2) * x - (a + 3)) * x * x + 1
    far = ((x - 5) * x + 8) * x * a - 4 * a
    return np.where(x < 1, near, np.where(x < 2, far, 0))


def resize(images: Float[Array, "b h w 3"], size: int, kind: str) -> Float[Array, "b size size 3"]:
    """Images of another size, square and stretched to it where they are not.

    Args:
      images: 0 ... 255.
      size: pixels per side.
      kind: one of KINDS.

    Returns:
      Values 0 ... 255, whole ones if kind is "8-bit".
    """
    _, height, width, _ = images.shape
    precise = functools.partial(jnp.einsum, precision=jax.lax.Precision.HIGHEST)

    def finish(x: jax.Array) -> jax.Array:
        # Only the bicubic kernel overshoots.
        return jnp.clip(jnp.round(x), 0, 255) if kind == "8-bit" else x

    # PIL leaves an axis that has its size as it is.
    if width != size:
        across = resize_matrix(kind, width, size)
        images = finish(precise("bhwc,vw->bhvc", images, across))
    if height != size:
        images = finish(precise("bhwc,uh->buwc", images, resize_matrix(kind, height, size)))
    return jnp.clip(images, 0, 255)
