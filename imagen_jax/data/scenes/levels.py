"""Levels: how rich the scenes are, from what a small CPU run learns to everything there is."""

from __future__ import annotations

from dataclasses import dataclass, replace

from imagen_jax.data.scenes import art
from imagen_jax.data.scenes.concepts import concepts
from imagen_jax.data.scenes.vocabulary import (
    BACKGROUNDS,
    COLOURS,
    SHAPE_NAMES,
    STYLES,
    VENDORED_BACKGROUNDS,
    VENDORED_COLOURS,
    VENDORED_EMOJI,
)
from imagen_jax.errors import UserError


@dataclass(frozen=True)
class Level:
    """Vocabulary of a level's scenes.

    Attributes:
      name: its name; part of every example's id.
      nouns, colours, backgrounds, styles: words of the vocabulary.
      two_groups: share of scenes with two groups in a relation, 0..1.
      tinted: share of emoji that have a named colour, 0..1 (shapes always have one).
      counts: share of scenes in which some group holds two or three, 0..1.
      sized: share of one-group scenes whose caption says small or large, 0..1.
      tidy: every object is as large as fits and lies in the middle of its place; there are far
        fewer images to learn.
      open: captions say part of the scene, and everything else varies (open_grammar).
    """

    name: str
    nouns: tuple[str, ...]
    colours: tuple[str, ...]
    backgrounds: tuple[str, ...]
    styles: tuple[str, ...] = tuple(STYLES)
    two_groups: float = 0.5
    tinted: float = 0.5
    counts: float = 0.0
    sized: float = 0.0
    tidy: bool = False
    open: bool = False


QUICKSTART = Level(
    name="quickstart",
    nouns=(
        "circle", "square", "triangle", "star",
        "cat", "dog", "apple", "rocket", "sunflower", "car",
    ),
    colours=("red", "orange", "yellow", "green", "blue", "purple"),
    backgrounds=("white", "blue", "pink", "black"),
    two_groups=0.65,
    tidy=True,
)  # fmt: skip

DEMO = Level(
    name="demo",
    nouns=(
        "circle", "square", "triangle", "star", "heart", "diamond",
        "cat", "dog", "fox", "pig", "frog", "fish", "turtle", "butterfly", "apple", "strawberry",
        "mushroom", "doughnut", "tree", "sunflower", "car", "rocket", "house", "umbrella",
    ),
    colours=VENDORED_COLOURS,
    backgrounds=VENDORED_BACKGROUNDS,
    counts=0.2,
    sized=0.3,
)  # fmt: skip

FULL = replace(DEMO, name="full", nouns=(*SHAPE_NAMES, *VENDORED_EMOJI))

EMOJI = Level(
    name="emoji",
    nouns=(*SHAPE_NAMES, *concepts()),
    colours=tuple(COLOURS),
    backgrounds=tuple(BACKGROUNDS),
    two_groups=0.35,
    tinted=0.2,
    counts=0.12,
    sized=0.15,
    open=True,
)

LEVELS = {level.name: level for level in (QUICKSTART, DEMO, FULL, EMOJI)}


def get_level(name: str) -> Level:
    """A level by its name, ready to be drawn.

    Args:
      name: a key of LEVELS.

    Raises:
      UserError: unknown name, or fetched emoji that are damaged.
      UserError: level "emoji", and `imagen data fetch` has not fetched its drawings.
    """
    if name not in LEVELS:
        raise UserError(f"unknown level {name!r}; choices: {', '.join(LEVELS)}")
    if LEVELS[name].open:
        art.add_icons(art.fetched_set())
    return LEVELS[name]
