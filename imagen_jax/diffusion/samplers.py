"""Samplers: rules for one step, as frozen dataclasses of their options, and the loop over them.

SAMPLERS names them. A config, the command line and the record in an image's file write a sampler
as text, "heun" or "ddim(eta=0.5)", which parse_sampler reads. A sampler of your own is a frozen
dataclass with the method `step` of transitions.Sampler and an entry in SAMPLERS.
"""

from __future__ import annotations

import ast
import dataclasses
import math
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from imagen_jax.config import build
from imagen_jax.diffusion.guidance import VarianceDenoiser
from imagen_jax.diffusion.noise import per_example_keys
from imagen_jax.diffusion.transitions import (
    Draw,
    Sampler,
    State,
    Transition,
    check_grid,
    move,
    path_transitions,
    renoise,
    start_state,
    transfer,
)
from imagen_jax.errors import UserError
from imagen_jax.typing import Denoiser, Image, PRNGKey


@dataclasses.dataclass(frozen=True)
class DDIM:
    """DDIM: Song et al. 2021, equations (12) and (16); equation (17) as it is. Order 1.

    Attributes:
      eta: share of fresh noise in [0, 1]: 0 is deterministic, 1 is DDPM.
    """

    eta: float = 0.0

    def __post_init__(self) -> None:
        if not 0.0 <= self.eta <= 1.0:
            raise UserError(f"eta must be in [0, 1], got {self.eta}")

    def step(self, denoise: Denoiser, state: State, tr: Transition, draw: Draw) -> State:
        """See transitions.Sampler."""
        x0 = denoise(state.x, tr.t)
        noise = draw() if self.eta > 0.0 else None
        return State(transfer(state.x, x0, tr.t, tr.s, self.eta, noise), x0, 0.5 * (tr.s - tr.t))


@dataclasses.dataclass(frozen=True)
class DDPM:
    """Ancestral sampling: Ho et al. 2020, algorithm 2; equation (17) with eta = 1. Order 1.

    Attributes:
      variance: variance of the reverse step: "small" is the posterior's
        sigma_{t|s}^2 sigma_s^2 / sigma_t^2, "large" is sigma_{t|s}^2, which Ho et al. call beta;
        a number gamma in [0, 1] is small^(1 - gamma) large^gamma, as in Imagen (Saharia et al.
        2022, appendix A); "learned" is that with the gamma of every pixel that the network
        predicts (Nichol & Dhariwal 2021, equation (15)).
    """

    variance: str | float = "small"

    def __post_init__(self) -> None:
        if self.variance != "learned":
            _ = self._gamma

    @property
    def _gamma(self) -> float:
        known = {"small": 0.0, "large": 1.0}
        if isinstance(self.variance, str) and self.variance in known:
            return known[self.variance]
        if isinstance(self.variance, str) or not 0.0 <= self.variance <= 1.0:
            raise UserError(
                f"variance is {self.variance!r}; choose small, large, learned, or a number in "
                "[0, 1] between small and large"
            )
        return self.variance

    def step(self, denoise: Denoiser, state: State, tr: Transition, draw: Draw) -> State:
        """See transitions.Sampler."""
        learned = self.variance == "learned"
        gamma: jax.Array | float
        if learned:
            x0, gamma = self._learned(denoise, state.x, tr.t)
        else:
            x0, gamma = denoise(state.x, tr.t), self._gamma
        noise = draw()
        if learned or self._gamma > 0.0:
            # sigma_{t|s} in place of sigma_{t|s} sigma_s / sigma_t, to the power of gamma.
            log_ratio = 0.5 * (jax.nn.log_sigmoid(-tr.t) - jax.nn.log_sigmoid(-tr.s))
            noise = jnp.exp(gamma * log_ratio) * noise
        return State(transfer(state.x, x0, tr.t, tr.s, 1.0, noise), x0, 0.5 * (tr.s - tr.t))

    def _learned(self, denoise: Denoiser, x: Image, t: jax.Array) -> tuple[Image, Image]:
        """Return the estimate of x0, and gamma of every pixel."""
        if isinstance(denoise, VarianceDenoiser):
            x0, variance = denoise.with_variance(x, t)
            if variance is not None:
                return x0, 0.5 * (variance + 1.0)
        raise UserError(
            "variance is learned, but this network predicts none; choose small, large, or a number"
        )


