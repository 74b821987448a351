"""The base U-Net: improved DDPM / ADM with text (Imagen, section 2.5 and appendix F.1)."""

from __future__ import annotations

from typing import Any, Literal

import flax.linen as nn
import jax.numpy as jnp
from flax.core import FrozenDict
from jaxtyping import Array, Float

from imagen_jax.errors import UserError
from imagen_jax.models import layers
from imagen_jax.models.attention import ImageAttention, TextPool
from imagen_jax.models.base import BaseNetwork
from imagen_jax.models.blocks import ResBlock, UNetBlock
from imagen_jax.models.conditioning import ConditioningEncoder
from imagen_jax.models.stack import Remat, rematerialised, repeat
from imagen_jax.sharding import constrain
from imagen_jax.typing import Conditioning


class UNet(BaseNetwork):
    """Text-conditional U-Net for the base stage.

    Attributes:
      channels: channels at the highest resolution (embed_dim; 512 in the paper's base64).
      multipliers: channels of each resolution, as multiples; every further one halves it.
      blocks: residual blocks at each resolution on the way down; the way up has one more. The
        blocks that halve or double the resolution also change the channels, so that all blocks of a
        resolution have one shape.
      attention: for each resolution, True if its blocks are followed by attention.
      head_channels: channels of an attention head.
      text_channels: channels of the text tokens that attention sees.
      text_layers: trainable transformer layers over the frozen text states (0 in the paper).
      dropout: dropout rate inside residual blocks.
      dtype: dtype of activations; parameters, norms and the output are float32.
      conditioning_multiplier: channels of the conditioning vector, as a multiple of `channels`; 4
        in ADM.
      attention_positions: see ImageAttention.positions; False in the paper.
      qk_norm: see ImageAttention.qk_norm; False in the paper.
      text_pool: see ConditioningEncoder.text_pool; "attention" in the paper.
      cross_attention: attention sees the text tokens beside the image, as in the paper; without
        it, text comes pooled alone.
      remat: rematerialisation policy, see stack.REMAT.
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
    conditioning_multiplier: int = 4
    attention_positions: bool = False
    qk_norm: bool = False
    text_pool: TextPool = "attention"
    cross_attention: bool = True
    remat: Remat = "none"

    outer_layers = ("conv_in", "conv_out")

    @property
    def size_multiple(self) -> int:
        """2 for every resolution below the highest."""
        return 2 ** (len(self.multipliers) - 1)

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
            raise UserError(
                "multipliers, blocks and attention need one entry per resolution, got "
                f"{self.multipliers}, {self.blocks}, {self.attention}"
            )
        dtype = jnp.dtype(self.dtype)
        vector, tokens, mask = ConditioningEncoder(
            features=self.conditioning_multiplier * self.channels,
            text_channels=self.text_channels,
            text_layers=self.text_layers,
            text_pool=self.text_pool,
            head_channels=self.head_channels,
            dtype=dtype,
            name="conditioning",
        )(logsnr, conditioning)

        context = (vector, tokens, mask)

        def level(i, way, y, skips):
            """The residual blocks of one resolution, and attention behind each."""
            count = self.blocks[i] + (way == "up")
            fields = {
                "channels": self.channels * self.multipliers[i],
                "dtype": dtype,
                "dropout": self.dropout,
                "train": train,
                "attention": attention if self.attention[i] else None,
            }
            names = [f"{way}_{i}_{j}" for j in range(count)]
            return repeat(UNetBlock, fields, names, y, skips, context, self.remat)

        def res_block(y, channels, name, resample="none"):
            block = rematerialised(ResBlock, self.remat, static_argnums=3)
            return block(channels, dtype, self.dropout, resample, name=name)(y, vector, train)

        attention: FrozenDict[str, Any] = FrozenDict(
            head_channels=self.head_channels,
            to_image=True,
            to_text=self.cross_attention,
            dtype=dtype,
            positions=self.attention_positions,
            qk_norm=self.qk_norm,
        )
        inputs = [x] if conditioning.low_res is None else [x, conditioning.low_res]
        y = constrain(jnp.concatenate(inputs, axis=-1).astype(dtype))
        y = layers.Conv(self.channels, dtype, axes=("pixel", "out"), name="conv_in")(y)
        widths = [self.channels * multiplier for multiplier in self.multipliers]
        skips = []
        for i in range(levels):
            if i > 0:
                y = res_block(y, widths[i], f"down_{i}_resample", "down")
            first = y
            y, outputs = level(i, "down", y, None)
            skips.append([first, *outputs])

        y = res_block(y, widths[-1], "middle_0")
        y = ImageAttention(**attention, name="middle_attention")(y, tokens, mask)
        y = res_block(y, widths[-1], "middle_1")

        for i in reversed(range(levels)):
            y, _ = level(i, "up", y, skips[i][::-1])
            if i > 0:
                y = res_block(y, widths[i - 1], f"up_{i}_resample", "up")
        y = nn.silu(layers.GroupNorm(dtype, name="norm_out")(y))
        return layers.conv_out(x.shape[-1])(y)
