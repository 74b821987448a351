"""Draws scenes: without limit, each a pure function of (level, split, seed, index).

The split is by composition. A (noun, colour, style) triple, and a pair of nouns side by side or one
above the other, is held out when a hash of its words says so, at every level alike; no training
scene contains one. A pair is held out in both orders: with only one of them in training, the other
would contradict what was learned rather than be new.
"""

from __future__ import annotations

import functools
import hashlib
import itertools
import re
from collections.abc import Sequence
from typing import TypeVar

import numpy as np

from imagen_jax.data.scenes.grammar import caption
from imagen_jax.data.scenes.levels import Level
from imagen_jax.data.scenes.open_sampling import sample_open_scene
from imagen_jax.data.scenes.scene import Group, Scene
from imagen_jax.data.scenes.sprites import is_visible
from imagen_jax.data.scenes.vocabulary import NOUNS, RELATIONS, SIZES, SYNONYMS, article
from imagen_jax.errors import UserError

_T = TypeVar("_T")

SPLITS = ("train", "heldout")
HELD_OUT_SHARE = 0.1
_AXES = {"left of": "side by side", "right of": "side by side", "above": "stacked",
         "below": "stacked"}  # fmt: skip


def _is_held_out_key(*words: str) -> bool:
    digest = hashlib.sha256("|".join(words).encode()).digest()
    return int.from_bytes(digest[:8], "big") / 2**64 < HELD_OUT_SHARE


@functools.cache
def is_held_out_triple(noun: str, colour: str | None, style: str) -> bool:
    """True if no training scene shows this noun in this colour and style (never without colour)."""
    return colour is not None and _is_held_out_key("triple", noun, colour, style)


@functools.cache
def is_held_out_pair(first: str, relation: str, second: str) -> bool:
    """True if no training scene shows these two nouns along this axis, in either order."""
    return _is_held_out_key("pair", _AXES[relation], *sorted((first, second)))


def is_held_out(scene: Scene) -> bool:
    """True if the scene contains a composition that no training scene contains."""
    if any(is_held_out_triple(g.noun, g.colour, scene.style) for g in scene.groups):
        return True
    if scene.relation is None:
        return False
    first, second = scene.groups
    return is_held_out_pair(first.noun, scene.relation, second.noun)


@functools.cache
def held_out_triples(level: Level) -> tuple[tuple[str, str, str], ...]:
    """All held-out (noun, colour, style) of a level."""
    every = itertools.product(level.nouns, level.colours, level.styles)
    return tuple(triple for triple in every if is_held_out_triple(*triple))


@functools.cache
def held_out_pairs(level: Level) -> tuple[tuple[str, str, str], ...]:
    """All held-out (noun, relation, noun) of a level, each in both ways to say it."""
    every = itertools.product(level.nouns, RELATIONS, level.nouns)
    return tuple(pair for pair in every if pair[0] != pair[2] and is_held_out_pair(*pair))


def sample_scene(
    level: Level, split: str, seed: int, index: int, groups: int | None = None
) -> Scene:
    """The scene at a place of an endless sequence.

    Args:
      level: vocabulary of the scenes.
      split: "train", or "heldout": one-group scenes show a held-out triple, two-group scenes a
        held-out pair of nouns whose triples do occur in training.
      seed: names the sequence, >= 0.
      index: place in the sequence, >= 0; costs the same anywhere.
      groups: 1 or 2 to have only such scenes; None for the level's mixture.

    Raises:
      UserError: unknown split, or groups is none of None, 1, 2.
    """
    if split not in SPLITS:
        raise UserError(f"unknown split {split!r}; choices: {', '.join(SPLITS)}")
    if groups not in (None, 1, 2):
        raise UserError(f"groups={groups!r}; choices: None, 1, 2")
    rng = np.random.default_rng([seed, index, SPLITS.index(split), groups or 0])
    if groups is None:
        groups = 2 if rng.random() < level.two_groups else 1
    if level.open:
        return sample_open_scene(level, rng, groups, _open_kind(rng, split, groups))
    draw = _draw_one if groups == 1 else _draw_two
    # Rejection keeps every choice uniform among the allowed ones; nearly all draws are allowed.
    while (scene := draw(rng, level, split)) is None:
        pass
    return scene


