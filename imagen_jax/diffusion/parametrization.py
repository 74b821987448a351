"""Parametrizations of a network's prediction: the noise eps, the velocity v, or the clean image x0.

With x_t = alpha x0 + sigma eps, any one of the three and x_t give the other two: equations (4)
to (6) of imagen_jax/diffusion/__init__.py.

Float32: a conversion that divides by alpha (eps to x0) or by sigma (x0 to eps) multiplies the
rounding of x_t by as much, up to 2.2e4 at logsnr -20 or 20. v never divides.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from imagen_jax.diffusion.schedule import alpha_sigma
from imagen_jax.errors import UserError
from imagen_jax.typing import Image, LogSNR

PARAMETRIZATIONS = ("eps", "v", "x0")


def check_parametrization(kind: str) -> None:
    """Raises UserError unless kind is one of PARAMETRIZATIONS."""
    if kind not in PARAMETRIZATIONS:
        raise UserError(f"unknown parametrization {kind!r}; choose from {PARAMETRIZATIONS}")


def expand_to(values: jax.Array, like: jax.Array) -> jax.Array:
    """Values [] or [b] with trailing axes of length 1, so that they broadcast over like [b, ...].

    Raises:
      UserError: values is neither a scalar nor one value per example of like.
    """
    values = jnp.asarray(values)
    if values.ndim == 0:
        return values
    if values.ndim != 1 or values.shape[0] != like.shape[0]:
        raise UserError(
            f"expected a scalar or one value per example of a batch of shape {like.shape}, "
            f"got shape {values.shape}"
        )
    return values.reshape(values.shape + (1,) * (like.ndim - 1))


def amplitudes(logsnr: LogSNR, like: Float[Array, "b *dims"]) -> tuple[jax.Array, jax.Array]:
    """(alpha, sigma) of logsnr [] or [b], shaped to broadcast over like [b, ...]: equation (2)."""
    return alpha_sigma(expand_to(logsnr, like))


def split_variance(output: jax.Array, channels: int) -> tuple[Image, Image | None]:
    """(prediction, v) of a network's output: v is None where it predicts no variance.

    Args:
      output: [b, h, w, c], or [b, h, w, 2c] with v as models.base.BaseNetwork.predicts_variance has
        it.
      channels: c.
    """
    if output.shape[-1] == channels:
        return output, None
    return output[..., :channels], output[..., channels:]


def diffuse(x0: Image, eps: Image, logsnr: LogSNR) -> Image:
    """x_t = alpha x0 + sigma eps: equation (1).

    Args:
      x0: [b, h, w, c] clean images in [-1, 1].
      eps: standard normal noise of the same shape.
      logsnr: [] or [b].
    """
    alpha, sigma = amplitudes(logsnr, x0)
    return alpha * x0 + sigma * eps


def target(kind: str, x0: Image, eps: Image, logsnr: LogSNR) -> Image:
    """Training target of a network of this kind: eps, v = alpha eps - sigma x0 (4), or x0.

    Args:
      kind: one of PARAMETRIZATIONS.
      x0: [b, h, w, c] clean images.
      eps: the noise that was added, of the same shape.
      logsnr: [] or [b].

    Raises:
      UserError: unknown kind.
    """
    check_parametrization(kind)
    if kind == "eps":
        return eps
    if kind == "x0":
        return x0
    alpha, sigma = amplitudes(logsnr, x0)
    return alpha * eps - sigma * x0


def to_x0(kind: str, prediction: Image, x_t: Image, logsnr: LogSNR) -> Image:
    """The estimate of x0 that a prediction implies: equation (5).

    Args:
      kind: one of PARAMETRIZATIONS, the meaning of prediction.
      prediction: [b, h, w, c] output of the network.
      x_t: [b, h, w, c] its noisy input.
      logsnr: [] or [b].

    Raises:
      UserError: unknown kind.
    """
    check_parametrization(kind)
    if kind == "x0":
        return prediction
    alpha, sigma = amplitudes(logsnr, x_t)
    if kind == "eps":
        return (x_t - sigma * prediction) / alpha
    return alpha * x_t - sigma * prediction


def to_eps(kind: str, prediction: Image, x_t: Image, logsnr: LogSNR) -> Image:
    """The estimate of eps that a prediction implies: equation (6). Arguments as in to_x0."""
    check_parametrization(kind)
    if kind == "eps":
        return prediction
    alpha, sigma = amplitudes(logsnr, x_t)
    if kind == "x0":
        return (x_t - alpha * prediction) / sigma
    return sigma * x_t + alpha * prediction


def to_v(kind: str, prediction: Image, x_t: Image, logsnr: LogSNR) -> Image:
    """The estimate of v that a prediction implies: equation (7). Arguments as in to_x0."""
    check_parametrization(kind)
    if kind == "v":
        return prediction
    alpha, sigma = amplitudes(logsnr, x_t)
    if kind == "eps":
        return (prediction - sigma * x_t) / alpha
    return (alpha * x_t - prediction) / sigma
