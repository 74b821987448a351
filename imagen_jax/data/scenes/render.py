"""Places the sprites of a scene and draws them."""

from __future__ import annotations

import itertools
from typing import NamedTuple

import numpy as np
from PIL import Image

from imagen_jax.data.scenes.backgrounds import shaded_background
from imagen_jax.data.scenes.scene import Group, Scene
from imagen_jax.data.scenes.sprites import extent, premultiplied_sprite
from imagen_jax.data.scenes.vocabulary import BACKGROUNDS
from imagen_jax.errors import UserError

GRID = 64
"""Boxes lie on a grid of this many cells a side; images of 64, 128, 192, 256 hit it exactly."""
MAX_SIZE = 1024
RENDERING = 1
"""Version of how scenes look and are captioned. Raise it with every change of either: embeddings
made by another version are then refused, where they would be reused or trained on."""
GAP = 2
"""Least distance of a sprite from the edge of its region, in cells: sprites are 2 GAP apart."""


class Placed(NamedTuple):
    """One sprite in an image.

    Attributes:
      group: index into Scene.groups.
      left, top, width, height: its ink, as fractions 0..1 of the image's side.
    """

    group: int
    left: float
    top: float
    width: float
    height: float


class _Region(NamedTuple):
    """A rectangle of the grid."""

    left: int
    top: int
    width: int
    height: int


# Longer side of a sprite, in cells (least, most); each fits the part of the image it gets.
_ALONE = {None: (26, 44), "small": (22, 28), "large": (40, 46)}
_HALF = (22, 28)
_QUARTER = (18, 24)
_THIRD_OF_HALF = (14, 16)
_OPEN_ALONE = {None: (30, 54), "small": (16, 24), "large": (50, 58)}


def layout(scene: Scene) -> tuple[Placed, ...]:
    """Exact boxes of all sprites of a scene; none overlap. Deterministic."""
    return tuple(
        Placed(group, x / GRID, y / GRID, width / GRID, height / GRID)
        for group, x, y, width, height in _cells(scene)
    )


def _cells(scene: Scene) -> list[tuple[int, int, int, int, int]]:
    """(group, left, top, width, height) of every sprite, in cells of the grid."""
    rng = np.random.default_rng([scene.variation, 2])
    placed = []
    for index, (group, region) in enumerate(zip(scene.groups, _regions(scene), strict=True)):
        pixels = _longer_side(rng, scene, group)
        width, height = extent(group.noun, scene.style, pixels)
        spots = _spots(rng, region, group.count, len(scene.groups) == 1)
        for spot in spots:
            x = _place(rng, spot.left, spot.width, width, scene.tidy)
            y = _place(rng, spot.top, spot.height, height, scene.tidy)
            placed.append((index, x, y, width, height))
    return placed


def _longer_side(rng: np.random.Generator, scene: Scene, group: Group) -> int:
    if scene.relation is None:
        alone = (_OPEN_ALONE if scene.open else _ALONE)[scene.size]
        least, most = {1: alone, 2: _HALF, 3: _QUARTER}[group.count]
    else:
        least, most = {1: _HALF, 2: _QUARTER, 3: _THIRD_OF_HALF}[group.count]
    if scene.tidy:
        return most
    # Even sizes only: half the number of distinct sprites to cache, and whole pixels at 32.
    return 2 * int(rng.integers(least // 2, most // 2 + 1))


def _regions(scene: Scene) -> list[_Region]:
    """The part of the image that belongs to each group."""
    half = GRID // 2
    if scene.relation is None:
        return [_Region(0, 0, GRID, GRID)]
    if scene.relation in ("left of", "right of"):
        halves = [_Region(0, 0, half, GRID), _Region(half, 0, half, GRID)]
    else:
        halves = [_Region(0, 0, GRID, half), _Region(0, half, GRID, half)]
    return halves if scene.relation in ("left of", "above") else halves[::-1]


def _spots(rng: np.random.Generator, region: _Region, count: int, alone: bool) -> list[_Region]:
    """Divide a region into one part for each sprite."""
    if count == 1:
        return [region]
    if alone and count == 3:
        half = GRID // 2
        row = [_Region(0, 0, half, half), _Region(half, 0, half, half)]
        single = _Region(0, half, GRID, half)
        if rng.integers(2):
            return [*row, single]
        return [single._replace(top=0), *(part._replace(top=half) for part in row)]
    along_x = bool(rng.integers(2)) if alone else region.width > region.height
    edges = [GRID * i // count for i in range(count + 1)]
    spans = list(itertools.pairwise(edges))
    if along_x:
        return [region._replace(left=a, width=b - a) for a, b in spans]
    return [region._replace(top=a, height=b - a) for a, b in spans]


def _place(rng: np.random.Generator, start: int, length: int, size: int, tidy: bool) -> int:
    """Position of a sprite within a span: near its middle, or there if tidy, GAP off the ends."""
    slack = max(0, length - 2 * GAP - size)
    # A long spot would let "left of" look like "above"; at most an eighth off its middle.
    reach = 0 if tidy else min(slack, GRID // 4)
    first = start + (length - size - reach) // 2
    return first + int(rng.integers(reach + 1))


def render(scene: Scene, size: int) -> np.ndarray:
    """Draw a scene.

    Args:
      scene: the scene to draw.
      size: side of the image in pixels, 1..1024.

    Returns:
      uint8 [size, size, 3], antialiased; sizes agree up to antialiasing.

    Raises:
      UserError: bad size.
    """
    if not 1 <= size <= MAX_SIZE:
        raise UserError(f"render: size={size} is not within 1..{MAX_SIZE}")
    scale = -(-size // GRID)
    if scene.open:
        canvas = shaded_background(scene, GRID * scale)
    else:
        canvas = np.full((GRID * scale, GRID * scale, 3), BACKGROUNDS[scene.background], np.uint8)
    for index, *cells in _cells(scene):
        x, y, width, height = (cell * scale for cell in cells)
        group = scene.groups[index]
        ink, cover = premultiplied_sprite(group.noun, scene.style, group.colour, width, height)
        under = canvas[y : y + height, x : x + width]
        under[:] = np.minimum(ink + (under * cover + 127) // 255, 255)
    if GRID * scale != size:
        image = Image.fromarray(canvas).resize((size, size), Image.Resampling.BOX)
        canvas = np.array(image)
    return canvas
