"""Scenes and the sentences that describe them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from imagen_jax.data.scenes.vocabulary import (
    COUNT_WORDS,
    NOUNS,
    RELATIONS,
    SIZES,
    STYLES,
    article,
)


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
    """What an image shows.

    Attributes:
      groups: one group, or two in a relation.
      relation: with two groups, where the first lies: a key of vocabulary.RELATIONS; else None.
      background: a name of vocabulary.BACKGROUNDS.
      style: a key of vocabulary.STYLES, of the whole image.
      size: "small" or "large" if the caption says so; only with one group.
      variation: chooses wording, exact sizes and positions among all that fit the rest.
      tidy: every object is as large as fits and lies in the middle of its place.
    """

    groups: tuple[Group, ...]
    background: str
    style: str
    relation: str | None = None
    size: str | None = None
    variation: int = 0
    tidy: bool = False


_SENTENCES = (
    "{a_style} of {body} on {a_background} background",
    "{body} on {a_background} background, {style}",
    "{a_background} background with {a_style} of {body}",
)


def caption(scene: Scene) -> str:
    """One sentence in lower case that says all attributes of the scene."""
    rng = np.random.default_rng([scene.variation, 1])
    size = None if scene.size is None else _pick(rng, SIZES[scene.size])
    body = _group_phrase(scene.groups[0], size)
    if scene.relation is not None:
        relation = _pick(rng, RELATIONS[scene.relation])
        body = f"{body} {relation} {_group_phrase(scene.groups[1], None)}"
    style = STYLES[scene.style]
    return _pick(rng, _SENTENCES).format(
        body=body, style=style, a_style=article(style), a_background=article(scene.background)
    )


def _group_phrase(group: Group, size: str | None) -> str:
    noun = NOUNS[group.noun]
    words = [word for word in (size, group.colour) if word is not None]
    if group.count == 1:
        return article(" ".join([*words, noun.name]))
    return " ".join([COUNT_WORDS[group.count], *words, noun.plural])


def _pick(rng: np.random.Generator, choices: tuple[str, ...]) -> str:
    return choices[int(rng.integers(len(choices)))]
