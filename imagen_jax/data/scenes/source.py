"""The scenes as a source of examples: (id, caption, image)."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from imagen_jax.data.scenes.grammar import caption
from imagen_jax.data.scenes.levels import Level, get_level
from imagen_jax.data.scenes.render import render
from imagen_jax.data.scenes.sampling import sample_scene
from imagen_jax.data.scenes.scene import Scene
from imagen_jax.errors import UserError


class Example(NamedTuple):
    """One captioned image.

    Attributes:
      id: unique within its source.
      caption: lower-case sentence.
      image: uint8 [h, w, 3].
    """

    id: str
    caption: str
    image: np.ndarray


def scene_examples(
    level: Level | str, split: str, seed: int, count: int, size: int,
    start: int = 0, groups: int | None = None,
) -> Iterator[Example]:  # fmt: skip
    """Examples start, ..., start + count - 1 of an endless sequence.

    Args:
      level: a Level or the name of one.
      split: "train" or "heldout".
      seed: names the sequence.
      count: number of examples.
      size: side of the images in pixels, 1..256.
      start: first index; any part of the sequence can be made alone.
      groups: 1 or 2 for scenes of one or of two groups only; None for the level's mixture.

    Raises:
      UserError: unknown level or split, a negative seed, or a bad size.
    """
    if seed < 0:
        raise UserError(f"seed is {seed}; it must be at least 0")
    if isinstance(level, str):
        level = get_level(level)
    for index in range(start, start + count):
        scene = sample_scene(level, split, seed, index, groups)
        name = f"{_sequence(level, split, seed)}-{index}"
        yield Example(name, caption(scene), render(scene, size))


def scene_of(name: str, level: Level, split: str, seed: int) -> Scene:
    """The scene of an example of scene_examples.

    Args:
      name: id of the example.
      level, split, seed: arguments that it was made with.

    Raises:
      UserError: it is of another sequence.
    """
    sequence, _, index = name.rpartition("-")
    if sequence != _sequence(level, split, seed) or not index.isdecimal():
        raise UserError(f"example {name!r} is not of {_sequence(level, split, seed)!r}")
    return sample_scene(level, split, seed, int(index))


def _sequence(level: Level, split: str, seed: int) -> str:
    return f"{level.name}-{split}-{seed}"
