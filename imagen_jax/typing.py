"""Array aliases and the few types that every floor of the house shares."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
from jaxtyping import Array, Bool, Float, UInt8

PRNGKey = jax.Array
Image = Float[Array, "b h w c"]
"""Images in [-1, 1], channels last."""
Uint8Image = UInt8[Array, "b h w 3"]
LogSNR = Float[Array, "*b"]
"""Natural logarithm of the signal-to-noise ratio alpha^2 / sigma^2: a scalar or one per example."""


class TextEmbedding(NamedTuple):
    """Token states of a frozen text encoder.

    Attributes:
      states: [b, l, d] token states; values at masked positions are meaningless and never read.
      mask: [b, l] True at real tokens.
    """

    states: Float[Array, "b l d"]
    mask: Bool[Array, "b l"]


class Conditioning(NamedTuple):
    """All that a U-Net is conditioned on, besides the noise level.

    Attributes:
      text: token states; an example whose mask is all False is unconditional.
      low_res: [b, h, w, 3] low-resolution image, already upsampled to the network's resolution
        and corrupted by noise conditioning augmentation; None for the base stage.
      aug_level: [b] amount of that corruption in [0, 1]; None for the base stage.
      text_cache: what the network has computed from the text, so that the steps of a sampler need
        not; None where it is to be computed.
    """

    text: TextEmbedding
    low_res: Image | None = None
    aug_level: Float[Array, " b"] | None = None
    text_cache: Any = None


Network = Callable[[Image, LogSNR, Conditioning], Image]
"""(x_t, logsnr [b], conditioning) -> prediction, in the stage's parametrisation."""
Denoiser = Callable[[Image, LogSNR], Image]
"""(x_t, logsnr [] or [b]) -> estimate of the clean image x0."""
