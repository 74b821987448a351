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
from imagen_jax.eval.attributes import (
    AXIS,
    Report,
    accuracies,
    centre,
    check_counts,
    others,
    relation_holds,
)
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
        result["relation"] = all(members) and relation_holds(scene.relation, *members)
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
    axis, sign = AXIS[scene.relation]
    before = (centre(thing)[axis] - 0.5) * sign < 0
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


def alignment_report(
    scenes: Sequence[Scene], images: Sequence[np.ndarray] | np.ndarray, level: Level
) -> Report:
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
    check_counts(len(scenes), len(images))

    def shares(of: Sequence[np.ndarray] | np.ndarray) -> dict[str, dict[str, float]]:
        return accuracies(score_all(scenes, of, level), ATTRIBUTES)

    return {
        "images": shares(images),
        "ceiling": shares([render(scene, SIDE) for scene in scenes]),
        "floor": shares([images[i] for i in others(len(scenes))]),
    }
