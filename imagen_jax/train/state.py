"""The train state of one stage."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any

import flax
import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from imagen_jax import sharding
from imagen_jax.checkpoints.reading import ema_item
from imagen_jax.stage import Stage
from imagen_jax.train.optimizer import make_optimizer


@flax.struct.dataclass
class TrainState:
    """Everything that training changes.

    Attributes:
      step: steps taken so far, int32 scalar. All randomness of step n derives from (seed, n).
      params: float32 parameters.
      ema: exponential moving average of params; what is sampled from.
      opt_state: state of the optax optimiser.
      extra_ema: further averages, keyed by their decay as a string.
      skipped: number of steps skipped because they were not finite, int32 scalar.
    """

    step: jax.Array
    params: Any
    ema: Any
    opt_state: Any
    extra_ema: dict[str, Any]
    skipped: jax.Array

    def items(self) -> dict[str, Any]:
        """Return the state as items of a checkpoint."""
        main = ("step", "skipped", "params", "opt_state")
        return {
            "state": {name: getattr(self, name) for name in main},
            ema_item(): self.ema,
            **{ema_item(decay): average for decay, average in self.extra_ema.items()},
        }

    def with_items(self, items: Mapping[str, Any]) -> TrainState:
        """Return the state that a checkpoint of this one's structure holds."""
        extra = {decay: items[ema_item(decay)] for decay in self.extra_ema}
        return TrainState(ema=items[ema_item()], extra_ema=extra, **items["state"])


@functools.lru_cache(maxsize=4)
def abstract_state(stage: Stage, mesh: Mesh) -> tuple[Any, Any]:
    """Shapes and shardings of the stage's train state, without allocating it.

    Returns:
      (state of ShapeDtypeStructs with shardings, matching pytree of shardings).
    """
    boxed = jax.eval_shape(lambda: _init(stage))
    shardings = sharding.state_shardings(boxed, mesh)
    shapes = jax.tree.map(
        lambda leaf, s: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=s),
        nn.unbox(boxed),
        shardings,
    )
    return shapes, shardings


def create_state(stage: Stage, mesh: Mesh) -> TrainState:
    """A fresh train state, every array created where it lives."""
    return _jit_init(stage, mesh)()


@functools.lru_cache(maxsize=4)
def _jit_init(stage: Stage, mesh: Mesh) -> Any:
    _, shardings = abstract_state(stage, mesh)
    return jax.jit(lambda: nn.unbox(_init(stage)), out_shardings=shardings)


def _init(stage: Stage) -> TrainState:
    params = stage.init(jax.random.key(stage.train.seed))
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        params=params,
        ema=jax.tree.map(jnp.copy, params),
        opt_state=make_optimizer(stage).init(params),
        extra_ema={
            str(decay): jax.tree.map(jnp.copy, params) for decay in stage.train.extra_ema_decays
        },
        skipped=jnp.zeros((), jnp.int32),
    )


def count_parameters(params: Any) -> int:
    """Number of trainable scalars."""
    return sum(leaf.size for leaf in jax.tree.leaves(nn.unbox(params)))
