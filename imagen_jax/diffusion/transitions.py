"""The moves between noise levels, and the one loop that makes them.

Every sampler is one and the same transfer (equation (17) of imagen_jax/diffusion/__init__.py) with
another estimate of x0 and another share of fresh noise.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from imagen_jax.diffusion.noise import example_noise, per_example_keys
from imagen_jax.diffusion.schedule import alpha_sigma
from imagen_jax.errors import UserError
from imagen_jax.typing import Denoiser, Image, PRNGKey


class Samples(NamedTuple):
    """What a sampler returns.

    Attributes:
      x0: [b, h, w, c] samples.
      intermediates: [steps, b, h, w, c] estimates of x0 at every step, or None if not asked for.
    """

    x0: Image
    intermediates: Float[Array, "steps b h w c"] | None


class State(NamedTuple):
    """Carry of the loop.

    Attributes:
      x: [b, h, w, c] noisy image.
      x0: [b, h, w, c] last estimate of the clean image.
      h: [] half the logsnr that the last step covered; 0 where x0 is not part of a history.
    """

    x: Image
    x0: Image
    h: jax.Array


class Transition(NamedTuple):
    """One move, or [n] of them.

    Attributes:
      number: counts moves; every number has its own noise.
      t: logsnr at its start.
      s: logsnr at its end.
      last: True if it ends at the clean image: then the estimate of x0 is its result.
    """

    number: jax.Array
    t: jax.Array
    s: jax.Array
    last: jax.Array


Draw = Callable[[], Image]
Step = Callable[[Denoiser, State, Transition, Draw], State]
Progress = Callable[[Any], None]


def transfer(
    x_t: Image,
    x0: Image,
    t: jax.Array,
    s: jax.Array,
    eta: float = 0.0,
    noise: Image | None = None,
) -> Image:
    """x_s given x_t and an estimate of x0, with a share eta of fresh noise: equation (17).

    Args:
      x_t: [b, ...] at logsnr t.
      x0: [b, ...].
      t: [] logsnr of x_t.
      s: [] logsnr of the result, above t.
      eta: in [0, 1], a Python number: 0 is DDIM, 1 the posterior of ancestral sampling.
      noise: [b, ...] standard normal; needed when eta > 0.
    """
    alpha_s, sigma_s = alpha_sigma(s)
    h = 0.5 * (s - t)
    log_ratio = 0.5 * (jax.nn.log_sigmoid(-s) - jax.nn.log_sigmoid(-t))
    # For eta = 1 in closed form: the general one rounds to log(0) at large h.
    log_keep = -h if eta == 1.0 else 0.5 * jnp.log1p(eta**2 * jnp.expm1(-2.0 * h))
    x_s = jnp.exp(log_ratio + log_keep) * x_t - alpha_s * jnp.expm1(log_keep - h) * x0
    if noise is None:
        return x_s
    return x_s + eta * sigma_s * jnp.sqrt(-jnp.expm1(-2.0 * h)) * noise


def renoise(x_s: Image, s: jax.Array, t: jax.Array, noise: Image) -> Image:
    """x_t ~ q(x_t | x_s), back to a noisier level: equation (16).

    Args:
      x_s: [b, ...] at logsnr s.
      s: [] logsnr of x_s.
      t: [] logsnr of the result, at most s.
      noise: [b, ...] standard normal.
    """
    log_ratio = 0.5 * (jax.nn.log_sigmoid(t) - jax.nn.log_sigmoid(s))
    _, sigma_t = alpha_sigma(t)
    return jnp.exp(log_ratio) * x_s + sigma_t * jnp.sqrt(-jnp.expm1(t - s)) * noise


def check_grid(grid: jax.Array) -> None:
    """Raises UserError for a grid that no sampler can follow.

    The shape is always checked; that values are finite and increasing only where they are known,
    not inside a jitted function.
    """
    if grid.ndim != 1 or grid.shape[0] < 2:
        raise UserError(f"a time grid is a vector of at least 2 entries, got shape {grid.shape}")
    if isinstance(grid, jax.core.Tracer):
        return
    values = np.asarray(grid)
    if not (np.all(np.isfinite(values)) and np.all(np.diff(values) > 0)):
        raise UserError(f"a time grid must be finite and increasing in logsnr, got {values}")


def path_transitions(grid: Float[Array, "steps+1"], path: np.ndarray) -> Transition:
    """The moves along a path [n + 1] of positions in a grid, whose end is the clean image."""
    start, end = path[:-1], path[1:]
    return Transition(
        number=jnp.arange(len(start)),
        t=grid[start],
        s=grid[end],
        last=jnp.asarray(end == grid.shape[0] - 1),
    )


def run_transitions(
    step: Step,
    denoise: Denoiser,
    x: Image,
    transitions: Transition,
    key: PRNGKey | None,
    progress: Progress | None,
    intermediates: bool,
    goes_back: bool = False,
) -> Samples:
    """One scan over transitions [n].

    Args:
      step: the sampler's rule.
      denoise: (x_t, logsnr []) -> x0.
      x: [b, h, w, c] at the first transition's t.
      transitions: [n].
      key: one key or [b] keys; None if no move draws noise.
      progress: called with the number of each move, unordered, from the running computation.
      intermediates: also return all estimates of x0.
      goes_back: whether moves to a noisier level occur; these are made by renoise.

    Raises:
      UserError: a move draws noise and key is None.
    """
    keys = None if key is None else per_example_keys(key, x.shape[0])

    def body(state: State, tr: Transition) -> tuple[State, Image | None]:
        if progress is not None:
            jax.debug.callback(progress, tr.number)
        state = move(step, denoise, state, tr, keys, goes_back)
        return state, state.x0 if intermediates else None

    levels = transitions._replace(t=transitions.t.astype(x.dtype), s=transitions.s.astype(x.dtype))
    final, estimates = jax.lax.scan(body, start_state(x), levels)
    return Samples(final.x, estimates)


def start_state(x: Image) -> State:
    """The carry of the loop before its first move, x being at that move's t."""
    return State(x, jnp.zeros_like(x), jnp.zeros((), x.dtype))


def move(
    step: Step,
    denoise: Denoiser,
    state: State,
    tr: Transition,
    keys: PRNGKey | None,
    goes_back: bool = False,
) -> State:
    """One move, for those who walk the transitions themselves.

    Args:
      step, denoise, goes_back: as for run_transitions.
      state: what start_state or the move before returned.
      tr: the move, its t and s in the dtype of state.x.
      keys: [b], or None if no move draws noise.

    Raises:
      UserError: the move draws noise and keys is None.
    """

    def draw() -> Image:
        if keys is None:
            raise UserError("this sampler draws noise: it needs a key, got None")
        return example_noise(keys, state.x.shape[1:], tr.number, state.x.dtype)

    def forward() -> State:
        done = step(denoise, state, tr, draw)
        return done._replace(x=jnp.where(tr.last, done.x0, done.x))

    def back() -> State:
        return State(renoise(state.x, tr.t, tr.s, draw()), state.x0, jnp.zeros_like(state.h))

    return jax.lax.cond(tr.s < tr.t, back, forward) if goes_back else forward()
