"""What is measured of a stage's averaged weights while it trains, and which way is better."""

from __future__ import annotations

from collections.abc import Mapping

VALIDATION_LOSS = "validation_loss"
FRECHET = "frechet_mobilenet_v2"
KERNEL = "kernel_mobilenet_v2"
ALL_CORRECT = "all_correct"

BETTER = {VALIDATION_LOSS: -1, FRECHET: -1, KERNEL: -1, ALL_CORRECT: 1}
"""Measurement by which checkpoints can be best -> 1 where higher is better, -1 where lower is."""


def quality(metrics: Mapping[str, float]) -> float:
    """What ranks a checkpoint, higher for a better one.

    Args:
      metrics: the one measurement that it is stored with.
    """
    ((name, value),) = metrics.items()
    return BETTER[name] * value
