"""The Efficient U-Net of the super-resolution stages (Imagen, section 2.5 and appendix B.1)."""

from __future__ import annotations

import math
from typing import Literal

import flax.linen as nn
import jax.numpy as jnp
from flax.core import FrozenDict
from jaxtyping import Array, Float

from imagen_jax.errors import UserError
from imagen_jax.models import layers
from imagen_jax.models.attention import ImageAttention, TextPool
from imagen_jax.models.base import BaseNetwork
from imagen_jax.models.blocks import CombineEmbedding, EfficientBlock
from imagen_jax.models.conditioning import ConditioningEncoder
from imagen_jax.models.stack import Remat, rematerialised, repeat
from imagen_jax.sharding import constrain
from imagen_jax.typing import Conditioning


class EfficientUNet(BaseNetwork):
    """Super-resolution U-Net with most of its parameters at low resolutions.

    Differs from the base U-Net in topology: every DBlock halves the resolution before its residual
    blocks and every UBlock doubles it after them, so that residual blocks never run at the full
    resolution; there are more blocks where the resolution is low; skips are scaled by 1/sqrt(2).
    Fully convolutional but for attention: it may be trained on crops and sampled at full size.
    Not in the paper's listings: the conditioning vector also scales and shifts the last norm, as no
    residual block runs at the full resolution, where the noise of the input is passed on or not.

    Attributes:
      channels: channels of each DBlock; every one halves the resolution (128, 256, 512, 1024 in the
        paper's sr256).
      blocks: residual blocks of each DBlock and of the UBlock opposite (2, 4, 8, 8 in sr256).
      self_attention: for each DBlock, True if its positions attend to one another.
      cross_attention: for each DBlock, True if they attend to text. With both, text keys and values
        are concatenated to those of the image (appendix D.3.1).
      head_channels: channels of an attention head.
      text_channels: channels of the text tokens that attention sees.
      text_layers: trainable transformer layers over the frozen text states (0 in the paper).
      dtype: dtype of activations; parameters, norms and the output are float32.
      scale_shift_norm: the conditioning vector scales and shifts a norm of every residual block, as
        in the paper (use_scale_shift_norm, appendices F.2 and F.3).
      patch: pixels along a side of the squares that are read and made as one position: with 2, all
        convolutions run at half the resolution at most. 1 in the paper.
      attend: after every residual block of a DBlock, "block", or once after all of them, "level".
      attention_positions: see ImageAttention.positions; False in the paper.
      qk_norm: see ImageAttention.qk_norm; False in the paper.
      text_pool: see ConditioningEncoder.text_pool; "attention" in the paper.
      remat: rematerialisation policy, see stack.REMAT.
    """

    channels: tuple[int, ...]
    blocks: tuple[int, ...]
    self_attention: tuple[bool, ...]
    cross_attention: tuple[bool, ...]
    head_channels: int
    text_channels: int
    text_layers: int
    dtype: Literal["float32", "bfloat16"]
    scale_shift_norm: bool = True
    patch: int = 1
    attend: Literal["block", "level"] = "level"
    attention_positions: bool = False
    qk_norm: bool = False
    text_pool: TextPool = "attention"
    remat: Remat = "none"

    outer_layers = ("conv_in", "conv_out")

    @property
    def size_multiple(self) -> int:
        """2 for every DBlock, times the pixels along a patch."""
        return self.patch * 2 ** len(self.channels)

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "b h w c"],
        logsnr: Float[Array, " b"],
        conditioning: Conditioning,
        train: bool = False,
    ) -> Float[Array, "b h w c"]:
        del train  # no dropout
        levels = len(self.channels)
        per_level = (self.blocks, self.self_attention, self.cross_attention)
        if any(len(values) != levels for values in per_level):
            raise UserError(
                "channels, blocks, self_attention and cross_attention need one entry per DBlock, "
                f"got {self.channels}, {', '.join(map(str, per_level))}"
            )
        dtype = jnp.dtype(self.dtype)
        vector, tokens, mask = ConditioningEncoder(
            features=4 * self.channels[0],
            text_channels=self.text_channels,
            text_layers=self.text_layers,
            text_pool=self.text_pool,
            head_channels=self.head_channels,
            dtype=dtype,
            name="conditioning",
        )(logsnr, conditioning)

        context = (vector, tokens, mask)

        def attention(i):
            """Fields of the attention layers of a DBlock, or None."""
            if not (self.self_attention[i] or self.cross_attention[i]):
                return None
            return FrozenDict(
                head_channels=self.head_channels,
                to_image=self.self_attention[i],
                to_text=self.cross_attention[i],
                dtype=dtype,
                positions=self.attention_positions,
                qk_norm=self.qk_norm,
            )

        def stack(y, i, way):
            """Combined embedding, residual blocks and attention: what both ways share."""
            y = CombineEmbedding(dtype, name=f"{way}_{i}_embedding")(y, vector)
            fields = {
                "channels": self.channels[i],
                "dtype": dtype,
                "scale_shift_norm": self.scale_shift_norm,
                "attention": attention(i) if self.attend == "block" else None,
            }
            names = [f"{way}_{i}_{j}" for j in range(self.blocks[i])]
            if way == "up":  # the first block has more input channels
                first = rematerialised(EfficientBlock, self.remat)
                y = first(**fields, name=names.pop(0))(y, None, context)
            y, _ = repeat(EfficientBlock, fields, names, y, None, context, self.remat)
            if self.attend == "level" and (of_level := attention(i)):
                attend = rematerialised(ImageAttention, self.remat)
                y = attend(**of_level, name=f"{way}_{i}_attention")(y, tokens, mask)
            return y

        inputs = [x] if conditioning.low_res is None else [x, conditioning.low_res]
        y = layers.to_patches(jnp.concatenate(inputs, axis=-1).astype(dtype), self.patch)
        y = layers.Conv(self.channels[0], dtype, axes=("pixel", "out"), name="conv_in")(y)
        full_resolution = y
        skips = []
        for i in range(levels):
            y = layers.Conv(self.channels[i], dtype, stride=2, name=f"down_{i}_stride")(y)
            y = stack(y, i, "down")
            skips.append(y)
        scale = 1 / math.sqrt(2)
        for i in reversed(range(levels)):
            y = constrain(jnp.concatenate([y, skips[i] * scale], axis=-1))
            y = stack(y, i, "up")
            y = layers.Conv(self.channels[max(i - 1, 0)], dtype, name=f"up_{i}_conv")(y)
            y = layers.upsample(y) if i > 0 else y
        # Norm and activation of what is upsampled, before it is: a quarter of the pixels.
        film = layers.film(vector, 2 * self.channels[0], dtype)
        parts = layers.GroupNorm(dtype, name="norm_out")((y, full_resolution * scale), *film)
        y, full_resolution = (nn.silu(part) for part in parts)
        y = constrain(jnp.concatenate([layers.upsample(y), full_resolution], axis=-1))
        y = layers.conv_out(x.shape[-1] * self.patch**2)(y)
        return layers.from_patches(y, self.patch)
