"""The base U-Net: improved DDPM / ADM with text (Imagen, section 2.3 and appendix F.1)."""

from __future__ import annotations

from typing import Literal

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float

from imagen_jax.models import layers
from imagen_jax.models.attention import ImageAttention
from imagen_jax.models.blocks import ResBlock
from imagen_jax.models.conditioning import ConditioningEncoder
from imagen_jax.typing import Conditioning


def check_divisible(shape: tuple[int, ...], halvings: int) -> None:
    """Raises ValueError unless height and width can be halved `halvings` times."""
    factor = 2**halvings
    if shape[1] % factor or shape[2] % factor:
        raise ValueError(
            f"a picture of {shape[1]} x {shape[2]} pixels cannot be halved {halvings} times; "
            f"height and width must be multiples of {factor}"
        )


class UNet(nn.Module):
    """Text-conditional U-Net for the base stage.

    Attributes:
      channels: channels at the highest resolution (embed_dim; 512 in the paper's base64).
      multipliers: channels of each resolution, as multiples; every further one halves it.
      blocks: residual blocks at each resolution; the way up has one more.
      attention: for each resolution, whether its blocks are followed by attention.
      head_channels: channels of an attention head.
      text_channels: channels of the text tokens that attention sees.
      text_layers: trainable transformer layers over the frozen text states (0 in the paper).
      dropout: dropout rate inside residual blocks.
      dtype: dtype of activations; parameters, norms and the output are float32.
      attention_positions: see ImageAttention.positions; False in the paper.
    """

    channels: int
    multipliers: tuple[int, ...]
    blocks: tuple[int, ...]
    attention: tuple[bool, ...]
    head_channels: int
    text_channels: int
    text_layers: int
    dropout: float
    dtype: Literal["float32", "bfloat16"]
    image_channels: int = 3
    attention_positions: bool = False
    has_low_res: bool = False

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "b h w c"],
        logsnr: Float[Array, " b"],
        conditioning: Conditioning,
        train: bool = False,
    ) -> Float[Array, "b h w c"]:
        levels = len(self.multipliers)
        if len(self.blocks) != levels or len(self.attention) != levels:
            raise ValueError(
                "multipliers, blocks and attention need one entry per resolution, got "
                f"{self.multipliers}, {self.blocks}, {self.attention}"
            )
        check_divisible(x.shape, levels - 1)
        dtype = jnp.dtype(self.dtype)
        vector, tokens, mask = ConditioningEncoder(
            features=4 * self.channels,
            text_channels=self.text_channels,
            text_layers=self.text_layers,
            head_channels=self.head_channels,
            has_low_res=self.has_low_res,
            dtype=dtype,
            name="conditioning",
        )(logsnr, conditioning)

        def res_block(x, channels, name, resample="none"):
            block = ResBlock(channels, dtype, self.dropout, resample, name=name)
            return block(x, vector, train)

        def attend(x, name):
            attention = ImageAttention(
                self.head_channels, True, True, dtype, self.attention_positions, name=name
            )
            return attention(x, tokens, mask)

        inputs = [x] if conditioning.low_res is None else [x, conditioning.low_res]
        y = jnp.concatenate(inputs, axis=-1).astype(dtype)
        y = layers.Conv(self.channels, dtype, axes=("pixel", "out"), name="conv_in")(y)
        skips = [y]
        for i in range(levels):
            channels = self.channels * self.multipliers[i]
            for j in range(self.blocks[i]):
                y = res_block(y, channels, f"down_{i}_{j}")
                if self.attention[i]:
                    y = attend(y, f"down_{i}_{j}_attention")
                skips.append(y)
            if i < levels - 1:
                y = res_block(y, channels, f"down_{i}_resample", "down")
                skips.append(y)

        y = res_block(y, y.shape[-1], "middle_0")
        y = attend(y, "middle_attention")
        y = res_block(y, y.shape[-1], "middle_1")

        for i in reversed(range(levels)):
            channels = self.channels * self.multipliers[i]
            for j in range(self.blocks[i] + 1):
                y = jnp.concatenate([y, skips.pop()], axis=-1)
                y = res_block(y, channels, f"up_{i}_{j}")
                if self.attention[i]:
                    y = attend(y, f"up_{i}_{j}_attention")
            if i > 0:
                y = res_block(y, channels, f"up_{i}_resample", "up")
        y = nn.silu(layers.GroupNorm(dtype, name="norm_out")(y))
        y = layers.Conv(
            self.image_channels,
            dtype,
            kernel_init=layers.ZEROS,
            axes=("in", "pixel"),
            name="conv_out",
        )(y)
        return y.astype(jnp.float32)
