"""Layers shared by the networks. Every parameter names its logical axes (see sharding.py)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array, Float

from imagen_jax import chips
from imagen_jax.errors import UserError
from imagen_jax.native import winograd
from imagen_jax.sharding import constrain

PRODUCT = "product"
"""Name that results of convolutions and dense layers carry, and statistics of norms, for
rematerialisation policies."""

DEFAULT_INIT = nn.initializers.lecun_normal()
ZEROS = nn.initializers.zeros_init()


def partitioned(initializer: nn.initializers.Initializer, *names: str) -> Callable[..., Any]:
    """An initializer whose parameter carries the logical axis names `names`."""
    return nn.with_logical_partitioning(initializer, names)


class Dense(nn.Module):
    """Affine map of the last axis, [..., in] -> [..., features]."""

    features: int
    dtype: jnp.dtype
    use_bias: bool = True
    kernel_init: nn.initializers.Initializer = DEFAULT_INIT

    @nn.compact
    def __call__(self, x: Float[Array, "*b c"]) -> Float[Array, "*b d"]:
        y = nn.Dense(
            self.features,
            use_bias=self.use_bias,
            dtype=self.dtype,
            kernel_init=partitioned(self.kernel_init, "in", "out"),
            bias_init=partitioned(ZEROS, "vector"),
            name="dense",
        )(x)
        return checkpoint_name(constrain(y), PRODUCT)


SUBLANES = 8
"""Rows of a tile of a TPU's matrix unit."""


def channel_sums(x: Float[Array, "b h w c"]) -> Float[Array, " c"]:
    """Sums over all positions, in float32, as a product with ones: on TPUs the matrix units take a
    tenth of what the vector units would (docs/paper-scale.md)."""
    ones = jnp.ones((SUBLANES, *x.shape[:3]), x.dtype)
    contracted = (((1, 2, 3), (0, 1, 2)), ((), ()))
    return jax.lax.dot_general(ones, x, contracted, preferred_element_type=jnp.float32)[0]


@jax.custom_vjp
def _add_bias(y: Float[Array, "b h w c"], bias: Float[Array, " c"]) -> Float[Array, "b h w c"]:
    """y + bias, whose gradient is by `channel_sums`."""
    return y + bias.astype(y.dtype)


def _add_bias_forward(y: jax.Array, bias: jax.Array) -> tuple[jax.Array, None]:
    return _add_bias(y, bias), None


def _add_bias_backward(_: None, gradient: jax.Array) -> tuple[jax.Array, jax.Array]:
    return gradient, channel_sums(gradient)


_add_bias.defvjp(_add_bias_forward, _add_bias_backward)


def _convolve(
    x: jax.Array, kernel: jax.Array, strides: Sequence[int], *args: Any, **options: Any
) -> jax.Array:
    """jax.lax.conv_general_dilated, or what is faster on CPUs."""
    if chips.platform() == "cpu" and all(stride == 1 for stride in strides):
        if kernel.shape[:2] == (1, 1):
            return jnp.matmul(x, kernel[0, 0])
        if winograd.applies(x, kernel):
            return winograd.convolve(x, kernel)
    return jax.lax.conv_general_dilated(x, kernel, strides, *args, **options)


class _Convolution(nn.Module):
    """flax's Conv with `_convolve`, and on TPUs `_add_bias`."""

    features: int
    dtype: jnp.dtype
    kernel_size: int
    stride: int
    kernel_init: Callable[..., Any]
    bias_init: Callable[..., Any]

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h2 w2 d"]:
        shape = (self.kernel_size, self.kernel_size, x.shape[-1], self.features)
        kernel = self.param("kernel", self.kernel_init, shape)
        bias = self.param("bias", self.bias_init, (self.features,))
        y = _convolve(
            x.astype(self.dtype), kernel.astype(self.dtype), (self.stride, self.stride), "SAME",
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
        )  # fmt: skip
        if chips.platform() == "tpu" and y.dtype == jnp.bfloat16:
            return _add_bias(y, bias)
        return y + bias.astype(y.dtype)


