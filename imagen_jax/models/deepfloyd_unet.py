"""The U-Net of DeepFloyd IF, stages I and II, which reads the public weights as they are.

A pixel-space U-Net after Imagen (arXiv:2205.11487) and ADM (Dhariwal & Nichol 2021), as
`UNet2DConditionModel` of Hugging Face's diffusers has it. Next to UNet:
  gelu takes the place of swish, and every GroupNorm has 32 groups;
  channels change in the first block of a resolution, not in the one that resamples;
  attention has biases, and normalises the text once more over channels and tokens;
  all 77 token states are read, padding too; unconditional is the empty caption, not no caption;
  the network knows the noise level as one of 1000 steps, and also predicts the variance.
"""

from __future__ import annotations

import functools
import math
from typing import Literal

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from imagen_jax.errors import UserError
from imagen_jax.models import layers
from imagen_jax.models.attention import attend, num_heads
from imagen_jax.models.base import BaseNetwork, cached
from imagen_jax.models.blocks import ResBlock
from imagen_jax.models.stack import Remat, rematerialised
from imagen_jax.sharding import constrain
from imagen_jax.typing import Conditioning, TextEmbedding

STEPS = 1000
OFFSET = 0.008
gelu = functools.partial(nn.gelu, approximate=False)


def timestep(logsnr: Float[Array, " b"]) -> Float[Array, " b"]:
    """The step, a whole number in 0 ... 999, whose noise level is nearest.

    Inverts alpha^2 = f(i + 1) / f(0), f(i) = cos^2(pi / 2 (i / 1000 + 0.008) / 1.008), of Nichol &
    Dhariwal 2021, equation (17). IF has seen whole steps alone, hence the rounding.
    """
    first = 0.5 * math.pi * OFFSET / (1 + OFFSET)
    signal = jnp.exp(0.5 * nn.log_sigmoid(logsnr))
    # 1 - alpha^2 cos^2(first), without cancellation near the clean end.
    noise = jnp.sqrt(nn.sigmoid(-logsnr) + (signal * math.sin(first)) ** 2)
    angle = jnp.arctan2(noise, signal * math.cos(first))
    time = angle * (1 + OFFSET) / (0.5 * math.pi) - OFFSET
    return jnp.clip(jnp.round(time * STEPS - 1), 0, STEPS - 1)


def aug_step(aug_level: Float[Array, " b"]) -> Float[Array, " b"]:
    """The step whose noise level is nearest to that of an augmentation level.

    Args:
      aug_level: time of the cosine schedule in [0, 1], see diffusion/augment.py.
    """
    logsnr = -2 * jnp.log(jnp.tan(0.5 * jnp.pi * aug_level))
    return timestep(jnp.clip(logsnr, -20, 20))


class IFAttention(nn.Module):
    """Residual attention of an image's positions to themselves and to text, in one softmax."""

    head_channels: int
    groups: int
    dtype: jnp.dtype

    @nn.compact
    def __call__(
        self, x: Float[Array, "b h w c"], text: Float[Array, "b l t"]
    ) -> Float[Array, "b h w c"]:
        b, h, w, c = x.shape
        heads = num_heads(c, self.head_channels, "an image")

        def dense(name: str, of: Float[Array, "b m d"]) -> Float[Array, "b m n k"]:
            y = layers.Dense(c, self.dtype, name=name)(of)
            return y.reshape(b, -1, heads, self.head_channels)

        def of_text() -> tuple[Float[Array, "b l n k"], Float[Array, "b l n k"]]:
            norm = layers.GroupNorm(self.dtype, groups=self.groups, name="text_norm")
            tokens = norm(text[:, :, None])[:, :, 0]
            return dense("text_k", tokens), dense("text_v", tokens)

        norm = layers.GroupNorm(self.dtype, groups=self.groups, name="norm")
        tokens = norm(x).reshape(b, h * w, c)
        text_keys, text_values = cached(self, "keys_values", of_text)
        out = attend(
            dense("q", tokens),
            jnp.concatenate([text_keys, dense("k", tokens)], axis=1),
            jnp.concatenate([text_values, dense("v", tokens)], axis=1),
        )
        out = layers.Dense(c, self.dtype, name="out")(out.reshape(b, h * w, c))
        return layers.residual_sum(x, out.reshape(b, h, w, c))