@dataclasses.dataclass(frozen=True)
class DPMpp2M:
    """DPM-Solver++ 2M: Lu et al. 2022, algorithm 2; equation (17) with (18). Order 2.

    Attributes:
      sde: SDE-DPM-Solver++ 2M, with eta = 1, in place of the deterministic one.
    """

    sde: bool = False

    def step(self, denoise: Denoiser, state: State, tr: Transition, draw: Draw) -> State:
        """See transitions.Sampler."""
        x0 = denoise(state.x, tr.t)
        h = 0.5 * (tr.s - tr.t)
        # The first step has no history, h = 0: it is of first order.
        slope = jnp.where(state.h > 0.0, 0.5 * h / jnp.where(state.h > 0.0, state.h, 1.0), 0.0)
        extrapolated = x0 + slope * (x0 - state.x0)
        eta, noise = (1.0, draw()) if self.sde else (0.0, None)
        return State(transfer(state.x, extrapolated, tr.t, tr.s, eta, noise), x0, h)


@dataclasses.dataclass(frozen=True)
class Heun:
    """Heun's method with churn: Karras et al. 2022, algorithm 2; equation (17) with (19). Order 2.

    Calls denoise twice per step, once in the last. Its error is small on a "karras" grid; the first
    step of a uniform_t grid, from logsnr -20, is far too long for it.

    Attributes:
      churn: S_churn, total amount of noise put back in; 0 is deterministic.
      churn_min: S_tmin, churn only where sigma / alpha is at least this.
      churn_max: S_tmax, churn only where sigma / alpha is at most this.
      noise_scale: S_noise, standard deviation of the noise that is put back in.
    """

    churn: float = 0.0
    churn_min: float = 0.0
    churn_max: float = math.inf
    noise_scale: float = 1.0

    def __post_init__(self) -> None:
        if not (self.churn >= 0.0 and self.noise_scale >= 0.0):
            raise UserError(
                "churn and noise_scale must not be negative, got "
                f"churn={self.churn}, noise_scale={self.noise_scale}"
            )

    def step(self, denoise: Denoiser, state: State, tr: Transition, draw: Draw) -> State:
        """See transitions.Sampler."""
        x, t = state.x, tr.t
        if self.churn > 0.0:
            gamma = jnp.minimum(self.churn / tr.steps.astype(t.dtype), math.sqrt(2.0) - 1.0)
            sigma = jnp.exp(-0.5 * t)
            churned = (sigma >= self.churn_min) & (sigma <= self.churn_max)
            t = t - 2.0 * jnp.log1p(jnp.where(churned, gamma, 0.0).astype(t.dtype))
            x = renoise(x, tr.t, t, self.noise_scale * draw())
        x0 = denoise(x, t)

        def corrected() -> Image:
            slope = 0.5 * jnp.exp(0.5 * (tr.s - t))
            x0_ahead = denoise(transfer(x, x0, t, tr.s), tr.s)
            return transfer(x, x0 + slope * (x0_ahead - x0), t, tr.s)

        # A true branch: the last step costs one call of the network, not two.
        x_s = jax.lax.cond(tr.last, lambda: x0, corrected)
        return State(x_s, x0, 0.5 * (tr.s - t))


SAMPLERS: dict[str, type[Sampler]] = {
    "ddpm": DDPM,
    "ddim": DDIM,
    "dpmpp_2m": DPMpp2M,
    "heun": Heun,
}


