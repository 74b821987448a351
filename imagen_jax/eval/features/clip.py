"""CLIP (Radford et al. 2021, arXiv:2103.00020): a vision transformer and a text transformer whose
outputs for an image and its caption point the same way.

Both are pre-norm transformers
  h <- h + W_o Attention(LN h);   h <- h + W_2 act(W_1 LN h)
Images: patches by a strided convolution, a class token in front, positions, LN, blocks, LN of the
class token, a projection. Texts: tokens, positions, causal blocks, LN, the state of the end-of-text
token (the largest id), a projection.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from imagen_jax.eval.features.layers import PRECISE

NORM_EPS = 1e-5
MEAN = (0.48145466, 0.4578275, 0.40821073)
STDDEV = (0.26862954, 0.26130258, 0.27577711)
"""Of CLIP's training images, with colours in 0 ... 1."""
ACTIVATIONS = {
    "quick_gelu": lambda x: x * jax.nn.sigmoid(1.702 * x),
    "gelu": lambda x: jax.nn.gelu(x, approximate=False),
}


class Sizes(NamedTuple):
    """Sizes that the shapes of the weights do not determine.

    Attributes:
      vision_heads, text_heads: attention heads of each tower.
      activation: key of ACTIVATIONS.
    """

    vision_heads: int
    text_heads: int
    activation: str


Params = Mapping[str, Any]


def encode_images(params: Params, x: jax.Array, sizes: Sizes) -> jax.Array:
    """Features [b, d], not normalised, of images [b, s, s, 3] that are preprocessed."""
    p = params["vision"]
    kernel = p["patch"]
    patch = kernel.shape[0]
    b, height, width, _ = x.shape
    grid = x.reshape(b, height // patch, patch, width // patch, patch, 3)
    patches = grid.transpose(0, 1, 3, 2, 4, 5).reshape(b, -1, patch * patch * 3)
    h = jnp.matmul(patches, kernel.reshape(-1, kernel.shape[-1]), precision=PRECISE)
    first = jnp.broadcast_to(p["class"], (b, 1, h.shape[-1]))
    h = jnp.concatenate([first, h], 1) + p["position"]
    h = _norm(p["norm_in"], h)
    for block in p["blocks"]:
        h = _block(block, h, sizes.vision_heads, sizes.activation, causal=False)
    return jnp.matmul(_norm(p["norm_out"], h[:, 0]), p["projection"], precision=PRECISE)


def encode_texts(params: Params, ids: jax.Array, sizes: Sizes) -> jax.Array:
    """Features [b, d], not normalised, of token ids [b, l]; those behind the end do not matter."""
    p = params["text"]
    h = p["token"][ids] + p["position"][: ids.shape[1]]
    for block in p["blocks"]:
        h = _block(block, h, sizes.text_heads, sizes.activation, causal=True)
    end = jnp.argmax(ids, axis=1)
    last = jnp.take_along_axis(h, end[:, None, None], axis=1)[:, 0]
    return jnp.matmul(_norm(p["norm_out"], last), p["projection"], precision=PRECISE)


def preprocess(x: jax.Array) -> jax.Array:
    """Images 0 ... 255 as the network takes them."""
    return (x / 255 - jnp.array(MEAN, x.dtype)) / jnp.array(STDDEV, x.dtype)


def _block(p: Params, h: jax.Array, heads: int, activation: str, causal: bool) -> jax.Array:
    y = _norm(p["norm_attention"], h)
    b, length, width = y.shape
    q, k, v = (
        _dense(p[name], y).reshape(b, length, heads, width // heads) for name in ("q", "k", "v")
    )
    logits = jnp.einsum("bqhc,bkhc->bhqk", q, k, precision=PRECISE) / (width // heads) ** 0.5
    if causal:
        logits = jnp.where(np.tri(length, dtype=bool), logits, -jnp.inf)
    attended = jnp.einsum("bhqk,bkhc->bqhc", jax.nn.softmax(logits), v, precision=PRECISE)
    h = h + _dense(p["out"], attended.reshape(b, length, width))
    y = ACTIVATIONS[activation](_dense(p["wi"], _norm(p["norm_mlp"], h)))
    return h + _dense(p["wo"], y)


def _dense(p: Any, x: jax.Array) -> jax.Array:
    kernel, bias = p
    return jnp.matmul(x, kernel, precision=PRECISE) + bias


def _norm(p: Any, x: jax.Array) -> jax.Array:
    scale, bias = p
    centred = x - jnp.mean(x, -1, keepdims=True)
    variance = jnp.mean(centred**2, -1, keepdims=True)
    return centred * jax.lax.rsqrt(variance + NORM_EPS) * scale + bias
