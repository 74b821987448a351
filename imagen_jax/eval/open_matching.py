"""Reads images of open scenes back: the nearest drawings of every object, over all concepts.

It never sees a caption. The background is a gentle slope fitted to the border; what differs from it
falls into objects, parts a few pixels apart belonging together; each is cut out, brought to one
size and compared with every drawing of the level, in every style and colour.

With ink k and cover c of a drawing (its premultiplied colours, and one minus its alpha), it looks
like k + c b on a background of colour b. So one table of drawings does for all backgrounds:

    |q - k - c b|^2 = |q|^2 - 2 q.k - 2 (q b).c + |k|^2 + 2 b (k.c) + |b|^2 |c|^2        (1)
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
from PIL import Image
from scipy import ndimage

from imagen_jax.data.scenes.levels import Level
from imagen_jax.data.scenes.sprites import is_loose, small_drawing, tint
from imagen_jax.data.scenes.vocabulary import COLOURS, NOUNS
from imagen_jax.eval.template_matching import at_side, nearest_background

SIDE = 128
"""Images are brought to this side before they are read."""
FEATURE_SIDE = 20
FOREGROUND = 36.0
"""Least RGB distance (0..441) from the background of a pixel that belongs to an object."""
SAME_BACKGROUND = 60.0
"""Greatest RGB distance of a border from the named colour it is taken for."""
REACH = 2
"""Parts at most twice as many pixels apart are one object."""
SPECK = 40
"""Objects of fewer pixels are noise."""
UNKNOWN = 0.17
"""Root mean square distance (values in 0..1) beyond which an object is no known drawing."""
ASPECT_WEIGHT = 0.25
NEAREST = 5
_CUTS = (-1, 0, 1)
"""Pixels by which cuts are wider than an object: blur moves its edge, in or out."""
_QUERIES = 192


class Thing(NamedTuple):
    """One object.

    Attributes:
      nouns: names of the nearest drawings, each once, nearest first; empty when none is near.
      distances: (noun, colour, style) -> distance of that drawing, of all with one of `nouns`.
      box: (left, top, width, height) as fractions 0..1 of the image's side.
      distance: to the nearest, root mean square of colour values in 0..1.
    """

    nouns: tuple[str, ...]
    distances: dict[tuple[str, str | None, str], float]
    box: tuple[float, float, float, float]
    distance: float


class Seen(NamedTuple):
    """An image as read: background is None when its border has no colour of the vocabulary."""

    background: str | None
    things: tuple[Thing, ...]


class _Drawings(NamedTuple):
    """All drawings of a level, as equation (1) needs them; k is an index into labels."""

    labels: list[tuple[str, str | None, str]]
    ink: np.ndarray
    cover: np.ndarray
    ink_ink: np.ndarray
    ink_cover: np.ndarray
    cover_cover: np.ndarray
    aspects: np.ndarray
    loose: np.ndarray


class _Cuts(NamedTuple):
    """An object: its image, its box in pixels, and cuts around it.

    Attributes:
      pixels: [3, d], values in 0..1.
      aspects: [3] logarithms of width over height.
      background: [3], values in 0..1.
      whole: it is everything in the image that differs from the background, taken as one.
    """

    image: int
    box: tuple[int, int, int, int]
    pixels: np.ndarray
    aspects: np.ndarray
    background: np.ndarray
    whole: bool


def read_all(images: Sequence[np.ndarray] | np.ndarray, level: Level) -> list[Seen]:
    """Read images.

    Args:
      images: n of uint8 [h, h, 3]; other sizes than 128 are scaled.
      level: an open one, whose nouns, colours, styles and backgrounds may occur.

    Raises:
      UserError: an image is not square uint8 RGB.
    """
    backgrounds, cuts = [], []
    for index, original in enumerate(images):
        image = at_side(original, SIDE).astype(np.float32)
        slope = fit_background(image)
        nearest, distance = nearest_background(slope.mean((0, 1)), level.backgrounds)
        backgrounds.append(nearest if distance <= SAME_BACKGROUND else None)
        boxes = find_objects(image, slope)
        cuts += [_cut(image, index, box, slope, whole=False) for box in boxes]
        if len(boxes) > 1:
            union = (*np.min(boxes, 0)[:2], *np.max(boxes, 0)[2:])
            cuts.append(_cut(image, index, union, slope, whole=True))
    things: list[list[tuple[Thing, bool]]] = [[] for _ in images]
    for start in range(0, len(cuts), _QUERIES):
        part = cuts[start : start + _QUERIES]
        for cut, thing in zip(part, _recognise(part, _drawings(level)), strict=True):
            things[cut.image].append((thing, cut.whole))
    return [Seen(b, _one_or_several(t)) for b, t in zip(backgrounds, things, strict=True)]


def _one_or_several(found: list[tuple[Thing, bool]]) -> tuple[Thing, ...]:
    """The objects, or all of them as one drawing that falls apart, whichever is nearer."""
    parts = [thing for thing, whole in found if not whole]
    for thing, whole in found:
        if whole and thing.distance < min(UNKNOWN, float(np.mean([p.distance for p in parts]))):
            return (thing,)
    return tuple(parts)


def fit_background(image: np.ndarray) -> np.ndarray:
    """The background [h, w, 3] of an image: a plane through the colours of its border.

    Fitted twice, the second time without what is far from the first plane.
    """
    side = image.shape[0]
    at = (np.arange(side, dtype=np.float32) + 0.5) / side
    y, x = np.meshgrid(at, at, indexing="ij")
    terms = np.stack([np.ones_like(x), x, y], -1)
    border = np.ones((side, side), bool)
    border[2:-2, 2:-2] = False
    colours, places = image[border], terms[border]
    plane = np.zeros((3, 3), np.float32)
    plane[0] = np.median(colours, axis=0)
    for _ in range(2):
        near = np.linalg.norm(colours - places @ plane, axis=-1) < FOREGROUND
        if near.sum() < 16:
            break
        plane = np.linalg.lstsq(places[near], colours[near], rcond=None)[0]
    return np.clip(terms @ plane, 0, 255)


def find_objects(image: np.ndarray, background: np.ndarray) -> list[tuple[int, int, int, int]]:
    """Boxes (left, top, right, bottom), in pixels, of all that differs from the background."""
    differs = np.linalg.norm(image - background, axis=-1) > FOREGROUND
    grown = ndimage.binary_dilation(differs, np.ones((3, 3)), iterations=REACH)
    labels = ndimage.label(grown, np.ones((3, 3)))[0] * differs
    boxes = []
    for number, slices in enumerate(ndimage.find_objects(labels), 1):
        if slices is not None and (labels[slices] == number).sum() >= SPECK:
            rows, columns = slices
            boxes.append((columns.start, rows.start, columns.stop, rows.stop))
    return boxes


def _cut(
    image: np.ndarray, index: int, box: Sequence[int], slope: np.ndarray, whole: bool
) -> _Cuts:
    left, top, right, bottom = (int(edge) for edge in box)
    background = slope[top:bottom, left:right].mean((0, 1))
    pixels, aspects = [], []
    for margin in _CUTS:
        if min(right - left, bottom - top) < 6:
            margin = max(margin, 0)
        edges = (left - margin, top - margin, right + margin, bottom + margin)
        canvas = np.empty((edges[3] - edges[1], edges[2] - edges[0], 3), np.uint8)
        canvas[:] = background.round()
        inside = [int(np.clip(edge, 0, SIDE)) for edge in edges]
        canvas[
            inside[1] - edges[1] : inside[3] - edges[1], inside[0] - edges[0] : inside[2] - edges[0]
        ] = image[inside[1] : inside[3], inside[0] : inside[2]]
        scaled = Image.fromarray(canvas).resize((FEATURE_SIDE,) * 2, Image.Resampling.BOX)
        pixels.append(np.asarray(scaled, np.float32).ravel() / 255)
        aspects.append(np.log(canvas.shape[1] / canvas.shape[0]))
    return _Cuts(
        index, (left, top, right, bottom), np.stack(pixels), np.array(aspects, np.float32),
        background / 255, whole,
    )  # fmt: skip


def _recognise(cuts: list[_Cuts], drawings: _Drawings) -> list[Thing]:
    """The nearest drawings of each object, over its cuts, by equation (1)."""
    q = np.concatenate([cut.pixels for cut in cuts])
    b = np.repeat([cut.background for cut in cuts], len(_CUTS), 0)
    aspects = np.concatenate([cut.aspects for cut in cuts])
    shaded = np.einsum("npc,nc->np", q.reshape(len(q), -1, 3), b)
    squared = (q**2).sum(-1, keepdims=True) - 2 * q @ drawings.ink.T - 2 * shaded @ drawings.cover.T
    squared += drawings.ink_ink + 2 * b @ drawings.ink_cover.T
    squared += (b**2).sum(-1, keepdims=True) * drawings.cover_cover
    squared /= q.shape[1]
    squared += (ASPECT_WEIGHT * (aspects[:, None] - drawings.aspects)) ** 2
    squared = squared.reshape(len(cuts), len(_CUTS), -1).min(1)
    distances = np.sqrt(np.maximum(squared, 0))
    return [_thing(cut, row, drawings) for cut, row in zip(cuts, distances, strict=True)]


def _thing(cut: _Cuts, distances: np.ndarray, drawings: _Drawings) -> Thing:
    if cut.whole:
        distances = np.where(drawings.loose, distances, np.inf)
    nouns: dict[str, None] = {}
    for k in np.argsort(distances)[:200]:
        if distances[k] <= UNKNOWN and len(nouns) < NEAREST:
            nouns[drawings.labels[k][0]] = None
    left, top, right, bottom = (edge / SIDE for edge in cut.box)
    return Thing(
        tuple(nouns),
        {
            drawings.labels[k]: float(distances[k])
            for noun in nouns for k in _of_noun(drawings)[noun]
        },
        (left, top, right - left, bottom - top),
        float(distances.min()),
    )  # fmt: skip


_indices: dict[int, dict[str, list[int]]] = {}


def _of_noun(drawings: _Drawings) -> dict[str, list[int]]:
    """Noun -> its drawings."""
    if id(drawings) not in _indices:
        found: dict[str, list[int]] = {}
        for k, (noun, _, _) in enumerate(drawings.labels):
            found.setdefault(noun, []).append(k)
        _indices[id(drawings)] = found
    return _indices[id(drawings)]


@functools.lru_cache(maxsize=2)
def _drawings(level: Level) -> _Drawings:
    """Every drawing of a level at the size of a cut."""
    labels, inks, covers, aspects, loose = [], [], [], [], []
    for noun in level.nouns:
        for style in level.styles:
            for colour, ink, cover, log_aspect in _tints(noun, style, level.colours):
                labels.append((noun, colour, style))
                inks.append(ink)
                covers.append(cover)
                aspects.append(log_aspect)
                loose.append(is_loose(noun, style))
    ink, cover = np.stack(inks), np.stack(covers)
    pixels = ink.reshape(len(ink), -1, 3)
    return _Drawings(
        labels, ink, cover, (ink**2).sum(-1), np.einsum("npc,np->nc", pixels, cover),
        (cover**2).sum(-1), np.array(aspects, np.float32), np.array(loose),
    )  # fmt: skip


def _tints(
    noun: str, style: str, colours: tuple[str, ...]
) -> Iterator[tuple[str | None, np.ndarray, np.ndarray, float]]:
    """(colour, ink [d], cover [d / 3], log aspect) of a noun: in its own colours and in all others.

    Tints are taken of small drawings, where they cost a tenth of those of full size.
    """
    shape = NOUNS[noun].is_shape
    for colour in colours if shape else (None, *colours):
        drawing = small_drawing(noun, style, colour if shape else None)
        rgba = _stretched(drawing, 2 * FEATURE_SIDE)
        if colour is not None and not shape:
            rgba = tint(rgba, COLOURS[colour])
        alpha = rgba[..., 3:].astype(np.float32) / 255
        log_aspect = float(np.log(drawing.shape[1] / drawing.shape[0]))
        yield colour, _reduced(rgba[..., :3] / 255 * alpha), _reduced(1 - alpha), log_aspect


def _stretched(drawing: np.ndarray, side: int) -> np.ndarray:
    image = Image.fromarray(drawing).convert("RGBa").resize((side, side), Image.Resampling.BOX)
    return np.asarray(image.convert("RGBA"))


def _reduced(pixels: np.ndarray) -> np.ndarray:
    """[2 s, 2 s, c] -> [s * s * c], means of 2 x 2 pixels."""
    blocks = pixels.astype(np.float32).reshape(FEATURE_SIDE, 2, FEATURE_SIDE, 2, -1)
    return blocks.mean((1, 3)).ravel()
