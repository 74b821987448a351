"""Samplers over denoise(x_t, logsnr) -> x0, each one lax.scan.

All share their arguments:
  denoise: (x_t, logsnr []) -> x0.
  x_t: [b, h, w, c] starting point at grid[0], standard normal noise (see noise.initial_noise).
  grid: [steps + 1] increasing logsnr, see time_grid. The last step returns the estimate of x0
    itself, without which a little noise would stay in the image.
  key: one key or [b] keys. With [b] keys a sample depends on its own key only, not on the rest of
    the batch nor on the number of devices. None for a deterministic sampler.
  progress: called with the index of each step, unordered, from the running computation.
  intermediates: also return the estimates of x0 of all steps.
All raise UserError for options out of range, for a grid that is not increasing, and for noise
without a key. NaN is not caught: it spreads within its own example only.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from imagen_jax.diffusion.grids import TIME_GRIDS, time_grid
from imagen_jax.diffusion.transitions import (
    Draw,
    Progress,
    Samples,
    State,
    Step,
    Transition,
    check_grid,
    path_transitions,
    renoise,
    run_transitions,
    transfer,
)
from imagen_jax.errors import UserError
from imagen_jax.typing import Denoiser, Image, PRNGKey

__all__ = [
    "SAMPLERS",
    "STEP_RULES",
    "TIME_GRIDS",
    "Samples",
    "check_sampler",
    "ddim",
    "ddpm",
    "dpmpp_2m",
    "dpmpp_2m_sde",
    "heun",
    "sample",
    "time_grid",
]


def ddim_rule(steps: int, eta: float = 0.0) -> Step:
    """Equation (17) as it is."""
    if not 0.0 <= eta <= 1.0:
        raise UserError(f"eta must be in [0, 1], got {eta}")

    def step(denoise: Denoiser, state: State, tr: Transition, draw: Draw) -> State:
        x0 = denoise(state.x, tr.t)
        noise = draw() if eta > 0.0 else None
        return State(transfer(state.x, x0, tr.t, tr.s, eta, noise), x0, 0.5 * (tr.s - tr.t))

    return step


def ddpm_rule(steps: int, variance: str = "small") -> Step:
    """Equation (17) with eta = 1, and with either variance of the noise."""
    if variance not in ("small", "large"):
        raise UserError(f"unknown variance {variance!r}; choose from ('small', 'large')")

    def step(denoise: Denoiser, state: State, tr: Transition, draw: Draw) -> State:
        x0 = denoise(state.x, tr.t)
        noise = draw()
        if variance == "large":
            # sigma_{t|s} in place of sigma_{t|s} sigma_s / sigma_t.
            log_ratio = 0.5 * (jax.nn.log_sigmoid(-tr.t) - jax.nn.log_sigmoid(-tr.s))
            noise = jnp.exp(log_ratio) * noise
        return State(transfer(state.x, x0, tr.t, tr.s, 1.0, noise), x0, 0.5 * (tr.s - tr.t))

    return step


def dpmpp_2m_rule(steps: int, eta: float = 0.0) -> Step:
    """Equation (17) with the extrapolated estimate of equation (18)."""

    def step(denoise: Denoiser, state: State, tr: Transition, draw: Draw) -> State:
        x0 = denoise(state.x, tr.t)
        h = 0.5 * (tr.s - tr.t)
        # The first step has no history, h = 0: it is of first order.
        slope = jnp.where(state.h > 0.0, 0.5 * h / jnp.where(state.h > 0.0, state.h, 1.0), 0.0)
        extrapolated = x0 + slope * (x0 - state.x0)
        noise = draw() if eta > 0.0 else None
        return State(transfer(state.x, extrapolated, tr.t, tr.s, eta, noise), x0, h)

    return step


def dpmpp_2m_sde_rule(steps: int) -> Step:
    """Equation (17) with eta = 1 and the extrapolated estimate of equation (18)."""
    return dpmpp_2m_rule(steps, eta=1.0)


def heun_rule(
    steps: int,
    churn: float = 0.0,
    churn_min: float = 0.0,
    churn_max: float = math.inf,
    noise_scale: float = 1.0,
) -> Step:
    """Equation (17) with the corrected estimate of equation (19), after churn."""
    if not (churn >= 0.0 and noise_scale >= 0.0):
        raise UserError(
            "churn and noise_scale must not be negative, got "
            f"churn={churn}, noise_scale={noise_scale}"
        )
    gamma = min(churn / steps, math.sqrt(2.0) - 1.0)

    def step(denoise: Denoiser, state: State, tr: Transition, draw: Draw) -> State:
        x, t = state.x, tr.t
        if gamma > 0.0:
            sigma = jnp.exp(-0.5 * t)
            churned = (sigma >= churn_min) & (sigma <= churn_max)
            t = t - 2.0 * jnp.log1p(jnp.where(churned, gamma, 0.0).astype(t.dtype))
            x = renoise(x, tr.t, t, noise_scale * draw())
        x0 = denoise(x, t)

        def corrected() -> Image:
            slope = 0.5 * jnp.exp(0.5 * (tr.s - t))
            x0_ahead = denoise(transfer(x, x0, t, tr.s), tr.s)
            return transfer(x, x0 + slope * (x0_ahead - x0), t, tr.s)

        # A true branch: the last step costs one call of the network, not two.
        x_s = jax.lax.cond(tr.last, lambda: x0, corrected)
        return State(x_s, x0, 0.5 * (tr.s - t))

    return step


STEP_RULES: dict[str, Callable[..., Step]] = {
    "ddpm": ddpm_rule,
    "ddim": ddim_rule,
    "dpmpp_2m": dpmpp_2m_rule,
    "dpmpp_2m_sde": dpmpp_2m_sde_rule,
    "heun": heun_rule,
}


def _run(
    step_rule: Callable[..., Step],
    denoise: Denoiser,
    x_t: Image,
    grid: jax.Array,
    key: PRNGKey | None,
    progress: Progress | None,
    intermediates: bool,
    **options: Any,
) -> Samples:
    check_grid(grid)
    steps = grid.shape[0] - 1
    transitions = path_transitions(grid, np.arange(steps + 1))
    step = step_rule(steps, **options)
    return run_transitions(step, denoise, x_t, transitions, key, progress, intermediates)


def ddpm(
    denoise: Denoiser,
    x_t: Image,
    grid: Float[Array, "steps+1"],
    key: PRNGKey,
    *,
    variance: str = "small",
    progress: Progress | None = None,
    intermediates: bool = False,
) -> Samples:
    """Ancestral sampling: Ho et al. 2020, algorithm 2; equation (17) with eta = 1.

    Args:
      variance: of the reverse step: "small" is the posterior's sigma_{t|s}^2 sigma_s^2 / sigma_t^2,
        "large" is sigma_{t|s}^2, which Ho et al. call beta.
    """
    return _run(ddpm_rule, denoise, x_t, grid, key, progress, intermediates, variance=variance)


def ddim(
    denoise: Denoiser,
    x_t: Image,
    grid: Float[Array, "steps+1"],
    key: PRNGKey | None = None,
    *,
    eta: float = 0.0,
    progress: Progress | None = None,
    intermediates: bool = False,
) -> Samples:
    """DDIM: Song et al. 2021, equations (12) and (16); equation (17). Order 1.

    Args:
      eta: share of fresh noise in [0, 1]: 0 is deterministic, 1 is ddpm.
    """
    return _run(ddim_rule, denoise, x_t, grid, key, progress, intermediates, eta=eta)


def dpmpp_2m(
    denoise: Denoiser,
    x_t: Image,
    grid: Float[Array, "steps+1"],
    key: PRNGKey | None = None,
    *,
    progress: Progress | None = None,
    intermediates: bool = False,
) -> Samples:
    """DPM-Solver++ 2M: Lu et al. 2022, algorithm 2; equation (18). Deterministic, order 2."""
    return _run(dpmpp_2m_rule, denoise, x_t, grid, key, progress, intermediates)


def dpmpp_2m_sde(
    denoise: Denoiser,
    x_t: Image,
    grid: Float[Array, "steps+1"],
    key: PRNGKey,
    *,
    progress: Progress | None = None,
    intermediates: bool = False,
) -> Samples:
    """SDE-DPM-Solver++ 2M: Lu et al. 2022; equation (18) with eta = 1."""
    return _run(dpmpp_2m_sde_rule, denoise, x_t, grid, key, progress, intermediates)


def heun(
    denoise: Denoiser,
    x_t: Image,
    grid: Float[Array, "steps+1"],
    key: PRNGKey | None = None,
    *,
    churn: float = 0.0,
    churn_min: float = 0.0,
    churn_max: float = math.inf,
    noise_scale: float = 1.0,
    progress: Progress | None = None,
    intermediates: bool = False,
) -> Samples:
    """Heun's method with churn: Karras et al. 2022, algorithm 2; equation (19). Order 2.

    Calls denoise twice per step, once in the last. Its error is small on a "karras" grid; the first
    step of a uniform_t grid, from logsnr -20, is far too long for it.

    Args:
      churn: S_churn, total amount of noise put back in; 0 is deterministic.
      churn_min: S_tmin, churn only where sigma / alpha is at least this.
      churn_max: S_tmax, churn only where sigma / alpha is at most this.
      noise_scale: S_noise, standard deviation of the noise that is put back in.
    """
    return _run(
        heun_rule,
        denoise,
        x_t,
        grid,
        key,
        progress,
        intermediates,
        churn=churn,
        churn_min=churn_min,
        churn_max=churn_max,
        noise_scale=noise_scale,
    )


SAMPLERS: dict[str, Callable[..., Samples]] = {
    "ddpm": ddpm,
    "ddim": ddim,
    "dpmpp_2m": dpmpp_2m,
    "dpmpp_2m_sde": dpmpp_2m_sde,
    "heun": heun,
}


def check_sampler(name: str) -> None:
    """Raises UserError unless name is one of SAMPLERS."""
    if name not in SAMPLERS:
        raise UserError(f"unknown sampler {name!r}; choose from {sorted(SAMPLERS)}")


def sample(
    name: str,
    denoise: Denoiser,
    noise: Image,
    grid: Float[Array, "steps+1"],
    key: PRNGKey | None = None,
    *,
    progress: Progress | None = None,
    intermediates: bool = False,
    **options: Any,
) -> Samples:
    """Samples with the sampler of a name in SAMPLERS; options are that sampler's own.

    Raises:
      UserError: unknown name, or what the sampler itself raises.
    """
    check_sampler(name)
    return SAMPLERS[name](
        denoise, noise, grid, key, progress=progress, intermediates=intermediates, **options
    )
