"""Variance-preserving noise schedules in continuous time.

t = 0 is clean, t = 1 is noise. A schedule is fixed by its logsnr(t); equation numbers in
parentheses refer to the derivation in imagen_jax/diffusion/__init__.py.

Clipping: every schedule is truncated to logsnr in [logsnr_min, logsnr_max] by rescaling its time,
never by flattening it, so logsnr(t) stays strictly decreasing and invertible and all of alpha,
sigma, 1/alpha, 1/sigma stay finite in float32. At the default limits of -20 and 20 the rescaling
moves t by less than 3e-5 (a shifted cosine schedule by more, about 1e-3 for reference_size 1 of
image_size 32), and the clean end keeps noise of standard deviation 4.5e-5 (1/170 of the distance
between two 8-bit grey levels).
"""

from __future__ import annotations

import dataclasses
import math
from abc import ABC, abstractmethod

import jax
import jax.numpy as jnp
import numpy as np

from imagen_jax.diffusion.options import options_of
from imagen_jax.errors import UserError
from imagen_jax.typing import LogSNR


def alpha_sigma(logsnr: LogSNR) -> tuple[jax.Array, jax.Array]:
    """Signal and noise amplitudes of a variance-preserving process: equation (2).

    alpha^2 = sigmoid(logsnr), sigma^2 = sigmoid(-logsnr). Taken through log_sigmoid, which keeps
    full relative precision in both tails; 1 - alpha^2 would lose all digits near the clean end.

    Args:
      logsnr: any shape, finite.

    Returns:
      (alpha, sigma), both in (0, 1), of logsnr's shape and dtype.
    """
    alpha = jnp.exp(0.5 * jax.nn.log_sigmoid(logsnr))
    sigma = jnp.exp(0.5 * jax.nn.log_sigmoid(-logsnr))
    return alpha, sigma


def _floating(values: jax.Array | float) -> jax.Array:
    return jnp.asarray(values, jnp.result_type(float, values))


@dataclasses.dataclass(frozen=True)
class NoiseSchedule(ABC):
    """A monotone map between time and logsnr. Frozen and hashable: a static argument under jit.

    Attributes:
      logsnr_min: lowest logsnr that is ever produced, at t = 1.
      logsnr_max: highest logsnr that is ever produced, at t = 0.
    """

    logsnr_min: float = -20.0
    logsnr_max: float = 20.0

    def __post_init__(self) -> None:
        if not (
            math.isfinite(self.logsnr_min)
            and math.isfinite(self.logsnr_max)
            and self.logsnr_min < self.logsnr_max
        ):
            raise UserError(
                "logsnr_min must be finite and below logsnr_max, got "
                f"logsnr_min={self.logsnr_min}, logsnr_max={self.logsnr_max}"
            )

    @abstractmethod
    def _logsnr_of(self, t: jax.Array) -> jax.Array:
        """logsnr at floating t in [0, 1]."""

    @abstractmethod
    def _t_of(self, logsnr: jax.Array) -> jax.Array:
        """Inverse of _logsnr_of for floating logsnr within the limits, up to rounding."""

    def logsnr(self, t: jax.Array | float) -> jax.Array:
        """logsnr at times t of any shape in [0, 1]; times outside are clipped to [0, 1]."""
        return self._logsnr_of(jnp.clip(_floating(t), 0.0, 1.0))

    def t(self, logsnr: jax.Array | float) -> jax.Array:
        """Inverse of logsnr: times in [0, 1]; values beyond the schedule's ends map to 0 or 1.

        Ill-conditioned where logsnr(t) is steep: near t = 1 of a cosine schedule, neighbouring
        float32 times are up to 0.004 apart in logsnr.
        """
        within = jnp.clip(_floating(logsnr), self.logsnr_min, self.logsnr_max)
        return jnp.clip(self._t_of(within), 0.0, 1.0)

    def rate(self, t: jax.Array | float) -> jax.Array:
        """-dlogsnr/dt > 0 at times t of any shape in [0, 1]: one over the density of logsnr.

        The density is that of logsnr(t) for t ~ U(0, 1): equation (13).
        """
        t = jnp.clip(_floating(t), 0.0, 1.0)
        return -jax.jvp(self._logsnr_of, (t,), (jnp.ones_like(t),))[1]

    def alpha_sigma(self, t: jax.Array | float) -> tuple[jax.Array, jax.Array]:
        """(alpha, sigma) at times t of any shape in [0, 1]: equation (2)."""
        return alpha_sigma(self.logsnr(t))