class Conv(nn.Module):
    """Square convolution, zero padding: [b, h, w, in] -> [b, h / stride, w / stride, features]."""

    features: int
    dtype: jnp.dtype
    kernel_size: int = 3
    stride: int = 1
    kernel_init: nn.initializers.Initializer = DEFAULT_INIT
    axes: Sequence[str] = ("in", "out")

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h2 w2 d"]:
        bias_axis = "pixel" if self.axes[1] == "pixel" else "vector"
        y = _Convolution(
            self.features,
            self.dtype,
            self.kernel_size,
            self.stride,
            partitioned(self.kernel_init, "window", "window", *self.axes),
            partitioned(ZEROS, bias_axis),
            name="conv",
        )(x)
        return checkpoint_name(constrain(y), PRODUCT)


def conv_out(channels: int) -> Conv:
    """The last convolution of a network: zero at first, and in float32, as in ADM.

    In bfloat16 a prediction of eps is rounded to 2^-9 of itself, which at logsnr -10 is an error of
    about 0.3 in x0.
    """
    return Conv(
        channels, jnp.dtype("float32"), kernel_init=ZEROS, axes=("in", "pixel"), name="conv_out"
    )


def num_groups(channels: int) -> int:
    """Groups of a GroupNorm: 32 as in ADM, or the largest power of two that leaves 4 a group."""
    groups = 32
    while groups > 1 and (channels % groups or channels // groups < 4):
        groups //= 2
    return groups


class GroupNorm(nn.Module):
    """Group normalisation (Wu & He 2018) with an optional scale and shift per example (FiLM).

    The statistics are one pass in float32 (mean and mean square), and normalisation, learned affine
    and FiLM are folded into a single multiply-add per pixel: about twice as fast as the two-pass
    form on CPUs and one read of the activation less on TPUs.

    Attributes:
      groups: None for those of num_groups.
    """

    dtype: jnp.dtype
    epsilon: float = 1e-5
    groups: int | None = None

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "b h w c"] | tuple[Float[Array, "b _ _ _"], ...],
        scale: Float[Array, "b c"] | None = None,
        shift: Float[Array, "b c"] | None = None,
    ) -> Any:
        """Normalises an image, or a tuple of images that are parts of its channels.

        Parts may have different resolutions: an image that is upsampled by repeating its pixels has
        the same statistics before.
        """
        parts = x if isinstance(x, tuple) else (x,)
        parts32 = [part.astype(jnp.float32) for part in parts]
        b, ends = parts[0].shape[0], np.cumsum([part.shape[-1] for part in parts])
        c = int(ends[-1])
        groups = self.groups or num_groups(c)
        gamma = self.param("scale", partitioned(nn.initializers.ones_init(), "vector"), (c,))
        beta = self.param("bias", partitioned(ZEROS, "vector"), (c,))
        per_group = (b, groups, c // groups)

        def mean_of(images: list[jax.Array]) -> jax.Array:
            channels = jnp.concatenate([jnp.mean(y, axis=(1, 2)) for y in images], axis=-1)
            return checkpoint_name(channels.reshape(per_group).mean(-1, keepdims=True), PRODUCT)

        mean, square = mean_of(parts32), mean_of([y * y for y in parts32])
        rstd = jax.lax.rsqrt(jnp.maximum(square - mean * mean, 0.0) + self.epsilon)
        mean = jnp.broadcast_to(mean, per_group).reshape(b, c)
        slope = jnp.broadcast_to(rstd, per_group).reshape(b, c) * gamma
        offset = beta - mean * slope
        if scale is not None and shift is not None:
            slope, offset = slope * (1 + scale), offset * (1 + scale) + shift
        normalised = tuple(
            constrain((y * a[:, None, None] + d[:, None, None]).astype(self.dtype))
            for y, a, d in zip(
                parts32,
                jnp.split(slope, ends[:-1], axis=-1),
                jnp.split(offset, ends[:-1], axis=-1),
                strict=True,
            )
        )
        return normalised if isinstance(x, tuple) else normalised[0]


def film(
    vector: Float[Array, "b f"], channels: int, dtype: jnp.dtype
) -> tuple[Float[Array, "b c"], Float[Array, "b c"]]:
    """Scale and shift of a GroupNorm from the conditioning vector, both zero at first (FiLM).

    To be called within a compact module, which gets the submodule "film".
    """
    both = Dense(2 * channels, dtype, kernel_init=ZEROS, name="film")(vector).astype(jnp.float32)
    scale, shift = jnp.split(both, 2, axis=-1)
    return scale, shift


class LayerNorm(nn.Module):
    """Layer normalisation in float32 over the last axis."""

    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x: Float[Array, "*b c"]) -> Float[Array, "*b c"]:
        y = nn.LayerNorm(
            epsilon=1e-5,
            dtype=jnp.float32,
            scale_init=partitioned(nn.initializers.ones_init(), "vector"),
            bias_init=partitioned(ZEROS, "vector"),
            name="norm",
        )(x.astype(jnp.float32))
        return y.astype(self.dtype)


