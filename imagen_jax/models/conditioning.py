"""From (logsnr, text, aug_level) to the conditioning vector and the text tokens of a U-Net."""

from __future__ import annotations

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from imagen_jax.models import layers
from imagen_jax.models.attention import AttentionPool, MeanPool, TextBlock, TextPool
from imagen_jax.models.base import cached
from imagen_jax.typing import Conditioning


def sinusoidal_embedding(value: Float[Array, " b"], channels: int) -> Float[Array, "b c"]:
    """Sines and cosines of `value` at frequencies spaced geometrically (Vaswani et al. 2017, 3.5).

    Frequencies run from 1 down to 1/10000 radian per unit: callers scale what they embed to a range
    of 1000 units.
    """
    half = channels // 2
    frequencies = jnp.exp(-jnp.log(10_000.0) * jnp.arange(half) / half)
    angles = value.astype(jnp.float32)[:, None] * frequencies
    return jnp.concatenate([jnp.sin(angles), jnp.cos(angles)], axis=-1)


class ConditioningEncoder(nn.Module):
    """Conditioning vector [b, features] and text tokens [b, l, text_channels] of a U-Net.

    The vector is the embedded logsnr, plus the pooled text (Imagen, section 2.5), plus,
    for super-resolution, the embedded aug_level of the low-resolution image (section 2.2).
    Text states are layer-normalised first, which the paper found to matter (appendix D.3).

    Attributes:
      features: channels of the conditioning vector.
      text_channels: channels of the tokens that attention layers see.
      text_layers: trainable transformer layers, with rotary positions, over the frozen states; 0 in
        the paper, useful with small sentence encoders, which bind attributes to nouns weakly and
        hardly remember the order of words.
      text_pool: "attention" of a learned query, as the paper has it, or "mean" over the tokens.
    """

    features: int
    text_channels: int
    text_layers: int
    text_pool: TextPool
    head_channels: int
    dtype: jnp.dtype

    @nn.compact
    def __call__(
        self, logsnr: Float[Array, " b"], conditioning: Conditioning
    ) -> tuple[Float[Array, "b f"], Float[Array, "b l d"], Bool[Array, "b l"]]:
        text, mask = conditioning.text
        # Masked states may hold anything; make them zero so that they cannot reach the result.
        text = jnp.where(mask[..., None], text, 0)
        tokens = layers.LayerNorm(self.dtype, name="text_norm")(text)
        tokens = layers.Dense(self.text_channels, self.dtype, name="text_in")(tokens)
        for i in range(self.text_layers):
            tokens = TextBlock(self.head_channels, self.dtype, name=f"text_{i}")(tokens, mask)

        vector = self.embed_scalar(logsnr * 25.0, "logsnr")
        pool = (
            AttentionPool(self.head_channels, self.features, self.dtype, name="pool")
            if self.text_pool == "attention"
            else MeanPool(self.features, self.dtype, name="pool")
        )
        vector += cached(self, "pooled", lambda: pool(tokens, mask))
        if conditioning.aug_level is not None:
            vector += self.embed_scalar(conditioning.aug_level * 1000.0, "aug_level")
        vector = layers.Dense(self.features, self.dtype, name="out")(nn.silu(vector))
        return nn.silu(vector), tokens, mask

    def embed_scalar(self, value: Float[Array, " b"], name: str) -> Float[Array, "b f"]:
        """Sinusoidal embedding followed by a two-layer MLP."""
        x = sinusoidal_embedding(value, self.features).astype(self.dtype)
        x = nn.silu(layers.Dense(self.features, self.dtype, name=f"{name}_in")(x))
        return layers.Dense(self.features, self.dtype, name=f"{name}_out")(x)