def parse_sampler(text: str) -> Sampler:
    """Return the sampler of a text: a key of SAMPLERS and options, as in "ddim(eta=0.5)".

    Words need no quotes: "ddpm(variance=large)", "dpmpp_2m(sde=true)".

    Raises:
      UserError: an unknown sampler or option, or a value of another type or out of range; says the
        choices.
    """
    name, bracket, options = text.partition("(")
    kind = SAMPLERS.get(name.strip())
    if kind is None:
        raise UserError(f"sampler is {text!r}; choices: {', '.join(map(_described, SAMPLERS))}")
    try:
        call = ast.parse(f"f({options}" if bracket else "f()", mode="eval").body
        if not isinstance(call, ast.Call) or call.args:
            raise SyntaxError("not NAME(OPTION=VALUE, ...)")
        given = {str(word.arg): _value(word.value) for word in call.keywords}
    except (SyntaxError, ValueError) as error:
        raise UserError(f"sampler {text!r} is not of the form {_described(name)}") from error
    return build(kind, given, f"sampler {name}")


def format_sampler(sampler: Sampler) -> str:
    """Return the text that parse_sampler reads a sampler from, without options at their defaults.

    Raises:
      UserError: its class is not in SAMPLERS.
    """
    names = [name for name, kind in SAMPLERS.items() if kind is type(sampler)]
    if not names:
        raise UserError(f"{sampler!r} is not of a class in SAMPLERS: {', '.join(SAMPLERS)}")
    fields = dataclasses.fields(sampler)  # type: ignore[arg-type]
    values = {field.name: getattr(sampler, field.name) for field in fields}
    given = {f.name: values[f.name] for f in fields if values[f.name] != f.default}
    return _written(names[0], given)


def _value(node: ast.expr) -> Any:
    """Return a literal; a bare word is itself, true and false are Python's, inf is a number."""
    if not isinstance(node, ast.Name):
        return ast.literal_eval(node)
    return {"true": True, "false": False, "inf": math.inf}.get(node.id, node.id)


def _described(name: str) -> str:
    """Return a sampler's name with its options and their defaults."""
    fields = dataclasses.fields(SAMPLERS[name.strip()])  # type: ignore[arg-type]
    return _written(name.strip(), {field.name: field.default for field in fields})


def _written(name: str, options: Mapping[str, Any]) -> str:
    words = ", ".join(f"{option}={str(value).lower() if isinstance(value, bool) else value}"
                      for option, value in options.items())  # fmt: skip
    return f"{name}({words})" if words else name


def sample(
    sampler: Sampler | str,
    denoise: Denoiser,
    x_t: Image,
    grid: Float[Array, " points"],
    key: PRNGKey | None = None,
    *,
    path: np.ndarray | None = None,
    intermediates: bool = False,
) -> jax.Array:
    """Return samples from a starting point, by one lax.scan.

    Args:
      sampler: one of the dataclasses above, or its text, see parse_sampler.
      denoise: (x_t, logsnr []) -> x0.
      x_t: [b, h, w, c] at grid[0]: standard normal noise (noise.initial_noise), or an image noised
        to that level (parametrization.diffuse) to be edited.
      grid: [steps + 1] increasing logsnr, see time_grid. The last step returns the estimate of x0
        itself, without which a little noise would stay in the image.
      key: one key or [b] keys. With [b] keys a sample depends on its own key only, not on the rest
        of the batch nor on the number of devices. None for a deterministic sampler.
      path: [n + 1] positions in the grid, see editing.resampling_path; None for one step after
        another.
      intermediates: also return the estimates of all moves.

    Returns:
      x0 [b, h, w, c]; with intermediates, the estimates [n, b, h, w, c] of all moves, the last of
      which is x0. A NaN spreads within its own example only.

    Raises:
      UserError: an unknown sampler, options out of range, a grid that is not increasing, or noise
        without a key.
    """
    rule = parse_sampler(sampler) if isinstance(sampler, str) else sampler
    check_grid(grid)
    keys = None if key is None else per_example_keys(key, x_t.shape[0])
    goes_back = path is not None and bool((np.diff(path) < 0).any())
    moves = path_transitions(jnp.asarray(grid, x_t.dtype), path)

    def body(state: State, tr: Transition) -> tuple[State, Image | None]:
        state = move(rule, denoise, state, tr, keys, goes_back)
        return state, state.x0 if intermediates else None

    final, estimates = jax.lax.scan(body, start_state(x_t), moves)
    return final.x if estimates is None else estimates