@dataclasses.dataclass(frozen=True)
class CosineSchedule(NoiseSchedule):
    """alpha = cos(pi t / 2): Nichol and Dhariwal 2021, equation (17), without its offset.

    logsnr(t) = -2 log tan(pi t / 2), equation (3a).
    """

    @property
    def _shift(self) -> float:
        return 0.0

    def _angles(self) -> tuple[float, float, float]:
        """Angles kept away from 0 and from pi / 2, and the span between them."""
        clean = math.atan(math.exp(-0.5 * (self.logsnr_max - self._shift)))
        noise = math.atan(math.exp(0.5 * (self.logsnr_min - self._shift)))
        return clean, noise, 0.5 * math.pi - clean - noise

    def _logsnr_of(self, t: jax.Array) -> jax.Array:
        clean, noise, span = self._angles()
        # Measured from the nearer end: tan close to pi / 2 would lose three digits in float32.
        from_clean = -2.0 * jnp.log(jnp.tan(clean + span * t))
        from_noise = 2.0 * jnp.log(jnp.tan(noise + span * (1.0 - t)))
        return jnp.where(t < 0.5, from_clean, from_noise) + self._shift

    def _t_of(self, logsnr: jax.Array) -> jax.Array:
        clean, noise, span = self._angles()
        unshifted = logsnr - self._shift
        angle = jnp.arctan(jnp.exp(-0.5 * jnp.abs(unshifted)))
        return jnp.where(unshifted > 0, (angle - clean) / span, 1.0 - (angle - noise) / span)


@dataclasses.dataclass(frozen=True)
class ShiftedCosineSchedule(CosineSchedule):
    """Cosine schedule shifted for resolution: Hoogeboom et al. 2023 (simple diffusion), 3.1.

    logsnr(t) = -2 log tan(pi t / 2) + 2 log(reference_size / image_size), equation (3b): the same
    noise seen after averaging down to reference_size. The limits hold after the shift.

    Attributes:
      image_size: side of the images in pixels.
      reference_size: side of the images for which the plain cosine schedule is right.
    """

    image_size: int = dataclasses.field(kw_only=True)
    reference_size: int = dataclasses.field(kw_only=True)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.image_size < 1 or self.reference_size < 1:
            raise UserError(
                "image_size and reference_size must be at least 1 pixel, got "
                f"image_size={self.image_size}, reference_size={self.reference_size}"
            )

    @property
    def _shift(self) -> float:
        return 2.0 * math.log(self.reference_size / self.image_size)


@dataclasses.dataclass(frozen=True)
class LinearBetaSchedule(NoiseSchedule):
    """Linearly growing beta: Ho et al. 2020 in the limit of Song et al. 2021, equations (32), (33).

    log alpha(t)^2 = -B(t), B(t) = N (beta_min t + (beta_max - beta_min) t^2 / 2), equation (3c),
    with N = beta_steps. logsnr(t) = -log(exp(B) - 1). With Ho et al.'s 1e-4, 0.02 and 1000 this
    follows the product of (1 - beta_i) to 0.07 in logsnr beyond the tenth step, and t = 1 has
    logsnr -10.05.

    Attributes:
      beta_min: first beta of the discrete process.
      beta_max: last beta of the discrete process.
      beta_steps: number of steps of the discrete process.
    """

    beta_min: float = 1e-4
    beta_max: float = 0.02
    beta_steps: int = 1000

    def __post_init__(self) -> None:
        super().__post_init__()
        if not (0.0 < self.beta_min < self.beta_max < 1.0 and self.beta_steps >= 1):
            raise UserError(
                "0 < beta_min < beta_max < 1 and beta_steps >= 1 must hold, got "
                f"beta_min={self.beta_min}, beta_max={self.beta_max}, beta_steps={self.beta_steps}"
            )
        if self.logsnr_max <= -math.log(math.expm1(self._rates()[0] + 0.5 * self._rates()[1])):
            raise UserError(
                f"logsnr_max={self.logsnr_max} is not above the logsnr at t = 1 of this schedule"
            )

    def _rates(self) -> tuple[float, float]:
        """B(t) = start t + slope t^2 / 2."""
        return self.beta_steps * self.beta_min, self.beta_steps * (self.beta_max - self.beta_min)

    def _limits(self) -> tuple[float, float]:
        """Untruncated times of logsnr_max and of logsnr_min (at most 1)."""
        start, slope = self._rates()
        times = []
        for logsnr in (self.logsnr_max, self.logsnr_min):
            integral = math.log1p(math.exp(-logsnr))
            times.append(2 * integral / (start + math.sqrt(start**2 + 2 * slope * integral)))
        return times[0], min(times[1], 1.0)

    def _logsnr_of(self, t: jax.Array) -> jax.Array:
        start, slope = self._rates()
        first, last = self._limits()
        untruncated = first + (last - first) * t
        integral = untruncated * (start + 0.5 * slope * untruncated)
        return -jnp.log(jnp.expm1(integral))

    def _t_of(self, logsnr: jax.Array) -> jax.Array:
        start, slope = self._rates()
        first, last = self._limits()
        integral = jax.nn.softplus(-logsnr)
        # The root of B(t) = integral in the form that does not cancel near t = 0.
        untruncated = 2.0 * integral / (start + jnp.sqrt(start**2 + 2.0 * slope * integral))
        return (untruncated - first) / (last - first)