class RMSNorm(nn.Module):
    """Root-mean-square normalisation in float32 over the last axis (Zhang & Sennrich 2019)."""

    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x: Float[Array, "*b c"]) -> Float[Array, "*b c"]:
        y = nn.RMSNorm(
            epsilon=1e-6,
            dtype=jnp.float32,
            scale_init=partitioned(nn.initializers.ones_init(), "vector"),
            name="norm",
        )(x.astype(jnp.float32))
        return y.astype(self.dtype)


def residual_sum(x: Float[Array, "*b c"], y: Float[Array, "*b c"]) -> Float[Array, "*b c"]:
    """x + y, where a block returns to its shortcut x.

    Gradients add up along the blocks, and XLA's CPU backend duplicates the running sum into each
    fusion that uses it; barriers do not stop that. On one CPU device the gradient goes through a
    `lax.cond` whose predicate is always true but opaque to XLA, which does.
    """
    kept = chips.platform() == "cpu" and chips.one_device()
    return constrain(_kept_sum(x, y) if kept else x + y)


@jax.custom_vjp
def _kept_sum(x: jax.Array, y: jax.Array) -> jax.Array:
    return x + y


def _kept_sum_forward(x: jax.Array, y: jax.Array) -> tuple[jax.Array, jax.Array]:
    return x + y, x[(0,) * x.ndim]


def _kept_sum_backward(number: jax.Array, grad: jax.Array) -> tuple[jax.Array, jax.Array]:
    computed = jax.lax.cond(number < jnp.inf, lambda g: g, lambda g: g + number, grad)
    return computed, computed


_kept_sum.defvjp(_kept_sum_forward, _kept_sum_backward)


def downsample(x: Float[Array, "b h w c"], factor: int = 2) -> Float[Array, "b h2 w2 c"]:
    """Area (box) downsampling.

    Raises:
      UserError: height or width is not divisible by `factor`.
    """
    b, h, w, c = x.shape
    if h % factor or w % factor:
        raise UserError(f"an image of {h} x {w} cannot be downsampled by {factor}")
    return constrain(x.reshape(b, h // factor, factor, w // factor, factor, c).mean((2, 4)))


def upsample(x: Float[Array, "b h w c"], factor: int = 2) -> Float[Array, "b h2 w2 c"]:
    """Nearest-neighbour upsampling."""
    b, h, w, c = x.shape
    x = jnp.broadcast_to(x[:, :, None, :, None], (b, h, factor, w, factor, c))
    return constrain(x.reshape(b, h * factor, w * factor, c))


def to_patches(x: Float[Array, "b h w c"], size: int) -> Float[Array, "b h2 w2 d"]:
    """Squares of pixels as channels: [b, h, w, c] -> [b, h / size, w / size, size * size * c]."""
    b, h, w, c = x.shape
    y = x.reshape(b, h // size, size, w // size, size, c).swapaxes(2, 3)
    return constrain(y.reshape(b, h // size, w // size, size * size * c))


def from_patches(x: Float[Array, "b h w d"], size: int) -> Float[Array, "b h2 w2 c"]:
    """Inverse of to_patches."""
    b, h, w, d = x.shape
    y = x.reshape(b, h, w, size, size, d // size**2).swapaxes(2, 3)
    return constrain(y.reshape(b, h * size, w * size, d // size**2))
