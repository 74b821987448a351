"""Low-rank adaptation (LoRA, Hu et al. 2021, arXiv 2106.09685): a change of few numbers is trained.

The weights of a chosen layer are W = W_0 + A B, where W_0 are those that training started from, A
and B are its factors. The factors are state of the optimizer: training, sampling and checkpoints
see W, as without LoRA.
"""

from __future__ import annotations

import fnmatch
from typing import Any, NamedTuple

import flax.linen as nn
import flax.traverse_util
import jax
import jax.numpy as jnp
import optax

from imagen_jax.errors import UserError


class LowRankState(NamedTuple):
    """State of `low_rank`.

    Attributes:
      factors: {"a": {name: [(blocks,) inputs, rank]}, "b": {name: [(blocks,) rank, outputs]}}.
      inner: state of the optimizer of the factors.
    """

    factors: dict[str, dict[str, jax.Array]]
    inner: Any


def low_rank(
    inner: optax.GradientTransformation, rank: int, layers: tuple[str, ...], seed: int
) -> optax.GradientTransformation:
    """Return an optimizer of weights that optimizes the factors of their change by another one.

    With G the gradient of W, those of the factors are G B^T and A^T G. A starts as normal noise of
    variance 1 / inputs, B as zero (Hu et al. 2021, section 4.1), so that the change starts as zero.

    Args:
      inner: optimizer of the factors.
      rank: columns of A.
      layers: patterns of names of kernels, such as "*attention/*"; all others stay as they are.
      seed: seed of the noise that A starts as.

    Raises:
      UserError: at `init` of what it returns, a pattern that matches no kernel's name.
    """

    def init(params: Any) -> LowRankState:
        factors: dict[str, dict[str, jax.Array]] = {"a": {}, "b": {}}
        flat = _flat(nn.unbox(params))
        for i, name in enumerate(adapted_layers(flat, layers)):
            *blocks, inputs, outputs = as_matrix(name, flat[name]).shape
            key = jax.random.fold_in(jax.random.key(seed), i)
            noise = jax.random.normal(key, (*blocks, inputs, rank), jnp.float32)
            factors["a"][name] = noise / inputs**0.5
            factors["b"][name] = jnp.zeros((*blocks, rank, outputs), jnp.float32)
        return LowRankState(factors, inner.init(factors))

    def update(grads: Any, state: LowRankState, params: Any = None) -> tuple[Any, LowRankState]:
        before = state.factors
        flat = _flat(grads)
        of_weights = {name: as_matrix(name, flat[name]) for name in before["a"]}
        of_factors = {
            "a": {name: product(g, before["b"][name].mT) for name, g in of_weights.items()},
            "b": {name: product(before["a"][name].mT, g) for name, g in of_weights.items()},
        }
        steps, inner_state = inner.update(of_factors, state.inner, before)
        after: Any = optax.apply_updates(before, steps)
        for name, g in flat.items():
            if name in before["a"]:
                # A' B' - A B, without the difference of two products that are nearly equal.
                change = product(steps["a"][name], after["b"][name])
                change += product(before["a"][name], steps["b"][name])
                flat[name] = change.reshape(g.shape)
            else:
                flat[name] = jnp.zeros_like(g)
        return flax.traverse_util.unflatten_dict(flat, sep="/"), LowRankState(after, inner_state)

    return optax.GradientTransformation(init, update)


def adapted_layers(names: Any, layers: tuple[str, ...]) -> list[str]:
    """Return the names of the kernels that patterns choose, in order.

    Raises:
      UserError: a pattern that matches none.
    """
    kernels = sorted(name for name in names if name.rpartition("/")[2] == "kernel")
    for pattern in layers:
        if not fnmatch.filter(kernels, pattern):
            raise UserError(
                f"train.lora_layers: no kernel's name matches {pattern!r}; names begin with "
                f"{', '.join(sorted({name.split('/')[0] for name in kernels}))}"
            )
    return [name for name in kernels if any(fnmatch.fnmatchcase(name, p) for p in layers)]


def as_matrix(name: str, kernel: Any) -> Any:
    """Return a kernel as a matrix [inputs, outputs], or one for each block of a stack."""
    blocks = kernel.shape[: "_stack/" in name]
    return kernel.reshape(*blocks, -1, kernel.shape[-1])


def product(a: jax.Array, b: jax.Array) -> jax.Array:
    """Return the matrix product, in float32 on every device."""
    return jnp.matmul(a, b, precision=jax.lax.Precision.HIGHEST)


def _flat(tree: Any) -> dict[str, Any]:
    return flax.traverse_util.flatten_dict(tree, sep="/")