class IFBlock(nn.Module):
    """Residual block, and attention behind it where the resolution has attention.

    Attributes:
      channels, out_scale, dropout: fields of the residual block, see ResBlock.
      head_channels: head channels of attention; None for none.
    """

    channels: int
    groups: int
    out_scale: float
    dropout: float
    head_channels: int | None
    dtype: jnp.dtype
    train: bool

    @nn.compact
    def __call__(
        self, x: Float[Array, "b h w c"], vector: Float[Array, "b f"], text: Float[Array, "b l t"]
    ) -> Float[Array, "b h w d"]:
        x = ResBlock(
            self.channels,
            self.dtype,
            self.dropout,
            activation=gelu,
            groups=self.groups,
            out_scale=self.out_scale,
            name="residual",
        )(x, vector, self.train)
        if self.head_channels is not None:
            attention = IFAttention(self.head_channels, self.groups, self.dtype, name="attention")
            x = attention(x, text)
        return x


class IFTextPool(nn.Module):
    """Pools text to one vector: the mean token, moved by a learned vector, attends to all.

    The pool of CLIP's image tower (Radford et al. 2021) without its last projection.
    """

    heads: int
    features: int
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, text: Float[Array, "b l t"]) -> Float[Array, "b f"]:
        b, _, d = text.shape
        text = layers.LayerNorm(self.dtype, name="norm_in")(text)
        position = self.param(
            "position", layers.partitioned(nn.initializers.normal(d**-0.5), "vector", "vector"),
            (1, d),
        )  # fmt: skip
        query = text.mean(axis=1, keepdims=True) + position.astype(self.dtype)
        tokens = jnp.concatenate([query, text], axis=1)
        q, k, v = (
            layers.Dense(d, self.dtype, name=name)(of).reshape(b, -1, self.heads, d // self.heads)
            for name, of in (("q", query), ("k", tokens), ("v", tokens))
        )
        pooled = attend(q, k, v).reshape(b, d)
        pooled = layers.Dense(self.features, self.dtype, name="out")(pooled)
        return layers.LayerNorm(self.dtype, name="norm_out")(pooled)


class IFConditioning(nn.Module):
    """Activated conditioning vector [b, features] and text tokens [b, l, text_channels].

    Attributes:
      sinusoids: channels of the sinusoidal embedding of steps.
      features: channels of the conditioning vector.
      text_channels: channels of the tokens that attention sees.
      pool_heads: attention heads of the text pool.
      text_length: token states of every caption, padding included.
    """

    sinusoids: int
    features: int
    text_channels: int
    pool_heads: int
    text_length: int
    dtype: jnp.dtype

    @nn.compact
    def __call__(
        self, logsnr: Float[Array, " b"], conditioning: Conditioning
    ) -> tuple[Float[Array, "b f"], Float[Array, "b l t"]]:
        text = self.states(conditioning.text)
        tokens = layers.Dense(self.text_channels, self.dtype, name="text_in")(text)
        vector = self.embed_step(timestep(logsnr), "time")
        if conditioning.aug_level is not None:
            vector += self.embed_step(aug_step(conditioning.aug_level), "noise")
        pool = IFTextPool(self.pool_heads, self.features, self.dtype, name="pool")
        vector += cached(self, "pooled", lambda: pool(text))
        return gelu(vector), tokens

    def states(self, text: TextEmbedding) -> Float[Array, "b l t"]:
        """Token states, those of the empty caption where the mask is all False."""
        _, length, width = text.states.shape
        if length != self.text_length:
            raise UserError(
                f"this network reads {self.text_length} token states of every caption, padding "
                f"included, but was given {length}; encode captions with encoder 't5-if'"
            )
        null = self.param(
            "null_text", layers.partitioned(nn.initializers.normal(1.0), "vector", "vector"),
            (length, width),
        )  # fmt: skip
        visible: Bool[Array, "b 1 1"] = text.mask.any(axis=1)[:, None, None]
        return jnp.where(visible, text.states, null).astype(self.dtype)

    def embed_step(self, step: Float[Array, " b"], name: str) -> Float[Array, "b f"]:
        """Cosines and sines of a step, then a two-layer MLP."""
        half = self.sinusoids // 2
        angles = step[:, None] * 10_000.0 ** (-jnp.arange(half) / half)
        x = jnp.concatenate([jnp.cos(angles), jnp.sin(angles)], axis=-1).astype(self.dtype)
        x = gelu(layers.Dense(self.features, self.dtype, name=f"{name}_in")(x))
        return layers.Dense(self.features, self.dtype, name=f"{name}_out")(x)


class DeepFloydUNet(BaseNetwork):
    """U-Net of DeepFloyd IF. A base stage, or, given low_res and aug_level, a super-resolution one.

    Attributes:
      channels: at every resolution, the highest first; each further one halves it.
      blocks: residual blocks at each resolution on the way down; the way up has one more.
      attention: for each resolution, True if its blocks are followed by attention.
      features: channels of the conditioning vector.
      text_channels: channels of the text tokens that attention sees.
      head_channels: channels of an attention head.
      groups: groups of every GroupNorm.
      pool_heads: attention heads of the text pool.
      text_length: token states of every caption, padding included.
      out_scale: divisor of every residual block's output; sqrt(2) in stage II.
      dropout: dropout rate inside residual blocks.
      dtype: dtype of activations; parameters, norms and the output are float32.
      remat: rematerialisation policy, see stack.REMAT.
    """

    channels: tuple[int, ...]
    blocks: tuple[int, ...]
    attention: tuple[bool, ...]
    features: int
    text_channels: int
    head_channels: int = 64
    groups: int = 32
    pool_heads: int = 64
    text_length: int = 77
    out_scale: float = 1.0
    dropout: float = 0.0
    dtype: Literal["float32", "bfloat16"] = "float32"
    remat: Remat = "none"

    outer_layers = ("conv_in", "conv_out")
    predicts_variance = True

    @property
    def size_multiple(self) -> int:
        """2 for every resolution below the highest."""
        return 2 ** (len(self.channels) - 1)

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "b h w c"],
        logsnr: Float[Array, " b"],
        conditioning: Conditioning,
        train: bool = False,
    ) -> Float[Array, "b h w d"]:
        levels = len(self.channels)
        if len(self.blocks) != levels or len(self.attention) != levels:
            raise UserError(
                "channels, blocks and attention need one entry per resolution, got "
                f"{self.channels}, {self.blocks}, {self.attention}"
            )
        dtype = jnp.dtype(self.dtype)
        vector, text = IFConditioning(
            self.channels[0],
            self.features,
            self.text_channels,
            self.pool_heads,
            self.text_length,
            dtype,
            name="conditioning",
        )(logsnr, conditioning)

        def block(y: Array, i: int, name: str) -> Array:
            return rematerialised(IFBlock, self.remat)(
                channels=self.channels[i],
                groups=self.groups,
                out_scale=self.out_scale,
                dropout=self.dropout,
                head_channels=self.head_channels if self.attention[i] else None,
                dtype=dtype,
                train=train,
                name=name,
            )(y, vector, text)

        def res_block(y: Array, i: int, name: str, resample: str = "none") -> Array:
            return rematerialised(ResBlock, self.remat, static_argnums=3)(
                self.channels[i],
                dtype,
                self.dropout,
                resample,
                activation=gelu,
                groups=self.groups,
                out_scale=self.out_scale,
                name=name,
            )(y, vector, train)

        inputs = [x] if conditioning.low_res is None else [x, conditioning.low_res]
        y = constrain(jnp.concatenate(inputs, axis=-1).astype(dtype))
        y = layers.Conv(self.channels[0], dtype, axes=("pixel", "out"), name="conv_in")(y)
        skips = []
        for i in range(levels):
            if i > 0:
                y = res_block(y, i - 1, f"down_{i}_resample", "down")
            skips.append(y)
            for j in range(self.blocks[i]):
                y = block(y, i, f"down_{i}_{j}")
                skips.append(y)

        y = res_block(y, levels - 1, "middle_0")
        y = IFAttention(self.head_channels, self.groups, dtype, name="middle_attention")(y, text)
        y = res_block(y, levels - 1, "middle_1")

        for i in reversed(range(levels)):
            for j in range(self.blocks[i] + 1):
                y = constrain(jnp.concatenate([y, skips.pop()], axis=-1))
                y = block(y, i, f"up_{i}_{j}")
            if i > 0:
                y = res_block(y, i, f"up_{i}_resample", "up")
        y = gelu(layers.GroupNorm(dtype, groups=self.groups, name="norm_out")(y))
        return layers.conv_out(2 * x.shape[-1])(y)