@dataclasses.dataclass(frozen=True)
class DiscreteCosineSchedule(NoiseSchedule):
    """The discrete cosine process of Nichol and Dhariwal 2021, equation (17), as a table of logsnr.

    alpha_i^2 = prod_j (1 - beta_j), beta_j = min(1 - f(j + 1) / f(j), max_beta), with
    f(j) = cos^2(pi / 2 (j / steps + offset) / (1 + offset)). Step i of 0 ... steps - 1 is at
    t = (i + 1) / steps; between steps logsnr is linear in t, and at t = 0 it is logsnr_max, a level
    that the process itself does not have. This is `squaredcos_cap_v2` of diffusers.

    Attributes:
      steps: steps of the process.
      offset: offset that keeps the first steps from being too small.
      max_beta: highest beta; it holds for the last step alone.
    """

    logsnr_max: float = 12.0
    steps: int = 1000
    offset: float = 0.008
    max_beta: float = 0.999

    def __post_init__(self) -> None:
        super().__post_init__()
        if not (self.steps >= 2 and self.offset >= 0.0 and 0.0 < self.max_beta < 1.0):
            raise UserError(
                "steps must be at least 2, offset at least 0 and max_beta in (0, 1), got "
                f"steps={self.steps}, offset={self.offset}, max_beta={self.max_beta}"
            )
        first, last = self._table()[[1, -1]]
        if not (self.logsnr_min <= last and first < self.logsnr_max):
            raise UserError(
                f"the steps of this process have logsnr from {last:g} to {first:g}: logsnr_min "
                f"must not be above the former, and logsnr_max above the latter, got "
                f"{self.logsnr_min:g} and {self.logsnr_max:g}"
            )

    def _table(self) -> np.ndarray:
        """logsnr at times 0, 1 / steps, ..., 1, in float64."""
        angles = (np.arange(self.steps + 1) / self.steps + self.offset) / (1 + self.offset)
        f = np.cos(0.5 * math.pi * angles) ** 2
        beta = np.minimum(1.0 - f[1:] / f[:-1], self.max_beta)
        log_alpha2 = np.cumsum(np.log1p(-beta))
        logsnr = log_alpha2 - np.log(-np.expm1(log_alpha2))
        return np.concatenate([[self.logsnr_max], logsnr])

    def _knots(self, like: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Times, rounded as i / steps is, and their logsnr."""
        times = np.arange(self.steps + 1, dtype=like.dtype) / like.dtype.type(self.steps)
        return jnp.asarray(times), jnp.asarray(self._table(), like.dtype)

    def _logsnr_of(self, t: jax.Array) -> jax.Array:
        times, logsnr = self._knots(t)
        return jnp.interp(t, times, logsnr)

    def _t_of(self, logsnr: jax.Array) -> jax.Array:
        times, table = self._knots(logsnr)
        return jnp.interp(-logsnr, -table, times)


SCHEDULES: dict[str, type[NoiseSchedule]] = {
    "cosine": CosineSchedule,
    "discrete_cosine": DiscreteCosineSchedule,
    "linear": LinearBetaSchedule,
    "shifted_cosine": ShiftedCosineSchedule,
}


def make_schedule(
    name: str,
    *,
    logsnr_min: float | None = None,
    logsnr_max: float | None = None,
    image_size: int | None = None,
    reference_size: int | None = None,
    beta_min: float | None = None,
    beta_max: float | None = None,
    beta_steps: int | None = None,
    steps: int | None = None,
    offset: float | None = None,
    max_beta: float | None = None,
) -> NoiseSchedule:
    """Return the schedule of a name in SCHEDULES.

    Args:
      name: which one.
      logsnr_min, logsnr_max: range of logsnr; all schedules have them.
      image_size, reference_size: options of shifted_cosine, which needs both.
      beta_min, beta_max, beta_steps: options of linear.
      steps, offset, max_beta: options of discrete_cosine.

    Raises:
      UserError: unknown name, an option that the schedule does not have or one that it lacks, or a
        value out of range.
    """
    if name not in SCHEDULES:
        raise UserError(f"unknown noise schedule {name!r}; choose from {sorted(SCHEDULES)}")
    options = options_of(
        f"noise schedule {name!r}", SCHEDULES[name], logsnr_min=logsnr_min, logsnr_max=logsnr_max,
        image_size=image_size, reference_size=reference_size, beta_min=beta_min,
        beta_max=beta_max, beta_steps=beta_steps, steps=steps, offset=offset, max_beta=max_beta,
    )  # fmt: skip
    try:
        return SCHEDULES[name](**options)
    except TypeError as error:
        raise UserError(f"noise schedule {name!r}: {error}") from error
