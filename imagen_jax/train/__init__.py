"""Training of one stage.

loop.py          `train`: the loop, from top to bottom
start.py         its data, the claim on its work directory, its first state
state.py         TrainState: parameters, averages, optimiser; how they are laid out on a mesh
step.py          one step: (state, batch) -> (state, metrics)
optimizer.py     optimisers and the learning-rate schedule
lora.py          low-rank adaptation: a change of the weights is trained
log.py           History of what was measured, TensorBoard's files, hooks
metrics.py       results of steps, rates and memory
guards.py        steps that are not finite, losses that jump
validation.py    the loss on examples that training does not see
evaluation.py    distances of sampled images from real ones
samples.py       images that are sampled while a stage trains
interruption.py  SIGTERM, and steps that hang
profiling.py     a profiler trace on SIGUSR1
"""

from __future__ import annotations

from typing import Any


def __getattr__(name: str) -> Any:
    """Load `train`, `History` and `Hook` when they are asked for: they need all of JAX."""
    if name == "train":
        from imagen_jax.train.loop import train

        return train
    if name in ("History", "Hook"):
        from imagen_jax.train import log

        return getattr(log, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
