"""Attention of the U-Nets: image to image, image to text, and pooling of text."""

from __future__ import annotations

from typing import Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Real

from imagen_jax import chips
from imagen_jax.errors import UserError
from imagen_jax.models import layers, tpu_attention
from imagen_jax.models.base import cached
from imagen_jax.native import attention as native_attention


def num_heads(channels: int, head_channels: int, of_what: str) -> int:
    """Number of attention heads that `channels` are divided into.

    Raises:
      UserError: they cannot be divided into heads of `head_channels`.
    """
    if min(channels, head_channels) < 1 or channels % head_channels:
        raise UserError(
            f"{of_what} of {channels} channels cannot be divided into attention heads of "
            f"{head_channels}; head_channels must divide all channels that attend"
        )
    return channels // head_channels


def attend(
    q: Float[Array, "b l n k"],
    k: Float[Array, "b m n k"],
    v: Float[Array, "b m n k"],
    visible: Bool[Array, "b m"] | None = None,
) -> Float[Array, "b l n k"]:
    """Softmax attention of n heads, with float32 logits; `visible` says which keys are seen, of
    each example at least one."""
    for platform, kernel in (("cpu", native_attention), ("tpu", tpu_attention)):
        if chips.platform() == platform and kernel.applies(q, k, v):
            return kernel.attend(q, k, v, visible)
    mask = None if visible is None else visible[:, None, None, :]
    return jax.nn.dot_product_attention(q, k, v, mask=mask)


class TextContext(nn.Module):
    """Projects prepared text tokens to the keys and values of one attention layer.

    A learned null token, always visible, stands in front: with the text dropped (mask all False)
    attention to text stays defined, and the null token is what it sees.

    Attributes:
      qk_norm: see ImageAttention.
    """

    heads: int
    head_channels: int
    dtype: jnp.dtype
    qk_norm: bool = False

    @nn.compact
    def __call__(
        self, text: Float[Array, "b l d"], mask: Bool[Array, "b l"]
    ) -> tuple[Float[Array, "b m n k"], Float[Array, "b m n k"], Bool[Array, "b m"]]:
        keys, values = cached(self, "keys_values", lambda: self.keys_values(text))
        visible = jnp.concatenate([jnp.ones((text.shape[0], 1), bool), mask], axis=1)
        return keys, values, visible

    def keys_values(
        self, text: Float[Array, "b l d"]
    ) -> tuple[Float[Array, "b m n k"], Float[Array, "b m n k"]]:
        """Keys and values of the null token and all tokens, within the compact method."""
        b = text.shape[0]
        width = self.heads * self.head_channels
        tokens = layers.LayerNorm(self.dtype, name="norm")(text)
        keys_values = layers.Dense(2 * width, self.dtype, use_bias=False, name="kv")(tokens)
        null = self.param(
            "null", layers.partitioned(nn.initializers.normal(0.02), "vector"), (2 * width,)
        )
        null = jnp.broadcast_to(null.astype(self.dtype), (b, 1, 2 * width))
        keys_values = jnp.concatenate([null, keys_values], axis=1)
        k, v = (
            x.reshape(b, -1, self.heads, self.head_channels)
            for x in jnp.split(keys_values, 2, axis=-1)
        )
        return layers.RMSNorm(self.dtype, name="k_norm")(k) if self.qk_norm else k, v


def coordinates(height: int, width: int) -> Float[Array, "n 16"]:
    """Sines and cosines of the places of n = height * width positions in the image.

    Along each side the angle grows to pi/2, pi, 2 pi and 4 pi, whatever the resolution.
    """
    y, x = jnp.meshgrid(
        *((jnp.arange(n) + 0.5) / n for n in (height, width)), indexing="ij"
    )  # centres of pixels, in [0, 1]
    angles = jnp.stack([y, x], axis=-1).reshape(-1, 2, 1) * (jnp.pi / 2) * 2.0 ** jnp.arange(4)
    return jnp.concatenate([jnp.sin(angles), jnp.cos(angles)], axis=-1).reshape(-1, 16)


class ImageAttention(nn.Module):
    """Residual attention of an image's positions to themselves and to text.

    With both, text keys and values are concatenated to those of the image and one softmax runs over
    all of them (Imagen, section 2.5). Without `to_image` this is cross-attention only, as in the
    1024 stage.

    Attributes:
      head_channels: channels of a head; the input's channels must be a multiple.
      to_image: attend to the image's own positions.
      to_text: attend to text tokens.
      positions: tell each position where in the image it lies. Not in the paper: networks learn
        it from the borders of convolutions, which takes long where noise hides all else.
      qk_norm: root-mean-square norm of every head's queries and keys, which bounds the logits
        (Dehghani et al. 2023, arXiv:2302.05442). Not in the paper.
    """

    head_channels: int
    to_image: bool
    to_text: bool
    dtype: jnp.dtype
    positions: bool = False
    qk_norm: bool = False

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "b h w c"],
        text: Float[Array, "b l d"],
        mask: Bool[Array, "b l"],
    ) -> Float[Array, "b h w c"]:
        b, h, w, c = x.shape
        heads = num_heads(c, self.head_channels, "an image")
        tokens = layers.GroupNorm(self.dtype, name="norm")(x).reshape(b, h * w, c)
        if self.positions:
            where = coordinates(h, w).astype(self.dtype)
            tokens += layers.Dense(c, self.dtype, use_bias=False, name="positions")(where)
        shape = (b, -1, heads, self.head_channels)
        q = layers.Dense(c, self.dtype, use_bias=False, name="q")(tokens).reshape(shape)
        if self.qk_norm:
            q = layers.RMSNorm(self.dtype, name="q_norm")(q)
        keys, values, visible = [], [], []
        if self.to_image:
            kv = layers.Dense(2 * c, self.dtype, use_bias=False, name="kv")(tokens)
            k, v = (x.reshape(shape) for x in jnp.split(kv, 2, axis=-1))
            keys.append(layers.RMSNorm(self.dtype, name="k_norm")(k) if self.qk_norm else k)
            values.append(v)
            visible.append(jnp.ones((b, h * w), bool))
        if self.to_text:
            context = TextContext(heads, self.head_channels, self.dtype, self.qk_norm, name="text")
            k, v, seen = context(text, mask)
            keys.append(k)
            values.append(v)
            visible.append(seen)
        out = attend(
            q,
            jnp.concatenate(keys, axis=1),
            jnp.concatenate(values, axis=1),
            jnp.concatenate(visible, axis=1) if self.to_text else None,
        )
        out = layers.Dense(c, self.dtype, use_bias=False, name="out")(out.reshape(b, h * w, c))
        return layers.residual_sum(x, out.reshape(b, h, w, c))


