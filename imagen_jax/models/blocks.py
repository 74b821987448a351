"""Residual blocks of both U-Nets."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, Literal

import flax.linen as nn
import jax.numpy as jnp
from flax.core import FrozenDict
from jaxtyping import Array, Float

from imagen_jax.models import layers
from imagen_jax.models.attention import ImageAttention
from imagen_jax.models.stack import Context
from imagen_jax.sharding import constrain

Resample = Literal["none", "down", "up"]


class ResBlock(nn.Module):
    """BigGAN residual block as in ADM (Dhariwal & Nichol 2021, section 3).

    GroupNorm, swish, [resample], 3x3 convolution, GroupNorm with scale and shift from the
    conditioning vector (FiLM), swish, dropout, 3x3 convolution starting at zero; the shortcut is
    resampled alike and passes a 1x1 convolution where the channels change.

    Attributes:
      channels: output channels.
      resample: "down" halves and "up" doubles the resolution inside the block.
      activation: in place of swish.
      groups: see GroupNorm.
      out_scale: divisor of the sum with the shortcut.
    """

    channels: int
    dtype: jnp.dtype
    dropout: float = 0.0
    resample: Resample = "none"
    activation: Callable[[Array], Array] = nn.silu
    groups: int | None = None
    out_scale: float = 1.0

    @nn.compact
    def __call__(
        self, x: Float[Array, "b h w c"], vector: Float[Array, "b f"], train: bool
    ) -> Float[Array, "b h2 w2 d"]:
        norm = functools.partial(layers.GroupNorm, self.dtype, groups=self.groups)
        y = self.activation(norm(name="norm_in")(x))
        if self.resample == "down":
            x, y = layers.downsample(x), layers.downsample(y)
        elif self.resample == "up":
            x, y = layers.upsample(x), layers.upsample(y)
        y = layers.Conv(self.channels, self.dtype, name="conv_in")(y)
        film = layers.film(vector, self.channels, self.dtype)
        y = self.activation(norm(name="norm_out")(y, *film))
        y = nn.Dropout(self.dropout, deterministic=not train, name="dropout")(y)
        y = layers.Conv(self.channels, self.dtype, kernel_init=layers.ZEROS, name="conv_out")(y)
        if x.shape[-1] != self.channels:
            x = layers.Conv(self.channels, self.dtype, kernel_size=1, name="shortcut")(x)
        y = layers.residual_sum(x, y)
        return y if self.out_scale == 1 else y / self.out_scale


class UNetBlock(nn.Module):
    """Residual block of the base U-Net, with attention behind it where the level has attention.

    Attributes:
      channels: output channels.
      attention: None, or the fields of ImageAttention.
      train: dropout is on.
    """

    channels: int
    dtype: jnp.dtype
    dropout: float
    train: bool
    attention: FrozenDict[str, Any] | None

    @nn.compact
    def __call__(
        self, y: Float[Array, "b h w c"], skip: Float[Array, "b h w s"] | None, context: Context
    ) -> Float[Array, "b h w d"]:
        vector, tokens, mask = context
        if skip is not None:
            y = constrain(jnp.concatenate([y, skip], axis=-1))
        y = ResBlock(self.channels, self.dtype, self.dropout, name="residual")(
            y, vector, self.train
        )
        if self.attention is not None:
            y = ImageAttention(**self.attention, name="attention")(y, tokens, mask)
        return y


class EfficientBlock(nn.Module):
    """Residual block of the Efficient U-Net (Imagen, figure A.27), and attention if it has its own.

    GroupNorm, swish, 3x3 convolution, twice, beside a shortcut that is always a 1x1 convolution.
    The conditioning vector is added once per DBlock or UBlock (CombineEmbedding); with
    `scale_shift_norm` it also scales and shifts every second norm (FiLM), by nothing at first.

    Attributes:
      channels: output channels.
      scale_shift_norm: see EfficientUNet.
      attention: fields of the ImageAttention layer that follows; None for none.
    """

    channels: int
    dtype: jnp.dtype
    scale_shift_norm: bool
    attention: FrozenDict[str, Any] | None = None

    @nn.compact
    def __call__(
        self, x: Float[Array, "b h w c"], skip: None, context: Context
    ) -> Float[Array, "b h w d"]:
        del skip  # comes to the whole UBlock
        vector, tokens, mask = context
        y = nn.silu(layers.GroupNorm(self.dtype, name="norm_in")(x))
        y = layers.Conv(self.channels, self.dtype, name="conv_in")(y)
        film = layers.film(vector, self.channels, self.dtype) if self.scale_shift_norm else ()
        y = nn.silu(layers.GroupNorm(self.dtype, name="norm_out")(y, *film))
        y = layers.Conv(self.channels, self.dtype, kernel_init=layers.ZEROS, name="conv_out")(y)
        y = layers.residual_sum(layers.Conv(self.channels, self.dtype, 1, name="shortcut")(x), y)
        if self.attention is not None:
            y = ImageAttention(**self.attention, name="attention")(y, tokens, mask)
        return y


class CombineEmbedding(nn.Module):
    """Adds a projection of the conditioning vector to every position (Imagen, figure A.28)."""

    dtype: jnp.dtype

    @nn.compact
    def __call__(
        self, x: Float[Array, "b h w c"], vector: Float[Array, "b f"]
    ) -> Float[Array, "b h w c"]:
        added = layers.Dense(x.shape[-1], self.dtype, name="project")(vector)
        return constrain(x + added[:, None, None])
