"""Levels: how rich the scenes are, from what a small CPU run learns to everything there is."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from imagen_jax.data.scenes import art
from imagen_jax.data.scenes.vocabulary import BACKGROUNDS, COLOURS, NOUNS, STYLES
from imagen_jax.errors import UserError


@dataclass(frozen=True)
class Level:
    """What the scenes of a level may hold.

    Attributes:
      name: its name; part of every example's id.
      nouns, colours, backgrounds, styles: words of the vocabulary.
      two_groups: share of scenes with two groups in a relation, 0..1.
      tinted: share of emoji that have a named colour, 0..1 (shapes always have one).
      counts: share of scenes in which some group holds two or three, 0..1.
      sized: share of one-group scenes whose caption says small or large, 0..1.
      tidy: every object is as large as fits and lies in the middle of its place; there are far
        fewer images to learn.
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
    colours=tuple(COLOURS),
    backgrounds=tuple(BACKGROUNDS),
    counts=0.2,
    sized=0.3,
)  # fmt: skip

FULL = replace(DEMO, name="full", nouns=tuple(NOUNS))

LEVELS = {level.name: level for level in (QUICKSTART, DEMO, FULL)}


def get_level(name: str, fetched: str | Path | None = None) -> Level:
    """A level by its name.

    Args:
      name: a key of LEVELS.
      fetched: only with "full": the directory that `imagen data fetch` filled; its emoji join.

    Raises:
      UserError: unknown name, or a directory with another level than "full",
        or its files are damaged.
      UserError: the directory holds no fetched set.
    """
    if name not in LEVELS:
        raise UserError(f"unknown level {name!r}; choices: {', '.join(LEVELS)}")
    if fetched is None:
        return LEVELS[name]
    if name != "full":
        raise UserError(f"fetched emoji belong to level 'full', not to {name!r}")
    return replace(FULL, nouns=FULL.nouns + art.add_icons(Path(fetched).resolve()))
