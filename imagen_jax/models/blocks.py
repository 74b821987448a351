"""Residual blocks of both U-Nets."""

from __future__ import annotations

from typing import Literal

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float

from imagen_jax.models import layers

Resample = Literal["none", "down", "up"]


class ResBlock(nn.Module):
    """BigGAN residual block as in ADM (Dhariwal & Nichol 2021, section 3).

    GroupNorm, swish, [resample], 3x3 convolution, GroupNorm with scale and shift from the
    conditioning vector (FiLM), swish, dropout, 3x3 convolution starting at zero; the shortcut is
    resampled alike and passes a 1x1 convolution where the channels change.

    Attributes:
      channels: output channels.
      resample: "down" halves and "up" doubles the resolution inside the block.
    """

    channels: int
    dtype: jnp.dtype
    dropout: float = 0.0
    resample: Resample = "none"

    @nn.compact
    def __call__(
        self, x: Float[Array, "b h w c"], vector: Float[Array, "b f"], train: bool
    ) -> Float[Array, "b h2 w2 d"]:
        y = nn.silu(layers.GroupNorm(self.dtype, name="norm_in")(x))
        if self.resample == "down":
            x, y = layers.downsample(x), layers.downsample(y)
        elif self.resample == "up":
            x, y = layers.upsample(x), layers.upsample(y)
        y = layers.Conv(self.channels, self.dtype, name="conv_in")(y)
        film = layers.film(vector, self.channels, self.dtype, name="film")
        y = nn.silu(layers.GroupNorm(self.dtype, name="norm_out")(y, *film))
        y = nn.Dropout(self.dropout, deterministic=not train, name="dropout")(y)
        y = layers.Conv(self.channels, self.dtype, kernel_init=layers.ZEROS, name="conv_out")(y)
        if x.shape[-1] != self.channels:
            x = layers.Conv(self.channels, self.dtype, kernel_size=1, name="shortcut")(x)
        return x + y


class EfficientResBlock(nn.Module):
    """Residual block of the Efficient U-Net (Imagen, figure A.27).

    GroupNorm, swish, 3x3 convolution, twice, beside a shortcut that is always a 1x1 convolution.
    The conditioning vector enters once per DBlock or UBlock (CombineEmbedding), not here.
    """

    channels: int
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h w d"]:
        y = nn.silu(layers.GroupNorm(self.dtype, name="norm_in")(x))
        y = layers.Conv(self.channels, self.dtype, name="conv_in")(y)
        y = nn.silu(layers.GroupNorm(self.dtype, name="norm_out")(y))
        y = layers.Conv(self.channels, self.dtype, kernel_init=layers.ZEROS, name="conv_out")(y)
        return y + layers.Conv(self.channels, self.dtype, kernel_size=1, name="shortcut")(x)


class CombineEmbedding(nn.Module):
    """Adds a projection of the conditioning vector to every position (Imagen, figure A.28)."""

    dtype: jnp.dtype

    @nn.compact
    def __call__(
        self, x: Float[Array, "b h w c"], vector: Float[Array, "b f"]
    ) -> Float[Array, "b h w c"]:
        return x + layers.Dense(x.shape[-1], self.dtype, name="project")(vector)[:, None, None]
