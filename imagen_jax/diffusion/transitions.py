"""The moves between noise levels.

Every sampler is one and the same transfer (equation (17) of imagen_jax/diffusion/__init__.py) with
another estimate of x0 and another share of fresh noise.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple, Protocol

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from imagen_jax.diffusion.noise import example_noise
from imagen_jax.diffusion.schedule import alpha_sigma
from imagen_jax.errors import UserError
from imagen_jax.typing import Denoiser, Image, PRNGKey


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
      steps: steps of the whole grid.
    """

    number: jax.Array
    t: jax.Array
    s: jax.Array
    last: jax.Array
    steps: jax.Array


Draw = Callable[[], Image]
"""Standard normal noise of the move, [b, h, w, c]."""


class Sampler(Protocol):
    """A rule that takes one step towards the image; a frozen dataclass of its options.

    It becomes available by name, in configs and on the command line, by an entry in
    samplers.SAMPLERS.
    """

    def step(self, denoise: Denoiser, state: State, tr: Transition, draw: Draw) -> State:
        """Return the state after one step.

        Args:
          denoise: (x_t, logsnr []) -> x0.
          state: state at tr.t.
          tr: the step, from tr.t to the cleaner tr.s.
          draw: the step's noise. Samplers that call it need a key.
        """
        ...

    def __hash__(self) -> int: ...


def transfer(
    x_t: Float[Array, "*x"],
    x0: Float[Array, "*x"],
    t: jax.Array,
    s: jax.Array,
    eta: float = 0.0,
    noise: Float[Array, "*x"] | None = None,
) -> Float[Array, "*x"]:
    """x_s given x_t and an estimate of x0, with a share eta of fresh noise: equation (17).

    Args:
      x_t: array of any shape, at logsnr t.
      x0: array of that shape.
      t: [] logsnr of x_t.
      s: [] logsnr of the result, above t.
      eta: in [0, 1], a Python number: 0 is DDIM, 1 the posterior of ancestral sampling.
      noise: standard normal; needed when eta > 0.
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


def renoise(
    x_s: Float[Array, "*x"], s: jax.Array, t: jax.Array, noise: Float[Array, "*x"]
) -> Float[Array, "*x"]:
    """x_t ~ q(x_t | x_s), back to a noisier level: equation (16).

    Args:
      x_s: array of any shape, at logsnr s.
      s: [] logsnr of x_s.
      t: [] logsnr of the result, at most s.
      noise: standard normal.
    """
    log_ratio = 0.5 * (jax.nn.log_sigmoid(t) - jax.nn.log_sigmoid(s))
    _, sigma_t = alpha_sigma(t)
    return jnp.exp(log_ratio) * x_s + sigma_t * jnp.sqrt(-jnp.expm1(t - s)) * noise


def check_grid(grid: jax.Array) -> None:
    """Raise UserError for a grid that no sampler can follow.

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


def path_transitions(grid: Float[Array, " points"], path: np.ndarray | None = None) -> Transition:
    """Return the moves through a grid.

    Args:
      grid: [steps + 1] increasing logsnr.
      path: [n + 1] positions in the grid, from 0 to steps, see editing.resampling_path; None for
        one step after another.

    Returns:
      [n] moves.
    """
    steps = grid.shape[0] - 1
    path = np.arange(steps + 1) if path is None else path
    start, end = path[:-1], path[1:]
    return Transition(
        number=jnp.arange(len(start)),
        t=grid[start],
        s=grid[end],
        last=jnp.asarray(end == steps),
        steps=jnp.full(len(start), steps),
    )


def start_state(x: Image) -> State:
    """Return the carry of the loop before its first move; x is at the logsnr of that move's t."""
    return State(x, jnp.zeros_like(x), jnp.zeros((), x.dtype))


def move(
    sampler: Sampler,
    denoise: Denoiser,
    state: State,
    tr: Transition,
    keys: PRNGKey | None,
    goes_back: bool = False,
) -> State:
    """Return the state after one move: all that samplers, edits and exported programs repeat.

    Args:
      sampler: makes the steps towards the image.
      denoise: (x_t, logsnr []) -> x0.
      state: result of start_state or of the previous move.
      tr: the move, its t and s in the dtype of state.x.
      keys: [b], or None if no move draws noise.
      goes_back: True if there are moves to a noisier level; renoise makes these.

    Raises:
      UserError: the move draws noise and keys is None.
    """

    def draw() -> Image:
        if keys is None:
            raise UserError(f"{sampler} draws noise: it needs a key, got None")
        return example_noise(keys, state.x.shape[1:], tr.number, state.x.dtype)

    def forward() -> State:
        done = sampler.step(denoise, state, tr, draw)
        return done._replace(x=jnp.where(tr.last, done.x0, done.x))

    def back() -> State:
        return State(renoise(state.x, tr.t, tr.s, draw()), state.x0, jnp.zeros_like(state.h))

    return jax.lax.cond(tr.s < tr.t, back, forward) if goes_back else forward()