def rotate_by_position(
    x: Float[Array, "b l n k"], positions: Real[Array, " l"]
) -> Float[Array, "b l n k"]:
    """Rotary position embedding (Su et al. 2021, RoFormer, arXiv:2104.09864, section 3.2.2).

    Turns pairs of channels by angles proportional to the token's position, so that the product of a
    rotated query and a rotated key depends on how far apart they stand. Wavelengths run from 6 to
    600 tokens (base 100 in place of RoFormer's 10,000): captions are at most a few hundred long.

    Args:
      x: queries or keys; an even number of channels a head.
      positions: positions of the tokens.

    Raises:
      UserError: an odd number of channels.
    """
    channels = x.shape[3]
    if channels % 2:
        raise UserError(
            f"heads of {channels} channels cannot be rotated by position; head_channels must "
            "be even"
        )
    half = channels // 2
    angles = positions[:, None] * 100.0 ** (-jnp.arange(half) / half)
    cos, sin = jnp.cos(angles)[:, None], jnp.sin(angles)[:, None]
    first, second = jnp.split(x.astype(jnp.float32), 2, axis=-1)
    rotated = [first * cos - second * sin, first * sin + second * cos]
    return jnp.concatenate(rotated, axis=-1).astype(x.dtype)


class TextBlock(nn.Module):
    """One pre-norm transformer layer over text tokens with rotary positions, width preserved."""

    head_channels: int
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x: Float[Array, "b l d"], mask: Bool[Array, "b l"]) -> Float[Array, "b l d"]:
        b, length, d = x.shape
        heads = num_heads(d, self.head_channels, "text")
        y = layers.LayerNorm(self.dtype, name="attention_norm")(x)
        qkv = layers.Dense(3 * d, self.dtype, use_bias=False, name="qkv")(y)
        q, k, v = (
            z.reshape(b, length, heads, self.head_channels) for z in jnp.split(qkv, 3, axis=-1)
        )
        # Dropped text has no visible token at all; let such rows see everything so that softmax
        # stays finite. Nothing downstream reads them, since their mask stays False.
        visible = mask | ~mask.any(axis=1, keepdims=True)
        positions = jnp.arange(length)
        q, k = rotate_by_position(q, positions), rotate_by_position(k, positions)
        y = attend(q, k, v, visible)
        x = x + layers.Dense(d, self.dtype, use_bias=False, name="out")(y.reshape(b, length, d))
        y = layers.LayerNorm(self.dtype, name="mlp_norm")(x)
        y = nn.gelu(layers.Dense(4 * d, self.dtype, name="mlp_in")(y))
        return x + layers.Dense(d, self.dtype, name="mlp_out")(y)


TextPool = Literal["attention", "mean"]
"""Ways to pool text to the vector that the conditioning vector contains."""


class MeanPool(nn.Module):
    """Pools text tokens to one vector: a projection of their mean, which is 0 without text."""

    features: int
    dtype: jnp.dtype

    @nn.compact
    def __call__(
        self, text: Float[Array, "b l d"], mask: Bool[Array, "b l"]
    ) -> Float[Array, "b f"]:
        tokens = jnp.where(mask[..., None], layers.LayerNorm(self.dtype, name="norm")(text), 0)
        mean = tokens.sum(axis=1) / jnp.maximum(mask.sum(axis=1, keepdims=True), 1)
        return layers.Dense(self.features, self.dtype, name="out")(mean.astype(self.dtype))


class AttentionPool(nn.Module):
    """Pools text tokens to one vector: a learned query attends to them and to a null token."""

    head_channels: int
    features: int
    dtype: jnp.dtype

    @nn.compact
    def __call__(
        self, text: Float[Array, "b l d"], mask: Bool[Array, "b l"]
    ) -> Float[Array, "b f"]:
        b, _, d = text.shape
        heads = num_heads(d, self.head_channels, "text")
        k, v, visible = TextContext(heads, self.head_channels, self.dtype, name="text")(text, mask)
        query = self.param("query", layers.partitioned(nn.initializers.normal(1.0), "vector"), (d,))
        q = jnp.broadcast_to(
            query.astype(self.dtype).reshape(1, 1, heads, self.head_channels),
            (b, 1, heads, self.head_channels),
        )
        pooled = attend(q, k, v, visible)
        return layers.Dense(self.features, self.dtype, name="out")(pooled.reshape(b, -1))
