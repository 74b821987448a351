"""Alignment of images with captions of open scenes: only what a caption says is asked for.

  object      the nearest drawing of every object is of a concept that its words may mean
  top 5       one of the five nearest concepts is
  colour      every object looks most like a drawing in the colour that it is said to have
  count       every group has its number of objects, and nothing else is there
  style       every object looks most like a drawing in the style that is said
  background  the border has its colour
  relation    two groups: the first lies on its side of the second
  size        small or large, when said
All of these that apply, but top 5, must hold for "all_correct".
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from imagen_jax.data.scenes.levels import Level
from imagen_jax.data.scenes.open_grammar import BESIDE, Description
from imagen_jax.data.scenes.render import render
from imagen_jax.data.scenes.scene import Scene
from imagen_jax.eval.attributes import (
    AXIS,
    Report,
    accuracies,
    centre,
    check_counts,
    others,
    relation_holds,
)
from imagen_jax.eval.open_matching import SIDE, Seen, Thing, read_all

ATTRIBUTES = (
    "object", "top 5", "colour", "count", "style", "background", "relation", "size", "all_correct",
)  # fmt: skip
SMALL, LARGE = 27 / 64, 46 / 64
"""Longer sides, as fractions of the image, up to and from which an object is small or large."""
TOLERANCE = 1.1
"""A drawing in the said colour or style may be further than the nearest by this factor: tints of
some drawings hardly differ from them."""
_COLOUR, _STYLE = 1, 2
"""Their places in (noun, colour, style)."""


def score(said: Description, counts: Sequence[int], seen: Seen) -> dict[str, bool]:
    """Return the attributes that a caption says, each with True where the image shows it.

    Args:
      said: by the caption.
      counts: objects of each group.
      seen: the image as read.
    """
    members: list[list[Thing]] = [[] for _ in said.things]
    for thing in seen.things:
        members[_likeliest_group(thing, said)].append(thing)
    pairs = [(thing, i) for i, things in enumerate(members) for thing in things]
    found = all(members)
    result = {
        "object": found and all(bool({*t.nouns[:1]} & said.things[i]) for t, i in pairs),
        "top 5": found and all(bool({*t.nouns} & said.things[i]) for t, i in pairs),
        "count": [len(things) for things in members] == list(counts),
    }
    if any(colour is not None for colour in said.colours):
        result["colour"] = found and all(
            _looks(t, said.things[i], _COLOUR, colour)
            for t, i in pairs
            if (colour := said.colours[i]) is not None
        )
    if said.style is not None:
        result["style"] = found and all(
            _looks(t, said.things[i], _STYLE, said.style) for t, i in pairs
        )
    if said.background is not None:
        result["background"] = seen.background == said.background
    if said.relation is not None:
        result["relation"] = found and _relation_holds(said.relation, *members)
    if said.size is not None:
        sides = [max(thing.box[2:]) for thing in members[0]]
        fits = {"small": lambda side: side <= SMALL, "large": lambda side: side >= LARGE}
        result["size"] = found and all(map(fits[said.size], sides))
    result["all_correct"] = all(held for name, held in result.items() if name != "top 5")
    return result


def score_all(
    scenes: Sequence[Scene], said: Sequence[Description], seen: Sequence[Seen]
) -> list[dict[str, bool]]:
    """Return `score` of many: of each scene, what its caption says, and the image as read."""
    return [
        score(description, [group.count for group in scene.groups], image)
        for scene, description, image in zip(scenes, said, seen, strict=True)
    ]


def _looks(thing: Thing, nouns: frozenset[str], what: int, word: str) -> bool:
    """Return True if a drawing of a noun in a colour or style is about as near as any is.

    Args:
      what: where `word` stands in (noun, colour, style).
    """
    near = [d for label, d in thing.distances.items() if label[0] in nouns and label[what] == word]
    return bool(near) and min(near) <= TOLERANCE * min(thing.distances.values())


def _likeliest_group(thing: Thing, said: Description) -> int:
    """Index of the group an object belongs to: by noun, else by its side."""
    if said.relation is None:
        return 0
    axis, sign = AXIS.get(said.relation, (0, 1))
    before = (centre(thing)[axis] - 0.5) * sign < 0
    fits = [
        4 * bool({*thing.nouns[:1]} & nouns)
        + 2 * bool({*thing.nouns} & nouns)
        + (before == (index == 0))
        for index, nouns in enumerate(said.things)
    ]
    return int(np.argmax(fits))


def _relation_holds(relation: str, first: list[Thing], second: list[Thing]) -> bool:
    if relation == BESIDE:
        a, b = (np.mean([centre(thing) for thing in things], axis=0) for things in (first, second))
        return bool(abs(b[0] - a[0]) > abs(b[1] - a[1]))
    return relation_holds(relation, first, second)


def open_alignment_report(
    scenes: Sequence[Scene],
    said: Sequence[Description],
    images: Sequence[np.ndarray] | np.ndarray,
    level: Level,
) -> Report:
    """Score images against their captions, between the best and the worst that can be expected.

    Args:
      scenes: n scenes.
      said: what the caption of each says.
      images: n of uint8 [h, h, 3].
      level: whose drawings the images are read with.

    Returns:
      "images" -> attribute -> {"accuracy", "low", "high" (95% Wilson interval), "correct", "n"};
      "ceiling": the same for the real images of the scenes; "floor": for the images given, each
      against the caption of another. Attributes that no caption says are left out.

    Raises:
      UserError: no scenes, or not as many images as scenes.
    """
    check_counts(len(scenes), len(images))

    def shares(seen: Sequence[Seen]) -> dict[str, dict[str, float]]:
        return accuracies(score_all(scenes, said, seen), ATTRIBUTES)

    seen = read_all(images, level)
    return {
        "images": shares(seen),
        "ceiling": shares(read_all([render(scene, SIDE) for scene in scenes], level)),
        "floor": shares([seen[i] for i in others(len(scenes))]),
    }