def _open_kind(rng: np.random.Generator, split: str, groups: int) -> str | None:
    if split == "train":
        return None
    return "pair" if groups == 2 else ("style", "colour")[int(rng.integers(2))]


def _draw_one(rng: np.random.Generator, level: Level, split: str) -> Scene | None:
    colour: str | None
    if split == "heldout":
        noun, colour, style = _choose(rng, held_out_triples(level))
    else:
        noun, style = _choose(rng, level.nouns), _choose(rng, level.styles)
        colour = _draw_colour(rng, level, noun)
        if is_held_out_triple(noun, colour, style):
            return None
    count = int(rng.integers(2, 4)) if rng.random() < level.counts else 1
    size = None
    if count == 1 and rng.random() < level.sized:
        size = _choose(rng, tuple(SIZES))
    return _finish(rng, level, (Group(noun, colour, count),), style, None, size)


def _draw_two(rng: np.random.Generator, level: Level, split: str) -> Scene | None:
    style = _choose(rng, level.styles)
    if split == "heldout":
        first, relation, second = _choose(rng, held_out_pairs(level))
    else:
        first, second = _choose(rng, level.nouns), _choose(rng, level.nouns)
        relation = _choose(rng, tuple(RELATIONS))
        if first == second or is_held_out_pair(first, relation, second):
            return None
    counts = [1, 1]
    if rng.random() < level.counts:
        several = int(rng.integers(2))
        counts[several] = int(rng.integers(2, 4))
        if counts[several] == 2 and rng.random() < 0.3:
            counts[1 - several] = 2
    pair = tuple(
        Group(noun, _draw_colour(rng, level, noun), count)
        for noun, count in zip((first, second), counts, strict=True)
    )
    if any(is_held_out_triple(g.noun, g.colour, style) for g in pair):
        return None
    return _finish(rng, level, pair, style, relation, None)


def _draw_colour(rng: np.random.Generator, level: Level, noun: str) -> str | None:
    if not NOUNS[noun].is_shape and rng.random() >= level.tinted:
        return None
    return _choose(rng, level.colours)


def _finish(
    rng: np.random.Generator, level: Level, groups: tuple[Group, ...], style: str,
    relation: str | None, size: str | None,
) -> Scene | None:  # fmt: skip
    backgrounds = tuple(
        name for name in level.backgrounds
        if all(g.colour != name and is_visible(g.noun, style, g.colour, name) for g in groups)
    )  # fmt: skip
    if not backgrounds:
        return None
    return Scene(
        groups=groups,
        background=_choose(rng, backgrounds),
        style=style,
        relation=relation,
        size=size,
        variation=int(rng.integers(2**31)),
        tidy=level.tidy,
    )


def sample_unseen_words(level: Level, seed: int, index: int) -> tuple[Scene, str]:
    """A one-object training composition, said with a word that no training caption contains.

    Returns:
      (scene, caption): the scene's caption with its noun, or its colour, replaced by a synonym.
    """
    rng = np.random.default_rng([seed, index, 7])
    while True:
        scene = _draw_one(rng, level, "train")
        if scene is None or scene.groups[0].count > 1:
            continue
        group = scene.groups[0]
        words = [w for w in (group.noun, group.colour) if w is not None and w in SYNONYMS]
        if words:
            word = _choose(rng, tuple(words))
            return scene, _replace_word(caption(scene), word, _choose(rng, SYNONYMS[word]))


def _replace_word(text: str, word: str, synonym: str) -> str:
    """Replace the word of the object phrase, which is never the word of the background."""
    text = re.sub(rf"\b{word}\b(?! background)", synonym, text, count=1)
    # The article belongs to the word behind it, which may have changed.
    return re.sub(rf"\b(?:a|an) ({synonym})\b", lambda match: article(match[1]), text)


def _choose(rng: np.random.Generator, choices: Sequence[_T]) -> _T:
    return choices[int(rng.integers(len(choices)))]
