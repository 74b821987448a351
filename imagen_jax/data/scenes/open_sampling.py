"""Draws open scenes of the level "emoji".

Held out of training, by hashes of the words: an art style of a concept, a colour of a concept, and
a pair of concepts in one image, in any order and relation.
"""

from __future__ import annotations

import functools
import hashlib

import numpy as np

from imagen_jax.data.scenes.levels import Level
from imagen_jax.data.scenes.open_grammar import has_colour_word
from imagen_jax.data.scenes.scene import Group, Scene
from imagen_jax.data.scenes.sprites import is_loose, stands_out
from imagen_jax.data.scenes.vocabulary import NOUNS, RELATIONS, SHAPE_NAMES, SIZES

HELD_OUT_STYLES = 0.05
"""Share of concepts that training sees in all styles but one."""
HELD_OUT = 0.1
"""Share of (concept, colour) and of pairs of concepts that training does not see."""
SHAPES = 0.08
"""Share of groups that are plain shapes."""
RARE = 0.5
"""Probability that a drawn rare concept is kept."""
KINDS = ("style", "colour", "pair")
"""Kinds of held-out compositions: the first two have one group, the last has two."""


def _hash(*words: str) -> float:
    digest = hashlib.sha256("|".join(words).encode()).digest()
    return int.from_bytes(digest[:8], "big") / 2**64


@functools.cache
def held_out_style(noun: str, styles: tuple[str, ...]) -> str | None:
    """The art style that no training scene shows this concept in, if there is one."""
    if NOUNS[noun].is_shape or (share := _hash("open style", noun)) >= HELD_OUT_STYLES:
        return None
    return styles[int(share / HELD_OUT_STYLES * len(styles))]


@functools.cache
def is_held_out_colour(noun: str, colour: str) -> bool:
    """True if no training scene shows this noun in this colour."""
    return _hash("open colour", noun, colour) < HELD_OUT


def is_held_out_couple(first: str, second: str) -> bool:
    """True if no training scene shows these two nouns in one image."""
    return _hash("open pair", *sorted((first, second))) < HELD_OUT


def held_out_kinds(level: Level, scene: Scene) -> set[str]:
    """Those of KINDS that keep a scene out of training."""
    kinds = set()
    for group in scene.groups:
        if held_out_style(group.noun, level.styles) == scene.style:
            kinds.add("style")
        if group.colour is not None and is_held_out_colour(group.noun, group.colour):
            kinds.add("colour")
    if scene.relation is not None and is_held_out_couple(*(g.noun for g in scene.groups)):
        kinds.add("pair")
    return kinds


def sample_open_scene(
    level: Level, rng: np.random.Generator, groups: int, kind: str | None
) -> Scene:
    """One open scene.

    Args:
      level: vocabulary of the scenes.
      rng: draws it.
      groups: 1 or 2.
      kind: one of KINDS that must be held out, and nothing else; None for a training scene.
    """
    wanted = set() if kind is None else {kind}
    # Rejection keeps every choice uniform among the allowed ones.
    while True:
        scene = _draw(level, rng, groups, kind)
        if scene is not None and held_out_kinds(level, scene) == wanted:
            return scene


def _draw(level: Level, rng: np.random.Generator, groups: int, kind: str | None) -> Scene | None:
    style = level.styles[int(rng.integers(len(level.styles)))]
    counts = [1] * groups
    if kind is None and rng.random() < level.counts:
        counts[int(rng.integers(groups))] = int(rng.integers(2, 4))
    drawn = []
    for count in counts:
        noun = _noun(level, rng, style if kind == "style" else None)
        group = Group(noun, _colour(level, rng, noun, kind == "colour"), count)
        several = groups > 1 or count > 1
        if (several and is_loose(noun, style)) or (count > 1 and not is_countable(noun)):
            return None
        drawn.append(group)
    relation = size = None
    if groups == 2:
        relation = tuple(RELATIONS)[int(rng.integers(len(RELATIONS)))]
        if drawn[0].noun == drawn[1].noun:
            return None
    elif counts == [1] and rng.random() < level.sized:
        size = tuple(SIZES)[int(rng.integers(len(SIZES)))]
    background = level.backgrounds[int(rng.integers(len(level.backgrounds)))]
    if not all(
        g.colour != background and stands_out(g.noun, style, g.colour, background) for g in drawn
    ):
        return None
    return Scene(
        groups=tuple(drawn),
        background=background,
        style=style,
        relation=relation,
        size=size,
        variation=int(rng.integers(2**31)),
        open=True,
    )


def _noun(level: Level, rng: np.random.Generator, held_out_in: str | None) -> str:
    if held_out_in is not None:
        nouns = _held_out_nouns(level, held_out_in)
        return nouns[int(rng.integers(len(nouns)))]
    if rng.random() < SHAPES:
        return SHAPE_NAMES[int(rng.integers(len(SHAPE_NAMES)))]
    emoji = level.nouns[len(SHAPE_NAMES) :]
    while True:
        noun = emoji[int(rng.integers(len(emoji)))]
        if not NOUNS[noun].rare or rng.random() < RARE:
            return noun


@functools.cache
def _held_out_nouns(level: Level, style: str) -> tuple[str, ...]:
    return tuple(noun for noun in level.nouns if held_out_style(noun, level.styles) == style)


def _colour(level: Level, rng: np.random.Generator, noun: str, needed: bool) -> str | None:
    shape = NOUNS[noun].is_shape
    if not shape and (has_colour_word(noun) or (rng.random() >= level.tinted and not needed)):
        return None
    return level.colours[int(rng.integers(len(level.colours)))]


def is_countable(noun: str) -> bool:
    """True if a caption can say two or three of it."""
    return not any(name.endswith("s") or name[0].isdigit() for name in NOUNS[noun].names)
