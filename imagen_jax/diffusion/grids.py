"""Time grids of samplers, as logsnr from noisy to clean."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from imagen_jax.diffusion.options import options_of
from imagen_jax.diffusion.respacing import PROCESS, RESPACINGS, respaced
from imagen_jax.diffusion.schedule import NoiseSchedule
from imagen_jax.errors import UserError


def _uniform_t(schedule: NoiseSchedule, steps: int, t_start: float, end: float | None) -> jax.Array:
    if end is not None:
        return schedule.logsnr(jnp.linspace(t_start, schedule.t(end), steps))
    return schedule.logsnr(t_start * (1.0 - jnp.arange(steps) / steps))


def _uniform_logsnr(
    schedule: NoiseSchedule, steps: int, t_start: float, end: float | None
) -> jax.Array:
    if end is not None:
        return jnp.linspace(schedule.logsnr(t_start), end, steps)
    return jnp.linspace(schedule.logsnr(t_start), schedule.logsnr(0.0), steps + 1)[:-1]


def _karras(
    schedule: NoiseSchedule,
    steps: int,
    t_start: float,
    end: float | None,
    rho: float = 7.0,
    sigma_min: float = 0.002,
    sigma_max: float = 80.0,
) -> jax.Array:
    if not 0.0 < sigma_min < sigma_max or not rho > 0.0:
        raise UserError(
            "0 < sigma_min < sigma_max and rho > 0 must hold, got "
            f"sigma_min={sigma_min}, sigma_max={sigma_max}, rho={rho}"
        )
    # The range of EDM, narrowed to what the network has seen.
    noisiest = jnp.maximum(schedule.logsnr(t_start), -2.0 * math.log(sigma_max))
    cleanest = jnp.minimum(schedule.logsnr(0.0), -2.0 * math.log(sigma_min))
    if end is not None:
        cleanest = jnp.asarray(end)
    first, last = (jnp.exp(-0.5 * logsnr / rho) for logsnr in (noisiest, cleanest))
    fraction = jnp.arange(steps) / max(steps - 1, 1)
    return -2.0 * rho * jnp.log(first + fraction * (last - first))


def _discrete(end: float | None) -> None:
    if end is not None:
        raise UserError(
            f"end_logsnr is {end}; grids of discrete processes, which are those of others, have "
            "their own end: choose uniform_t, uniform_logsnr or karras"
        )


def _trailing(
    schedule: NoiseSchedule, steps: int, t_start: float, end: float | None, train_steps: int
) -> jax.Array:
    _discrete(end)
    total = t_start * train_steps
    indices = jnp.round(total - jnp.arange(steps) * (total / steps)) - 1
    return schedule.logsnr(jnp.asarray((indices + 1) / train_steps))


def _leading(
    schedule: NoiseSchedule, steps: int, t_start: float, end: float | None, train_steps: int
) -> jax.Array:
    _discrete(end)
    stride = int(t_start * train_steps) // steps
    indices = stride * np.arange(steps - 1, -1, -1)
    return schedule.logsnr(jnp.asarray((indices + 1) / train_steps))


def _respaced(
    schedule: NoiseSchedule, steps: int, t_start: float, end: float | None, *, name: str
) -> jax.Array:
    _discrete(end)
    taken = respaced(RESPACINGS[name])
    if steps != len(taken):
        raise UserError(f"the time grid {name!r} has {len(taken)} steps; {steps} were asked for")
    return schedule.logsnr(jnp.asarray(t_start * (np.asarray(taken) + 1) / PROCESS))


TIME_GRIDS: dict[str, Callable[..., jax.Array]] = {
    "uniform_t": _uniform_t,
    "uniform_logsnr": _uniform_logsnr,
    "karras": _karras,
    "trailing": _trailing,
    "leading": _leading,
    **{name: functools.partial(_respaced, name=name) for name in RESPACINGS},
}


def time_grid(
    schedule: NoiseSchedule,
    steps: int,
    kind: str,
    t_start: float = 1.0,
    end_logsnr: float | None = None,
    *,
    rho: float | None = None,
    sigma_min: float | None = None,
    sigma_max: float | None = None,
    train_steps: int | None = None,
) -> Float[Array, "{steps}+1"]:
    """Return the noise levels of a sampler with the given number of steps.

    Step i goes from grid[i] to grid[i + 1]; the last step returns the estimate of x0, so the last
    entry, the clean end of the schedule, is never given to the network.

    Kinds:
      uniform_t: t = t_start (1 - i / steps).
      uniform_logsnr: equidistant logsnr, the natural grid of DPM-Solver++.
      karras: Karras et al. 2022, eq. (5), in sigma / alpha = exp(-logsnr / 2); by default rho = 7,
        sigma_min = 0.002, sigma_max = 80, narrowed to the range of the schedule.
      trailing, leading: as uniform_t but on the times k / train_steps of a discrete process (by
        default 1000): Lin et al. 2024, table 2. leading does not start at t_start: it is here
        to reproduce others' results.
      fast27, smart50, super100, ...: the steps of a discrete process that a respacing takes, see
        diffusion.respacing; `steps` must be their number.

    Args:
      schedule: noise schedule.
      steps: at least 1.
      kind: one of TIME_GRIDS.
      t_start: time of the first entry in (0, 1]; below 1 to start from a noised image.
      end_logsnr: noise level of the last call of the network, grid[steps - 1], in place of one that
        follows from the number of steps: more steps then never ask a network about cleaner levels
        than those that it has learned. None is the kind's own spacing, towards the clean end of the
        schedule; so is a level beyond that end, or noisier than t_start, which an edit may be. A
        single step is at t_start.
      rho, sigma_min, sigma_max: options of karras.
      train_steps: option of trailing and leading.

    Returns:
      [steps + 1] increasing logsnr.

    Raises:
      UserError: unknown kind, steps, t_start, end_logsnr or an option out of range, or a grid that
        they make too fine for the schedule or for float32.
    """
    if kind not in TIME_GRIDS:
        raise UserError(f"unknown time grid {kind!r}; choose from {sorted(TIME_GRIDS)}")
    if steps < 1:
        raise UserError(f"steps must be at least 1, got {steps}")
    if not 0.0 < t_start <= 1.0:
        raise UserError(f"t_start must be in (0, 1], got {t_start}")
    options = options_of(
        f"time grid {kind!r}", TIME_GRIDS[kind], rho=rho, sigma_min=sigma_min, sigma_max=sigma_max,
        train_steps=train_steps,
    )  # fmt: skip
    if kind in ("trailing", "leading"):
        times = t_start * options.setdefault("train_steps", 1000)
        if steps > times:
            raise UserError(f"steps={steps} exceeds the {times:g} times of a {kind} grid")
    # Known values also inside a jitted function, so that they can be checked there.
    with jax.ensure_compile_time_eval():
        noisiest, start, cleanest = (float(schedule.logsnr(t)) for t in (1.0, t_start, 0.0))
        if end_logsnr is not None and end_logsnr <= noisiest:
            raise UserError(
                f"end_logsnr is {end_logsnr}; on {schedule} it must be above {noisiest:g}"
            )
        if end_logsnr is not None and not start < end_logsnr < cleanest:
            end_logsnr = None
        noisy = TIME_GRIDS[kind](schedule, steps, t_start, end_logsnr, **options)
        grid = jnp.append(noisy, schedule.logsnr(0.0))
        if not bool(jnp.all(jnp.diff(grid) > 0.0)):
            raise UserError(
                f"a {kind} grid of {steps} steps from t_start={t_start} with options {options} is "
                f"not increasing in logsnr on {schedule}: {grid}"
            )
    return grid
