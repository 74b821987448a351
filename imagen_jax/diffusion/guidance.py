"""Classifier-free guidance and thresholding: from a network to a denoiser.

A denoiser is a function (x_t, logsnr) -> x0 that no longer knows that text exists.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from imagen_jax.diffusion.parametrization import (
    check_parametrization,
    expand_to,
    split_variance,
    to_x0,
)
from imagen_jax.errors import UserError
from imagen_jax.typing import Conditioning, Denoiser, Image, LogSNR, Network, TextEmbedding

Guidance = float | jax.Array | Callable[[jax.Array], jax.Array]
"""A weight, one weight per example [b], or a function from logsnr [b] to weights [b]."""


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class IntervalGuidance:
    """A scale inside an interval of logsnr, 1 (off) outside: Kynkaanniemi et al. 2024.

    A pytree: a compiled program takes it as data.

    Attributes:
      weight: guidance scale inside.
      logsnr_low: noisier than this is not guided.
      logsnr_high: cleaner than this is not guided.
    """

    weight: Any
    logsnr_low: Any
    logsnr_high: Any

    def __post_init__(self) -> None:
        bounds = (self.logsnr_low, self.logsnr_high)  # numbers, or traced
        known = all(isinstance(bound, float | int) for bound in bounds)
        if known and not self.logsnr_low < self.logsnr_high:
            raise UserError(
                "logsnr_low must be below logsnr_high, got "
                f"logsnr_low={self.logsnr_low}, logsnr_high={self.logsnr_high}"
            )

    def __call__(self, logsnr: LogSNR) -> jax.Array:
        inside = (logsnr >= self.logsnr_low) & (logsnr <= self.logsnr_high)
        return jnp.where(inside, self.weight, 1.0)


def static_threshold(x0: Image) -> Image:
    """Clips to [-1, 1]: Saharia et al. 2022, section 2.3."""
    return jnp.clip(x0, -1.0, 1.0)


def _check_threshold(percentile: float, cap: float | None) -> None:
    if not 0.0 < percentile <= 100.0:
        raise UserError(f"percentile must be in (0, 100], got {percentile}")
    if cap is not None and not cap >= 1.0:
        raise UserError(f"cap must be at least 1 or None, got {cap}")


@functools.partial(jax.jit, static_argnums=1)
def _order_statistic(bits: jax.Array, rank: int) -> jax.Array:
    """[b] the number of a rank (0 is the least) among the unsigned integers of each example.

    Decides one bit after the other by counting. Against a sort: nothing is moved between devices
    but the counts, so images may be split along any axis, and time grows with the number of
    pixels only.
    """
    axes = tuple(range(1, bits.ndim))
    one = jnp.ones((), bits.dtype)
    width = bits.dtype.itemsize * 8

    def decide(i: jax.Array, found: jax.Array) -> jax.Array:
        candidate = found | (one << (width - 1 - i).astype(bits.dtype))
        below = jnp.sum(bits < expand_to(candidate, bits), axis=axes, dtype=jnp.int32)
        return jnp.where(below <= rank, candidate, found)

    # Starts at the second bit: the first is the sign. zeros_like keeps the batch's sharding.
    return jax.lax.fori_loop(1, width, decide, jnp.zeros_like(jnp.min(bits, axis=axes)))


def absolute_percentile(x0: jax.Array, percentile: float) -> Float[Array, "b"]:
    """Percentile of |x0| of each example over its other axes, linear between order statistics.

    Exact: as numpy.percentile, for narrower types than float32 too, as they are widened to it. NaN
    counts as larger than all numbers. Constant under differentiation.

    Args:
      x0: [b, ...] of a floating type.
      percentile: in (0, 100].

    Returns:
      [b] in float32, or in x0's type where that is wider.

    Raises:
      UserError: percentile out of range.
    """
    _check_threshold(percentile, None)
    axes, size = tuple(range(1, x0.ndim)), math.prod(x0.shape[1:])
    # In Python's double precision: float32 cannot count the numbers of a 1024 x 1024 image.
    position = (size - 1) * percentile / 100.0
    rank = min(int(position), size - 1)
    fraction = position - rank
    x0 = x0.astype(jnp.promote_types(x0.dtype, jnp.float32))
    absolute = jnp.abs(x0)
    # Floats without sign are ordered as their bits are.
    bits = jax.lax.bitcast_convert_type(absolute, f"uint{x0.dtype.itemsize * 8}")
    low = jax.lax.bitcast_convert_type(_order_statistic(bits, rank), x0.dtype)
    larger = absolute > expand_to(low, absolute)
    next_larger = jnp.min(jnp.where(larger, absolute, jnp.inf), axis=axes)
    repeated = size - jnp.sum(larger, axis=axes, dtype=jnp.int32) > rank + 1
    high = jnp.where(repeated | (fraction == 0.0), low, next_larger)
    return jax.lax.stop_gradient(low + fraction * (high - low))


def dynamic_threshold(x0: Image, percentile: float, cap: float | None = None) -> Image:
    """Clips to [-s, s] and divides by s: Saharia et al. 2022, section 2.3, equation (15).

    s is the percentile of |x0| over all pixels and channels of an example, at least 1.

    Args:
      x0: [b, h, w, c] estimates of clean images.
      percentile: in (0, 100], for example 99.5.
      cap: upper bound of s, at least 1; None for no bound.

    Raises:
      UserError: percentile or cap out of range.
    """
    _check_threshold(percentile, cap)
    scale = jnp.maximum(absolute_percentile(x0, percentile), 1.0)
    if cap is not None:
        scale = jnp.minimum(scale, cap)
    scale = expand_to(scale, x0)
    return (jnp.clip(x0, -scale, scale) / scale).astype(x0.dtype)


@dataclasses.dataclass(frozen=True)
class DynamicThreshold:
    """dynamic_threshold with its numbers, to hand to guided_denoiser.

    Attributes:
      percentile: in (0, 100].
      cap: upper bound of the divisor, at least 1, or None.
    """

    percentile: float
    cap: float | None = None

    def __post_init__(self) -> None:
        _check_threshold(self.percentile, self.cap)

    def __call__(self, x0: Image) -> Image:
        return dynamic_threshold(x0, self.percentile, self.cap)


def _keep(x0: Image) -> Image:
    return x0


THRESHOLDS: dict[str, Callable[[Image], Image]] = {
    "none": _keep,
    "static": static_threshold,
    "dynamic": DynamicThreshold(percentile=99.5),
}


def _pad_text(text: TextEmbedding, length: int) -> TextEmbedding:
    missing = length - text.mask.shape[1]
    return TextEmbedding(
        states=jnp.pad(text.states, ((0, 0), (0, missing), (0, 0))),
        mask=jnp.pad(text.mask, ((0, 0), (0, missing))),
    )


def stack_conditioning(
    conditional: Conditioning, negative: TextEmbedding | None = None
) -> Conditioning:
    """[conditional; unconditional] along the batch, for one call of the network.

    The unconditional half has the same low_res and aug_level and, as text, zero states with an
    all-False mask, or negative.

    Args:
      conditional: batch of b.
      negative: text of b or 1 examples, of any length, to be guided away from.

    Raises:
      UserError: negative has another batch size or width than conditional.
    """
    text = conditional.text
    if negative is None:
        other = TextEmbedding(jnp.zeros_like(text.states), jnp.zeros_like(text.mask))
    else:
        batch, _, width = text.states.shape
        if negative.states.shape[0] not in (1, batch) or negative.states.shape[2] != width:
            raise UserError(
                f"negative text has states of shape {negative.states.shape}, conditional text "
                f"{text.states.shape}: batch must be 1 or {batch} and width {width}"
            )
        length = max(text.mask.shape[1], negative.mask.shape[1])
        text, other = _pad_text(text, length), _pad_text(negative, length)
        other = TextEmbedding(
            states=jnp.broadcast_to(other.states, text.states.shape),
            mask=jnp.broadcast_to(other.mask, text.mask.shape),
        )
    return jax.tree.map(
        lambda first, second: jnp.concatenate([first, second], axis=0),
        conditional._replace(text=text),
        conditional._replace(text=other),
    )


def guided_denoiser(
    network: Network,
    conditional: Conditioning,
    guidance: Guidance,
    parametrization: str,
    threshold: str | Callable[[Image], Image],
    negative: TextEmbedding | None = None,
    prepare: Callable[[Conditioning], Conditioning] | None = None,
) -> Denoiser:
    """The guided, thresholded estimate of x0 as a function of (x_t, logsnr).

    prediction = w conditional + (1 - w) unconditional: Ho and Salimans 2022 in the paper's
    convention (Saharia et al. 2022, equation (2)), where w = 1 is guidance off; equation (14). As
    eps, v and x0 are affine in each other, guiding any of them is the same.

    Args:
      network: (x_t, logsnr [b], conditioning) -> prediction.
      conditional: batch of b.
      guidance: a number, [b] numbers, or a function from logsnr [b] to [b] numbers. The Python
        number 1 calls the network on the conditional half only.
      parametrization: the network's prediction, one of PARAMETRIZATIONS.
      threshold: one of THRESHOLDS ("dynamic" has the percentile 99.5), or a function of x0 such as
        DynamicThreshold(percentile=99.0, cap=4.0).
      negative: text to be guided away from, in place of no text.
      prepare: adds to the conditioning of both halves what can be computed once for all steps.

    Returns:
      (x_t [b, h, w, c], logsnr [] or [b]) -> x0 [b, h, w, c] in x_t's dtype.

    Raises:
      UserError: unknown parametrization or threshold, or negative text that does not fit.
    """
    conditioning = conditional if is_off(guidance) else stack_conditioning(conditional, negative)
    if prepare is not None:
        conditioning = prepare(conditioning)
    return stacked_denoiser(network, conditioning, guidance, parametrization, threshold)


@dataclasses.dataclass(frozen=True)
class VarianceDenoiser:
    """A denoiser that also knows the variance of a reverse step, where its network predicts it.

    Attributes:
      with_variance: (x_t, logsnr) -> (x0, v), with v in [-1, 1] as in
        models.base.BaseNetwork.predicts_variance; None where the network predicts none.
    """

    with_variance: Callable[[Image, LogSNR], tuple[Image, Image | None]]

    def __call__(self, x_t: Image, logsnr: LogSNR) -> Image:
        return self.with_variance(x_t, logsnr)[0]

    def then(self, change: Callable[[Image], Image]) -> VarianceDenoiser:
        """The denoiser whose estimates of x0 are changed."""

        def changed(x_t: Image, logsnr: LogSNR) -> tuple[Image, Image | None]:
            x0, variance = self.with_variance(x_t, logsnr)
            return change(x0), variance

        return VarianceDenoiser(changed)


def is_off(guidance: Guidance) -> bool:
    """True if guidance is the Python number 1, for which there is no unconditional half."""
    return isinstance(guidance, (int, float)) and guidance == 1


def stacked_denoiser(
    network: Network,
    conditioning: Conditioning,
    guidance: Guidance,
    parametrization: str,
    threshold: str | Callable[[Image], Image],
) -> Denoiser:
    """guided_denoiser of conditioning that was made before, so that its work is not repeated.

    Args:
      conditioning: result of stack_conditioning; the conditional half alone where is_off.
      network, guidance, parametrization, threshold: as for guided_denoiser, and so what is
        returned and raised.
    """
    check_parametrization(parametrization)
    if isinstance(threshold, str):
        if threshold not in THRESHOLDS:
            raise UserError(f"unknown threshold {threshold!r}; choose from {sorted(THRESHOLDS)}")
        threshold = THRESHOLDS[threshold]
    limit = threshold
    unguided = is_off(guidance)

    def denoise(x_t: Image, logsnr: LogSNR) -> tuple[Image, Image | None]:
        logsnr = jnp.broadcast_to(jnp.asarray(logsnr, x_t.dtype), x_t.shape[:1])
        if unguided:
            output = network(x_t, logsnr, conditioning).astype(x_t.dtype)
            prediction, variance = split_variance(output, x_t.shape[-1])
        else:
            both = network(
                jnp.concatenate([x_t, x_t]), jnp.concatenate([logsnr, logsnr]), conditioning
            ).astype(x_t.dtype)
            with_text, without_text = jnp.split(both, 2)
            weight = guidance(logsnr) if callable(guidance) else guidance
            weight = expand_to(jnp.asarray(weight, x_t.dtype), x_t)
            # The variance is that of the conditional half.
            with_text, variance = split_variance(with_text, x_t.shape[-1])
            without_text, _ = split_variance(without_text, x_t.shape[-1])
            prediction = weight * with_text + (1.0 - weight) * without_text
        return limit(to_x0(parametrization, prediction, x_t, logsnr)), variance

    return VarianceDenoiser(denoise)
