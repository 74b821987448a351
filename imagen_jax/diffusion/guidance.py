"""Classifier-free guidance and thresholding: from a network to a denoiser.

A denoiser is a function (x_t, logsnr) -> x0 that no longer knows that text exists.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from imagen_jax.diffusion.parametrization import check_parametrization, expand_to, to_x0
from imagen_jax.typing import Conditioning, Denoiser, Image, LogSNR, Network, TextEmbedding

Guidance = float | jax.Array | Callable[[jax.Array], jax.Array]
"""A weight, one weight per example [b], or a function from logsnr [b] to weights [b]."""


@dataclasses.dataclass(frozen=True)
class IntervalGuidance:
    """Weight inside an interval of logsnr, 1 (off) outside: Kynkaanniemi et al. 2024.

    Attributes:
      weight: guidance weight inside.
      logsnr_low: noisier than this is not guided.
      logsnr_high: cleaner than this is not guided.
    """

    weight: float
    logsnr_low: float
    logsnr_high: float

    def __post_init__(self) -> None:
        if not self.logsnr_low < self.logsnr_high:
            raise ValueError(
                "logsnr_low must be below logsnr_high, got "
                f"logsnr_low={self.logsnr_low}, logsnr_high={self.logsnr_high}"
            )

    def __call__(self, logsnr: LogSNR) -> jax.Array:
        inside = (logsnr >= self.logsnr_low) & (logsnr <= self.logsnr_high)
        return jnp.where(inside, self.weight, 1.0)


def static_threshold(x0: Image) -> Image:
    """Clips to [-1, 1]: Saharia et al. 2022, section 2.3."""
    return jnp.clip(x0, -1.0, 1.0)


def absolute_percentile(x0: jax.Array, percentile: float) -> Float[Array, "b"]:
    """Percentile of |x0| of each example over its other axes, linear between order statistics.

    Args:
      x0: [b, ...].
      percentile: in (0, 100].

    Raises:
      ValueError: percentile out of range.
    """
    if not 0.0 < percentile <= 100.0:
        raise ValueError(f"percentile must be in (0, 100], got {percentile}")
    ordered = jnp.sort(jnp.abs(x0).reshape(x0.shape[0], -1), axis=1)
    # In Python's double precision: float32 cannot index a picture of 1024 x 1024 x 3.
    position = (ordered.shape[1] - 1) * percentile / 100.0
    below = min(int(position), ordered.shape[1] - 1)
    above = min(below + 1, ordered.shape[1] - 1)
    fraction = position - below
    return ordered[:, below] + fraction * (ordered[:, above] - ordered[:, below])


def dynamic_threshold(x0: Image, percentile: float, cap: float | None = None) -> Image:
    """Clips to [-s, s] and divides by s: Saharia et al. 2022, section 2.3, equation (15).

    s is the percentile of |x0| over all pixels and channels of an example, at least 1.

    Args:
      x0: [b, h, w, c] estimates of clean pictures.
      percentile: in (0, 100], for example 99.5.
      cap: upper bound of s, at least 1; None for no bound.

    Raises:
      ValueError: percentile or cap out of range.
    """
    if cap is not None and not cap >= 1.0:
        raise ValueError(f"cap must be at least 1 or None, got {cap}")
    scale = jnp.maximum(absolute_percentile(x0, percentile), 1.0)
    if cap is not None:
        scale = jnp.minimum(scale, cap)
    scale = expand_to(scale, x0)
    return jnp.clip(x0, -scale, scale) / scale


@dataclasses.dataclass(frozen=True)
class DynamicThreshold:
    """dynamic_threshold with its numbers, to hand to guided_denoiser.

    Attributes:
      percentile: in (0, 100].
      cap: upper bound of the divisor, at least 1, or None.
    """

    percentile: float
    cap: float | None = None

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
      ValueError: negative has another batch size or width than conditional.
    """
    text = conditional.text
    if negative is None:
        other = TextEmbedding(jnp.zeros_like(text.states), jnp.zeros_like(text.mask))
    else:
        batch, _, width = text.states.shape
        if negative.states.shape[0] not in (1, batch) or negative.states.shape[2] != width:
            raise ValueError(
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
        conditional,
        conditional._replace(text=other),
    )


def guided_denoiser(
    network: Network,
    conditional: Conditioning,
    guidance: Guidance,
    parametrization: str,
    threshold: str | Callable[[Image], Image],
    negative: TextEmbedding | None = None,
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
      parametrization: what the network predicts, one of PARAMETRIZATIONS.
      threshold: one of THRESHOLDS ("dynamic" has the percentile 99.5), or a function of x0 such as
        DynamicThreshold(percentile=99.0, cap=4.0).
      negative: text to be guided away from, in place of no text.

    Returns:
      (x_t [b, h, w, c], logsnr [] or [b]) -> x0 [b, h, w, c] in x_t's dtype.

    Raises:
      ValueError: unknown parametrization or threshold, or negative text that does not fit.
    """
    check_parametrization(parametrization)
    if isinstance(threshold, str):
        if threshold not in THRESHOLDS:
            raise ValueError(f"unknown threshold {threshold!r}; choose from {sorted(THRESHOLDS)}")
        threshold = THRESHOLDS[threshold]
    limit = threshold
    unguided = isinstance(guidance, (int, float)) and guidance == 1
    conditioning = conditional if unguided else stack_conditioning(conditional, negative)

    def denoise(x_t: Image, logsnr: LogSNR) -> Image:
        logsnr = jnp.broadcast_to(jnp.asarray(logsnr, x_t.dtype), x_t.shape[:1])
        if unguided:
            prediction = network(x_t, logsnr, conditioning).astype(x_t.dtype)
        else:
            both = network(
                jnp.concatenate([x_t, x_t]), jnp.concatenate([logsnr, logsnr]), conditioning
            ).astype(x_t.dtype)
            with_text, without_text = jnp.split(both, 2)
            weight = guidance(logsnr) if callable(guidance) else guidance
            weight = expand_to(jnp.asarray(weight, x_t.dtype), x_t)
            prediction = weight * with_text + (1.0 - weight) * without_text
        return limit(to_x0(parametrization, prediction, x_t, logsnr))

    return denoise
