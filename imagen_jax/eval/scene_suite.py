"""A suite of prompts in DrawBench's eleven categories whose images can be checked exactly.

Every prompt describes a built-in scene, so that template matching tells right from wrong:

  Colors              one object in a colour
  Conflicting         a noun in a colour and style that no training image shows together
  Counting            two or three of a thing
  DALL-E              two objects in a relation that no training image shows them in
  Descriptions        a thing described, not named
  Gary Marcus et al.  the same words twice with their roles exchanged
  Misspellings        a noun with two letters exchanged
  Positional          two objects in a relation
  Rare Words          a noun or colour by a word that no training caption contains
  Reddit              a caption as people post it
  Text                the noun in capitals and quotation marks; scenes hold no letters, so that the
                      thing itself is asked for

A level without counts (quickstart) is asked for them all the same: they are new to it.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Iterator

import numpy as np

from imagen_jax.data.scenes.grammar import caption
from imagen_jax.data.scenes.levels import Level
from imagen_jax.data.scenes.sampling import sample_scene, sample_unseen_words
from imagen_jax.data.scenes.scene import Group, Scene
from imagen_jax.data.scenes.vocabulary import NOUNS, STYLES, article
from imagen_jax.errors import UserError
from imagen_jax.eval.prompts import DRAWBENCH_CATEGORIES, Prompt, Suite

DESCRIPTIONS = {
    "circle": "a round shape without corners",
    "square": "a shape with four equal sides",
    "triangle": "a shape with three sides",
    "star": "a shape with five points",
    "heart": "the shape that stands for love",
    "diamond": "a square on its corner",
    "cat": "a pet that meows",
    "dog": "a pet that barks",
    "fox": "a sly animal with a bushy tail",
    "pig": "a farm animal that oinks",
    "frog": "an animal that croaks at a pond",
    "fish": "an animal with fins",
    "turtle": "a slow animal with a shell",
    "butterfly": "an insect with large wings",
    "apple": "a crisp fruit with a core",
    "strawberry": "a berry with seeds outside",
    "mushroom": "a fungus with a cap",
    "doughnut": "a fried ring of dough",
    "tree": "a plant with a trunk and leaves",
    "sunflower": "a tall flower with yellow petals",
    "car": "a vehicle with four wheels",
    "rocket": "a vehicle that flies to space",
    "house": "a building to live in",
    "umbrella": "a thing that keeps off rain",
}
"""Noun -> what it is, without its name; of the nouns of the levels quickstart and demo."""

REDDIT = (
    "{noun} on {background}, that's it, that's the post",
    "can someone do {noun} on {background} pls",
    "i made {noun}, {background} behind it, what do you think",
)
_SEED = 3_000_000
"""Apart from the seeds of training scenes and of `imagen evaluate scenes`."""


def scene_suite(level: Level, per_category: int, seed: int) -> Suite:
    """The suite.

    Args:
      level: level of scenes that the cascade was trained on.
      per_category: prompts of each category, at least 1.
      seed: seed of the scenes.

    Raises:
      UserError: per_category below 1.
    """
    if per_category < 1:
        raise UserError(f"per_category must be at least 1, got {per_category}")
    prompts = []
    for number, category in enumerate(DRAWBENCH_CATEGORIES):
        make = _MAKERS[category]
        made = make(level, _SEED + len(DRAWBENCH_CATEGORIES) * seed + number)
        for _ in range(per_category):
            text, scene = next(made)
            prompts.append(Prompt(text, category, scene))
    return Suite(f"scenes {level.name}", prompts)


Made = Iterator[tuple[str, Scene]]


def _scenes(
    level: Level,
    seed: int,
    split: str,
    groups: int,
    wanted: Callable[[Scene], bool] = lambda scene: True,
) -> Iterator[Scene]:
    index = 0
    while True:
        scene = sample_scene(level, split, seed, index, groups)
        if all(group.count == 1 for group in scene.groups) and wanted(scene):
            yield scene
        index += 1


def _captions(scenes: Iterator[Scene]) -> Made:
    return ((caption(scene), scene) for scene in scenes)


def _colors(level: Level, seed: int) -> Made:
    return _captions(_scenes(level, seed, "train", 1, lambda s: s.groups[0].colour is not None))


def _conflicting(level: Level, seed: int) -> Made:
    return _captions(_scenes(level, seed, "heldout", 1))


def _counting(level: Level, seed: int) -> Made:
    for number, scene in enumerate(_scenes(level, seed, "train", 1)):
        group = dataclasses.replace(scene.groups[0], count=2 + number % 2)
        several = dataclasses.replace(scene, groups=(group,), size=None)
        yield caption(several), several


def _composed(level: Level, seed: int) -> Made:
    return _captions(_scenes(level, seed, "heldout", 2))


def _positional(level: Level, seed: int) -> Made:
    return _captions(_scenes(level, seed, "train", 2))


def _descriptions(level: Level, seed: int) -> Made:
    for scene in _scenes(level, seed, "train", 1, lambda s: s.groups[0].noun in DESCRIPTIONS):
        plain = dataclasses.replace(scene, size=None)
        group = plain.groups[0]
        text = f"{article(STYLES[plain.style])} of {DESCRIPTIONS[group.noun]}"
        if group.colour is not None:
            text += f", {group.colour}"
        yield f"{text}, on {article(plain.background)} background", plain


def _exchanged(level: Level, seed: int) -> Made:
    for scene in _scenes(level, seed, "train", 2):
        yield caption(scene), scene
        other = dataclasses.replace(scene, groups=scene.groups[::-1])
        yield caption(other), other


def _misspellings(level: Level, seed: int) -> Made:
    rng = np.random.default_rng(seed)
    for scene in _scenes(level, seed, "train", 1):
        noun = NOUNS[scene.groups[0].noun].name
        # Two neighbours inside that differ; in words of three letters, the last two.
        places = [i for i in range(1, len(noun) - 1) if noun[i] != noun[i + 1]]
        i = places[int(rng.integers(len(places)))]
        yield _replaced(scene, noun[:i] + noun[i + 1] + noun[i] + noun[i + 2 :]), scene


def _rare_words(level: Level, seed: int) -> Made:
    index = 0
    while True:
        scene, text = sample_unseen_words(level, seed, index)
        yield text, scene
        index += 1


def _reddit(level: Level, seed: int) -> Made:
    for number, scene in enumerate(_scenes(level, seed, "train", 1)):
        plain = dataclasses.replace(scene, size=None)
        body = f"{article(STYLES[plain.style])} of {_phrase(plain.groups[0])}"
        text = REDDIT[number % len(REDDIT)].format(noun=body, background=plain.background)
        yield text, plain


def _text(level: Level, seed: int) -> Made:
    for scene in _scenes(level, seed, "train", 1):
        yield _replaced(scene, f'"{NOUNS[scene.groups[0].noun].name.upper()}"'), scene


def _phrase(group: Group) -> str:
    name = NOUNS[group.noun].name
    return article(name if group.colour is None else f"{group.colour} {name}")


def _replaced(scene: Scene, word: str) -> str:
    """The caption with another word for the noun."""
    name = NOUNS[scene.groups[0].noun].name
    return re.sub(rf"\b{name}\b(?! background)", word, caption(scene), count=1)


_MAKERS: dict[str, Callable[[Level, int], Made]] = {
    "Colors": _colors, "Conflicting": _conflicting, "Counting": _counting, "DALL-E": _composed,
    "Descriptions": _descriptions, "Gary Marcus et al.": _exchanged,
    "Misspellings": _misspellings, "Positional": _positional, "Rare Words": _rare_words,
    "Reddit": _reddit, "Text": _text,
}  # fmt: skip
