"""Relations between objects and shares of images, as both kinds of alignment measure them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol

import numpy as np

from imagen_jax.errors import UserError
from imagen_jax.eval.metrics.intervals import wilson_interval

AXIS = {"left of": (0, 1), "right of": (0, -1), "above": (1, 1), "below": (1, -1)}
"""Relation -> (axis 0 for x or 1 for y, sign of second minus first along it)."""

Report = dict[str, dict[str, dict[str, float]]]
""""images", "ceiling" or "floor" -> attribute -> what `accuracies` returns of it."""


class Boxed(Protocol):
    """An object that was found in an image; its box is (left, top, width, height)."""

    @property
    def box(self) -> tuple[float, float, float, float]: ...


def centre(thing: Boxed) -> tuple[float, float]:
    """Return (x, y) of the middle of an object."""
    left, top, width, height = thing.box
    return left + width / 2, top + height / 2


def relation_holds(relation: str, first: Sequence[Boxed], second: Sequence[Boxed]) -> bool:
    """Return True if every object of the first group is on its side of those of the second, and
    the groups are further apart that way than across."""
    axis, sign = AXIS[relation]
    a, b = (np.array([centre(thing) for thing in things]) for things in (first, second))
    along = sign * (b[None, :, axis] - a[:, None, axis])
    offset = np.abs(b.mean(0) - a.mean(0))
    return bool((along > 0).all() and offset[axis] > offset[1 - axis])


def check_counts(scenes: int, images: int) -> None:
    """Check that there is an image of every scene.

    Raises:
      UserError: no scenes, or not as many images as scenes.
    """
    if scenes == 0 or scenes != images:
        raise UserError(f"{images} images for {scenes} scenes; need as many")


def others(count: int) -> list[int]:
    """Return the index of another scene for each, half way round: neighbours may stem from one
    prompt, sampled several times."""
    return [int(i) for i in np.roll(np.arange(count), max(1, count // 2))]


def accuracies(
    results: Sequence[Mapping[str, bool]], attributes: Sequence[str]
) -> dict[str, dict[str, float]]:
    """Return shares of the images that show an attribute, of those whose caption says it.

    Args:
      results: attribute -> whether it holds, of each image.
      attributes: the attributes, in the order of the result.

    Returns:
      Attribute -> {"accuracy", "low", "high" (95% Wilson interval), "correct", "n"}; those that no
      caption says are left out.
    """
    found = {}
    for attribute in attributes:
        held = [result[attribute] for result in results if attribute in result]
        if held:
            low, high = wilson_interval(sum(held), len(held))
            found[attribute] = {
                "accuracy": sum(held) / len(held), "low": low, "high": high,
                "correct": sum(held), "n": len(held),
            }  # fmt: skip
    return found
