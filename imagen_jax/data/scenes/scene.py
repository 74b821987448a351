"""Content of an image of the built-in data."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Group:
    """One to three of the same thing.

    Attributes:
      noun: a name of vocabulary.NOUNS.
      colour: a name of vocabulary.COLOURS; None is the art's own colours.
      count: 1, 2 or 3.
    """

    noun: str
    colour: str | None = None
    count: int = 1


@dataclass(frozen=True)
class Scene:
    """Content of an image.

    Attributes:
      groups: one group, or two in a relation.
      relation: with two groups, where the first lies: a key of vocabulary.RELATIONS; else None.
      background: a name of vocabulary.BACKGROUNDS.
      style: a key of vocabulary.STYLES, of the whole image.
      size: "small" or "large" if the caption says so; only with one group.
      variation: chooses wording, exact sizes and positions among all that fit the rest.
      tidy: every object is as large as fits and lies in the middle of its place.
      open: its caption says part of it (open_grammar), its background is never quite the same, and
        sizes vary more.
    """

    groups: tuple[Group, ...]
    background: str
    style: str
    relation: str | None = None
    size: str | None = None
    variation: int = 0
    tidy: bool = False
    open: bool = False
