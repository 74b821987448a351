"""A plain transformer over large patches of pixels, in the style of JiT.

Li and He 2025, "Back to Basics: Let Denoising Generative Models Denoise", arXiv:2511.13720: no
tokenizer of images, no skip connections and no resampling; patches, through a bottleneck, are the
tokens of a transformer with adaptive norms that the noise level steers. The paper's point is what
such a network predicts: a patch of x0 lies on a manifold of few dimensions and a patch of noise
does not, so that a width below the patch's own dimension suffices for x0, with the loss weighted as
for v (parametrization "x0", weighting "v").

Text tokens stand in context: they join the image's as a part of one sequence in every layer.
"""

from __future__ import annotations

from typing import Literal

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from imagen_jax.errors import UserError
from imagen_jax.models import layers
from imagen_jax.models.attention import TextPool, attend, num_heads, rotate_by_position
from imagen_jax.models.base import BaseNetwork
from imagen_jax.models.conditioning import ConditioningEncoder
from imagen_jax.models.stack import Remat, repeat
from imagen_jax.sharding import constrain
from imagen_jax.typing import Conditioning

JiTContext = tuple[Float[Array, "b f"], Float[Array, "2 n"], Bool[Array, "b n"]]
"""Conditioning vector, row and column of every token, and which tokens are seen."""


class JiTBlock(nn.Module):
    """Attention of all tokens to the visible ones, then SwiGLU, both behind RMS norms that the
    conditioning vector scales and shifts and gates that it opens: all shut at first (adaLN-Zero,
    Peebles and Xie 2023, arXiv:2212.09748, section 3.2).

    Queries and keys are RMS-normalised, then rotated: one half of a head's channels by the row of
    the token, the other half by its column.
    """

    head_channels: int
    dtype: jnp.dtype

    @nn.compact
    def __call__(
        self, y: Float[Array, "b n c"], skip: None, context: JiTContext
    ) -> Float[Array, "b n c"]:
        del skip
        vector, places, visible = context
        b, n, c = y.shape
        heads = num_heads(c, self.head_channels, "a token")
        modulation = layers.Dense(6 * c, self.dtype, kernel_init=layers.ZEROS, name="modulation")
        scale_a, shift_a, gate_a, scale_m, shift_m, gate_m = jnp.split(
            modulation(vector)[:, None], 6, axis=-1
        )

        def rotated(z: Float[Array, "b n h k"], name: str) -> Float[Array, "b n h k"]:
            halves = jnp.split(layers.RMSNorm(self.dtype, name=name)(z), 2, axis=-1)
            turned = [rotate_by_position(*pair) for pair in zip(halves, places, strict=True)]
            return jnp.concatenate(turned, axis=-1)

        z = layers.RMSNorm(self.dtype, name="attention_norm")(y) * (1 + scale_a) + shift_a
        qkv = layers.Dense(3 * c, self.dtype, use_bias=False, name="qkv")(z)
        q, k, v = (
            part.reshape(b, n, heads, self.head_channels) for part in jnp.split(qkv, 3, axis=-1)
        )
        z = attend(rotated(q, "q_norm"), rotated(k, "k_norm"), v, visible).reshape(b, n, c)
        y = layers.residual_sum(y, gate_a * layers.Dense(c, self.dtype, name="out")(z))

        z = layers.RMSNorm(self.dtype, name="mlp_norm")(y) * (1 + scale_m) + shift_m
        hidden = 8 * c // 3 // 16 * 16  # as many parameters as two layers of 4 c
        gate, value = jnp.split(layers.Dense(2 * hidden, self.dtype, name="mlp_in")(z), 2, axis=-1)
        z = layers.Dense(c, self.dtype, name="mlp_out")(nn.silu(gate) * value)
        return layers.residual_sum(y, gate_m * z)


class JiT(BaseNetwork):
    """Transformer over patches of pixels and text tokens, for base and super-resolution stages.

    Attributes:
      patch: pixels per side of a patch.
      width: channels of a token.
      depth: blocks.
      head_channels: channels of an attention head, a multiple of 4.
      bottleneck: channels that a patch is projected to before it is projected to `width`.
      text_layers: trainable transformer layers over the frozen text states.
      dtype: dtype of activations; parameters, norms and the output are float32.
      text_pool: see ConditioningEncoder.text_pool.
      remat: rematerialisation policy, see stack.REMAT.
    """

    patch: int
    width: int
    depth: int
    head_channels: int
    bottleneck: int
    text_layers: int
    dtype: Literal["float32", "bfloat16"]
    text_pool: TextPool = "attention"
    remat: Remat = "none"

    outer_layers = ("patch_in", "patch_out")

    @property
    def size_multiple(self) -> int:
        """The patch."""
        return self.patch

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "b h w c"],
        logsnr: Float[Array, " b"],
        conditioning: Conditioning,
        train: bool = False,
    ) -> Float[Array, "b h w c"]:
        del train  # no dropout
        if self.head_channels % 4:
            raise UserError(f"head_channels is {self.head_channels}; JiT needs a multiple of 4")
        dtype, p = jnp.dtype(self.dtype), self.patch
        b, height, width, channels = x.shape
        rows, columns = height // p, width // p
        vector, text, mask = ConditioningEncoder(
            features=self.width,
            text_channels=self.width,
            text_layers=self.text_layers,
            text_pool=self.text_pool,
            head_channels=self.head_channels,
            dtype=dtype,
            name="conditioning",
        )(logsnr, conditioning)

        inputs = [x] if conditioning.low_res is None else [x, conditioning.low_res]
        y = constrain(jnp.concatenate(inputs, axis=-1).astype(dtype))
        y = layers.Conv(
            self.bottleneck, dtype, p, stride=p, axes=("pixel", "out"), name="patch_in"
        )(y)
        y = layers.Dense(self.width, dtype, name="tokens_in")(y).reshape(b, rows * columns, -1)

        # Text stands at the origin: its order is in the encoder's states.
        y = constrain(jnp.concatenate([y, text], axis=1))
        places = jnp.stack(jnp.divmod(jnp.arange(rows * columns), columns))
        places = jnp.pad(places, ((0, 0), (0, text.shape[1]))).astype(jnp.float32)
        visible = jnp.concatenate([jnp.ones((b, rows * columns), bool), mask], axis=1)
        fields = {"head_channels": self.head_channels, "dtype": dtype}
        names = [f"block_{i}" for i in range(self.depth)]
        context = (vector, places, visible)
        y, _ = repeat(JiTBlock, fields, names, y, None, context, self.remat)

        y = layers.RMSNorm(dtype, name="norm_out")(y[:, : rows * columns])
        scale, shift = layers.film(vector, self.width, dtype)
        y = y * (1 + scale[:, None]) + shift[:, None]
        float32 = jnp.dtype("float32")
        out = layers.Dense(p * p * channels, float32, kernel_init=layers.ZEROS, name="patch_out")
        return layers.from_patches(out(y).reshape(b, rows, columns, -1), p)
