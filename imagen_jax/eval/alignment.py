"""Alignment of images with the scenes that their captions describe, measured exactly.

Attributes of a scene that a caption names:
  background  the border has its colour
  object      every object is of its group's noun, and nothing else is there
  colour      every object has its group's colour (its own colours when none is named)
  count       every group has its number of objects
  style       every object is in the scene's style
  relation    two groups: the first lies on its side of the second
  size        small or large, when said
All of these that apply must hold for "all_correct".
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from imagen_jax.data.scenes.levels import Level
from imagen_jax.data.scenes.render import render
from imagen_jax.data.scenes.scene import Group, Scene
from imagen_jax.errors import UserError
from imagen_jax.eval.metrics.intervals import wilson_interval
from imagen_jax.eval.template_matching import (
    SIDE,
    Decoded,
    DecodedObject,
    decode_all,
    is_like_natural,
)

ATTRIBUTES = ("background", "object", "colour", "count", "style", "relation", "size", "all_correct")
LARGE = 34 / 64
"""Longer side, as a fraction of the image, between what counts as small and as large."""
_AXIS = {"left of": (0, 1), "right of": (0, -1), "above": (1, 1), "below": (1, -1)}
"""Relation -> (axis 0 for x or 1 for y, sign of second minus first along it)."""


def score(scene: Scene, image: np.ndarray, level: Level) -> dict[str, bool]:
    """Check which attributes of a scene an image shows.

    Args:
      scene: the scene that the caption describes.
      image: uint8 [h, h, 3].
      level: whose vocabulary the image is read with.

    Returns:
      Attribute -> whether it holds, for those the scene has (no "relation" with one group, "size"
      only if named), and "all_correct".
    """
    return score_all([scene], [image], level)[0]


def score_all(
    scenes: Sequence[Scene], images: Sequence[np.ndarray] | np.ndarray, level: Level
) -> list[dict[str, bool]]:
    """`score` of many, much faster than one by one.

    Raises:
      UserError: not as many images as scenes, or an image that is not square uint8 RGB.
    """
    if len(scenes) != len(images):
        raise UserError(f"{len(images)} images for {len(scenes)} scenes; need as many")
    return [_compare(s, d) for s, d in zip(scenes, decode_all(images, level), strict=True)]


def _compare(scene: Scene, seen: Decoded) -> dict[str, bool]:
    members: list[list[DecodedObject]] = [[] for _ in scene.groups]
    for thing in seen.objects:
        members[_likeliest_group(thing, scene)].append(thing)
    pairs = [
        (thing, group)
        for things, group in zip(members, scene.groups, strict=True)
        for thing in things
    ]
    result = {
        "background": seen.background == scene.background,
        "object": all(members) and all(thing.noun == group.noun for thing, group in pairs),
        "colour": all(members) and all(_colour_fits(thing, group) for thing, group in pairs),
        "count": all(
            len(things) == group.count for things, group in zip(members, scene.groups, strict=True)
        ),
        "style": all(members) and all(thing.style == scene.style for thing, _ in pairs),
    }
    if scene.relation is not None:
        result["relation"] = all(members) and _relation_holds(scene.relation, *members)
    if scene.size is not None:
        sides = [max(thing.box[2:]) for thing in members[0]]
        result["size"] = bool(sides) and all(
            (side > LARGE) == (scene.size == "large") for side in sides
        )
    result["all_correct"] = all(result.values())
    return result


def _likeliest_group(thing: DecodedObject, scene: Scene) -> int:
    """Index of the group an object belongs to: by noun, else by colour, else by its side."""
    if scene.relation is None:
        return 0
    axis, sign = _AXIS[scene.relation]
    before = (_centre(thing)[axis] - 0.5) * sign < 0
    fits = [
        4 * (thing.noun == group.noun) + 2 * _colour_fits(thing, group) + (before == (index == 0))
        for index, group in enumerate(scene.groups)
    ]
    return int(np.argmax(fits))


def _colour_fits(thing: DecodedObject, group: Group) -> bool:
    if thing.noun is None or thing.style is None:
        return False
    if thing.colour == group.colour:
        return True
    # Two named colours are never the same; the art's own colours may be one of them.
    named = [colour for colour in (thing.colour, group.colour) if colour is not None]
    return len(named) == 1 and is_like_natural(thing.noun, thing.style, named[0])


def _centre(thing: DecodedObject) -> tuple[float, float]:
    left, top, width, height = thing.box
    return left + width / 2, top + height / 2


def _relation_holds(relation: str, first: list[DecodedObject], second: list[DecodedObject]) -> bool:
    """Every object of the first group on its side, and further that way than across."""
    axis, sign = _AXIS[relation]
    a, b = (np.array([_centre(thing) for thing in things]) for things in (first, second))
    along = sign * (b[None, :, axis] - a[:, None, axis])
    offset = np.abs(b.mean(0) - a.mean(0))
    return bool((along > 0).all() and offset[axis] > offset[1 - axis])


def alignment_report(
    scenes: Sequence[Scene], images: Sequence[np.ndarray] | np.ndarray, level: Level
) -> dict[str, dict[str, dict[str, float]]]:
    """Score images against their scenes, between the best and the worst that can be expected.

    Args:
      scenes: n scenes.
      images: n of uint8 [h, h, 3].
      level: as for `score`.

    Returns:
      "images" -> attribute -> {"accuracy", "low", "high" (95% Wilson interval), "correct", "n"};
      "ceiling": the same for the real images of the scenes; "floor": for the images given,
      each against the scene of another. Attributes that no scene has are left out.

    Raises:
      UserError: no scenes, or not as many images as scenes.
    """
    if len(scenes) == 0 or len(scenes) != len(images):
        raise UserError(f"{len(images)} images for {len(scenes)} scenes; need as many")
    real = [render(scene, SIDE) for scene in scenes]
    # Half way round: neighbours may stem from one prompt, sampled several times.
    others = np.roll(np.arange(len(scenes)), max(1, len(scenes) // 2))
    return {
        "images": _accuracies(scenes, images, level),
        "ceiling": _accuracies(scenes, real, level),
        "floor": _accuracies(scenes, [images[int(i)] for i in others], level),
    }


def _accuracies(
    scenes: Sequence[Scene], images: Sequence[np.ndarray] | np.ndarray, level: Level
) -> dict[str, dict[str, float]]:
    results = score_all(scenes, images, level)
    accuracies = {}
    for attribute in ATTRIBUTES:
        held = [result[attribute] for result in results if attribute in result]
        if held:
            low, high = wilson_interval(sum(held), len(held))
            accuracies[attribute] = {
                "accuracy": sum(held) / len(held), "low": low, "high": high,
                "correct": sum(held), "n": len(held),
            }  # fmt: skip
    return accuracies
