"""Training loss: which times are drawn, how errors are weighted, and what is reported.

All weightings are defined once, as the logarithm of a weight on the error of x0, and moved to the
network's own space by equations (10) to (12) of imagen_jax/diffusion/__init__.py. Logarithms keep
them exact where SNR itself would overflow or vanish.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from imagen_jax.diffusion.options import options_of
from imagen_jax.diffusion.parametrization import (
    check_parametrization,
    diffuse,
    split_variance,
    target,
)
from imagen_jax.diffusion.schedule import NoiseSchedule
from imagen_jax.errors import UserError
from imagen_jax.typing import Conditioning, Image, LogSNR, Network, PRNGKey


class DiffusionLoss(NamedTuple):
    """Losses of a batch.

    Attributes:
      per_example: [b] weight * mean squared error: average it and minimise it.
      mse: [b] unweighted mean squared error in the network's own space.
      logsnr: [b] noise level that each example was given.
    """

    per_example: Float[Array, "b"]
    mse: Float[Array, "b"]
    logsnr: Float[Array, "b"]


def _uniform(key: PRNGKey, batch_size: int) -> jax.Array:
    return jax.random.uniform(key, (batch_size,))


def _stratified(key: PRNGKey, batch_size: int) -> jax.Array:
    # One offset for the whole batch: each t is uniform by itself, together they are equidistant.
    offset = jax.random.uniform(key)
    return jnp.mod(offset + jnp.arange(batch_size) / batch_size, 1.0)


def _logit_normal(
    key: PRNGKey, batch_size: int, mean: float = 0.0, scale: float = 1.0
) -> jax.Array:
    return jax.nn.sigmoid(mean + scale * jax.random.normal(key, (batch_size,)))


TIME_SAMPLING: dict[str, Callable[..., jax.Array]] = {
    "uniform": _uniform,
    "stratified": _stratified,
    "logit_normal": _logit_normal,
}


def sample_times(
    key: PRNGKey,
    batch_size: int,
    method: str = "uniform",
    *,
    mean: float | None = None,
    scale: float | None = None,
) -> Float[Array, "b"]:
    """Times of a training batch in [0, 1].

    Args:
      key: a single key, the same on every host: the times of the global batch are drawn together.
      batch_size: size of the global batch.
      method: "uniform" independent; "stratified" (Kingma et al. 2021, VDM, appendix I.1) is
        mod(u + i / b, 1) with one u, which lowers the variance of the mean loss; "logit_normal"
        (Esser et al. 2024, equation (19)) is sigmoid(mean + scale n).
      mean, scale: options of logit_normal, 0 and 1 by default.

    Raises:
      UserError: unknown method, or an option that it does not have.
    """
    if method not in TIME_SAMPLING:
        raise UserError(f"unknown time sampling {method!r}; choose from {sorted(TIME_SAMPLING)}")
    sampling = TIME_SAMPLING[method]
    options = options_of(f"time sampling {method!r}", sampling, mean=mean, scale=scale)
    return sampling(key, batch_size, **options)


def _eps_weight(logsnr: jax.Array) -> jax.Array:
    return logsnr


def _v_weight(logsnr: jax.Array) -> jax.Array:
    return jax.nn.softplus(logsnr)


def _x0_weight(logsnr: jax.Array) -> jax.Array:
    return jnp.zeros_like(logsnr)


def _min_snr_weight(logsnr: jax.Array, gamma: float = 5.0) -> jax.Array:
    return jnp.minimum(logsnr, math.log(gamma))


def _sigmoid_weight(logsnr: jax.Array, bias: float = -3.0) -> jax.Array:
    return logsnr + jax.nn.log_sigmoid(bias - logsnr)


def _edm_weight(logsnr: jax.Array, sigma_data: float = 0.5) -> jax.Array:
    return jnp.logaddexp(logsnr, -2.0 * math.log(sigma_data))


WEIGHTINGS: dict[str, Callable[..., jax.Array]] = {
    "eps": _eps_weight,
    "v": _v_weight,
    "x0": _x0_weight,
    "min_snr": _min_snr_weight,
    "sigmoid": _sigmoid_weight,
    "edm": _edm_weight,
}


def loss_weight(
    name: str,
    logsnr: LogSNR,
    kind: str,
    *,
    gamma: float | None = None,
    bias: float | None = None,
    sigma_data: float | None = None,
) -> jax.Array:
    """Weight on the squared error of a network's own prediction: equations (10) to (12).

    As weights on the error of x0 these are, with SNR = exp(logsnr):
      eps: SNR, so the loss is the plain error of eps (Saharia et al. 2022, equation (1)).
      v: SNR + 1, the plain error of v. x0: 1, the plain error of x0.
      min_snr: min(SNR, gamma), by default gamma = 5 (Hang et al. 2023); thus min(1, gamma / SNR)
        for eps and min(SNR, gamma) / (SNR + 1) for v.
      sigmoid: SNR sigmoid(bias - logsnr), by default bias = -3 (Hoogeboom et al. 2024, SiD2);
        the bias depends on resolution. SiD2's loss is an integral over logsnr: it needs over_logsnr
        of diffusion_loss as well.
      edm: SNR + 1 / sigma_data^2, by default sigma_data = 0.5 (Karras et al. 2022, table 1).

    Args:
      name: one of WEIGHTINGS.
      logsnr: [b] noise levels.
      kind: the network's parametrization.
      gamma: option of min_snr.
      bias: option of sigmoid.
      sigma_data: option of edm.

    Returns:
      Weights of logsnr's shape, positive and finite in float32 for logsnr in [-20, 20].

    Raises:
      UserError: unknown name or kind, or an option that the weighting does not have.
    """
    check_parametrization(kind)
    if name not in WEIGHTINGS:
        raise UserError(f"unknown loss weighting {name!r}; choose from {sorted(WEIGHTINGS)}")
    logsnr = jnp.asarray(logsnr)
    weighting = WEIGHTINGS[name]
    options = options_of(
        f"loss weighting {name!r}", weighting, gamma=gamma, bias=bias, sigma_data=sigma_data
    )
    log_weight = weighting(logsnr, **options)
    if kind == "eps":
        log_weight = log_weight - logsnr
    elif kind == "v":
        log_weight = log_weight + jax.nn.log_sigmoid(-logsnr)
    return jnp.exp(log_weight)


def diffusion_loss(
    network: Network,
    x0: Image,
    conditioning: Conditioning,
    key: PRNGKey,
    schedule: NoiseSchedule,
    parametrization: str,
    weighting: str,
    time_sampling: str,
    weighting_options: Mapping[str, Any] | None = None,
    time_options: Mapping[str, Any] | None = None,
    over_logsnr: bool = False,
) -> DiffusionLoss:
    """Weighted denoising error of a batch: equations (1), (4) and (9).

    Args:
      network: (x_t, logsnr [b], conditioning) -> prediction; a variance behind it is not trained.
      x0: [b, h, w, c] clean images in [-1, 1].
      conditioning: given to the network as it is; dropping of text happens before.
      key: a single key for times and noise of the global batch.
      schedule: noise schedule.
      parametrization: the network's prediction, one of PARAMETRIZATIONS.
      weighting: one of WEIGHTINGS.
      time_sampling: one of TIME_SAMPLING.
      weighting_options: gamma, bias or sigma_data of the weighting.
      time_options: mean and scale of logit_normal.
      over_logsnr: also multiply by -dlogsnr/dt, equation (13): with uniform or stratified times the
        expected loss is then the integral of the weighted error over logsnr, whatever the schedule
        (Kingma and Gao 2023, section 2).

    Raises:
      UserError: an unknown choice, or over_logsnr with times that are not uniform.
        NaN in x0 is not caught: it shows in the loss.
    """
    if over_logsnr and time_sampling not in ("uniform", "stratified"):
        raise UserError(
            f"over_logsnr needs time_sampling 'uniform' or 'stratified', got {time_sampling!r}"
        )
    time_key, noise_key = jax.random.split(key)
    t = sample_times(time_key, x0.shape[0], time_sampling, **(time_options or {}))
    logsnr = schedule.logsnr(t)
    eps = jax.random.normal(noise_key, x0.shape, x0.dtype)
    x_t = diffuse(x0, eps, logsnr)
    output = network(x_t, logsnr, conditioning).astype(x0.dtype)
    prediction, _ = split_variance(output, x0.shape[-1])
    error = target(parametrization, x0, eps, logsnr) - prediction
    mse = jnp.mean(jnp.square(error), axis=tuple(range(1, x0.ndim)))
    weight = loss_weight(weighting, logsnr, parametrization, **(weighting_options or {}))
    if over_logsnr:
        weight = weight * schedule.rate(t)
    return DiffusionLoss(per_example=weight * mse, mse=mse, logsnr=logsnr)


def loss_by_logsnr_bin(
    per_example: Float[Array, "b"], logsnr: Float[Array, "b"], edges: Float[Array, " edges"]
) -> tuple[Float[Array, "edges-1"], Float[Array, "edges-1"]]:
    """Mean loss and number of examples per bin of logsnr.

    Bins are closed on the left and the last one on both sides, as numpy.histogram's; examples
    outside the edges are not counted. Sums of mean * count over batches give the mean of a run.

    Args:
      per_example: [b] losses.
      logsnr: [b] noise levels.
      edges: [bins + 1] increasing.

    Returns:
      (mean, count), each [bins]; the mean of an empty bin is 0.
    """
    edges = jnp.asarray(edges)
    last = jnp.arange(edges.shape[0] - 1) == edges.shape[0] - 2
    above = logsnr[:, None] >= edges[:-1]
    below = jnp.where(last, logsnr[:, None] <= edges[1:], logsnr[:, None] < edges[1:])
    inside = above & below
    count = jnp.sum(inside, axis=0).astype(per_example.dtype)
    total = jnp.sum(jnp.where(inside, per_example[:, None], 0.0), axis=0)
    return total / jnp.maximum(count, 1.0), count
