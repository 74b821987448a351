"""Optimisers and the learning-rate schedule.

The paper uses Adafactor for the base stage and Adam for super-resolution (Imagen, appendix F.1).
Muon (Jordan et al. 2024; scaled as in Liu et al. 2025, arXiv 2502.16982) orthogonalises the
momentum of each kernel.
"""

from __future__ import annotations

import fnmatch
from collections.abc import Callable, Collection
from typing import Any

import flax.linen as nn
import jax
import optax
from optax.contrib import MuonDimensionNumbers

from imagen_jax.errors import UserError
from imagen_jax.models.base import BaseNetwork
from imagen_jax.stage import Stage
from imagen_jax.stage_config import TrainConfig
from imagen_jax.train.lora import low_rank


def _adam(learning_rate: optax.Schedule, network: BaseNetwork) -> optax.GradientTransformation:
    return optax.adam(learning_rate, b1=0.9, b2=0.999, eps=1e-8)


def _adafactor(learning_rate: optax.Schedule, network: BaseNetwork) -> optax.GradientTransformation:
    # As in the paper, "default optax.adafactor parameters": each update is relative to the root
    # mean square of the parameter, or to 1e-3 where that is smaller.
    return optax.adafactor(learning_rate)


def hidden_kernels(params: Any, outer_layers: Collection[str]) -> Any:
    """The parameters that Muon orthogonalises, and as what matrix.

    Args:
      params: parameters of a network, boxed or not.
      outer_layers: names of its layers that read or make pixels, see BaseNetwork.

    Returns:
      The same tree: for kernels of all but the outer layers, a matrix whose last axis is the
      output and whose other axes are inputs, one for each block of a stack; None for all else
      (vectors, and kernels that read or make pixels), which Adam updates.
    """

    def dimensions(path: Any, leaf: Any) -> MuonDimensionNumbers | None:
        keys = [key.key for key in path if isinstance(key, jax.tree_util.DictKey)]
        if keys[-1] != "kernel" or keys[0] in outer_layers:
            return None
        stacked = any(key.endswith("_stack") for key in keys)
        return MuonDimensionNumbers(tuple(range(stacked, leaf.ndim - 1)), leaf.ndim - 1)

    return jax.tree_util.tree_map_with_path(dimensions, params)


def _muon(learning_rate: optax.Schedule, network: BaseNetwork) -> optax.GradientTransformation:
    # Updates have the root mean square of Adam's, 0.2: Liu et al. 2025, section 2.2.
    return optax.contrib.muon(
        learning_rate,
        consistent_rms=0.2,
        muon_weight_dimension_numbers=lambda params: hidden_kernels(params, network.outer_layers),
    )


OPTIMIZERS: dict[str, Callable[[optax.Schedule, BaseNetwork], optax.GradientTransformation]] = {
    "adam": _adam,
    "adafactor": _adafactor,
    "muon": _muon,
}


def learning_rate_schedule(config: TrainConfig) -> optax.Schedule:
    """Linear warmup from zero to the peak, then cosine decay to zero at the last step."""
    return optax.warmup_cosine_decay_schedule(
        init_value=0.0,
        peak_value=config.learning_rate,
        warmup_steps=config.warmup_steps,
        decay_steps=config.steps,
    )


def make_optimizer(stage: Stage) -> optax.GradientTransformation:
    """Gradient clipping by global norm, then the optimiser that the stage's config names.

    Parameters that the config freezes get no updates, and their gradients do not count in the norm;
    with train.lora_rank, all of it is of the factors, see lora.low_rank.

    Raises:
      UserError: an unknown optimiser; at `init` of what it returns, a pattern in train.freeze or
        train.lora_layers that no name matches, or nothing left to train.
    """
    config = stage.train
    if config.optimizer not in OPTIMIZERS:
        raise UserError(f"train.optimizer is {config.optimizer!r}; choices: {sorted(OPTIMIZERS)}")
    trained = optax.chain(
        optax.clip_by_global_norm(config.clip_norm),
        OPTIMIZERS[config.optimizer](learning_rate_schedule(config), stage.network),
    )
    if config.lora_rank:
        return low_rank(trained, config.lora_rank, config.lora_layers, config.seed)
    if not config.freeze:
        return trained
    return optax.partition(
        {"trained": trained, "frozen": optax.set_to_zero()},
        lambda params: frozen_parameters(params, config.freeze),
    )


def frozen_parameters(params: Any, patterns: tuple[str, ...]) -> Any:
    """The same tree with "frozen" or "trained" for every parameter.

    Args:
      params: parameters of a network, boxed or not.
      patterns: patterns of names such as "conv_in/kernel"; * matches any characters, also slashes.

    Raises:
      UserError: a pattern that matches no name, or patterns that match all.
    """
    unboxed = nn.unbox(params)
    paths, tree = jax.tree_util.tree_flatten_with_path(unboxed)
    names = ["/".join(key.key for key in path) for path, _ in paths]
    for pattern in patterns:
        if not fnmatch.filter(names, pattern):
            raise UserError(
                f"train.freeze: no parameter's name matches {pattern!r}; names begin with "
                f"{', '.join(sorted({name.split('/')[0] for name in names}))}"
            )
    frozen = [any(fnmatch.fnmatchcase(name, p) for p in patterns) for name in names]
    if all(frozen):
        raise UserError(f"train.freeze: {patterns} leave nothing to train")
    return jax.tree_util.tree_unflatten(tree, ["frozen" if f else "trained" for f in frozen])
