"""Optimisers and the learning-rate schedule (Imagen, appendix F.1)."""

from __future__ import annotations

from collections.abc import Callable

import optax

from imagen_jax.stage import TrainConfig


def _adam(learning_rate: optax.Schedule) -> optax.GradientTransformation:
    return optax.adam(learning_rate, b1=0.9, b2=0.999, eps=1e-8)


def _adafactor(learning_rate: optax.Schedule) -> optax.GradientTransformation:
    return optax.adafactor(learning_rate, multiply_by_parameter_scale=False, clipping_threshold=1.0)


OPTIMIZERS: dict[str, Callable[[optax.Schedule], optax.GradientTransformation]] = {
    "adam": _adam,
    "adafactor": _adafactor,
}


def learning_rate_schedule(config: TrainConfig) -> optax.Schedule:
    """Linear warmup from zero to the peak, then cosine decay to zero at the last step."""
    return optax.warmup_cosine_decay_schedule(
        init_value=0.0,
        peak_value=config.learning_rate,
        warmup_steps=config.warmup_steps,
        decay_steps=config.steps,
    )


def make_optimizer(config: TrainConfig) -> optax.GradientTransformation:
    """Gradient clipping by global norm, then the optimiser that the config names.

    Raises:
      ValueError: an unknown optimiser.
    """
    if config.optimizer not in OPTIMIZERS:
        raise ValueError(f"train.optimizer is {config.optimizer!r}; choices: {sorted(OPTIMIZERS)}")
    return optax.chain(
        optax.clip_by_global_norm(config.clip_norm),
        OPTIMIZERS[config.optimizer](learning_rate_schedule(config)),
    )
