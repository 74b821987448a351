"""Reads an image back: background colour, and what each object in it is.

It never sees a caption. The background is the usual colour of the border; what differs from it
falls into connected blobs; each blob is cut out, brought to one size and compared with every sprite
of the level, in both styles and all colours, on that background.
"""

from __future__ import annotations

import functools
from collections import defaultdict
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from PIL import Image
from scipy import ndimage

from imagen_jax.data.scenes.levels import Level
from imagen_jax.data.scenes.sprites import extent, premultiplied_sprite
from imagen_jax.data.scenes.vocabulary import BACKGROUNDS, NOUNS
from imagen_jax.errors import UserError

SIDE = 64
"""Images are brought to this side before they are read."""
FEATURE_SIDE = 16
TEMPLATE_PIXELS = (16, 24, 40)
"""Longer sides at which each sprite is drawn as a template: small ones are blurrier."""
FOREGROUND = 40.0
"""Least RGB distance (0..441) from the background of a pixel that belongs to an object."""
SAME_BACKGROUND = 45.0
"""Greatest RGB distance of a border from the named colour it is taken for."""
SPECK = 12
"""Blobs of fewer pixels are noise."""
UNKNOWN = 0.17
"""Root mean square distance (values in 0..1) beyond which a blob is no known sprite."""
ASPECT_WEIGHT = 0.25


class DecodedObject(NamedTuple):
    """One blob.

    Attributes:
      noun, colour, style: labels of the nearest sprite (colour None: its own colours); all None
        when no sprite is near.
      box: (left, top, width, height) as fractions 0..1 of the image's side.
      distance: to that sprite, root mean square of colour values in 0..1.
    """

    noun: str | None
    colour: str | None
    style: str | None
    box: tuple[float, float, float, float]
    distance: float


class Decoded(NamedTuple):
    """An image as read: background is None when its border has no colour of the vocabulary."""

    background: str | None
    objects: tuple[DecodedObject, ...]


class _Cut(NamedTuple):
    """A blob: index of its image, its box in pixels, features [3, d] of cuts around it."""

    image: int
    box: tuple[int, int, int, int]
    features: np.ndarray


class _Templates(NamedTuple):
    """labels[k] is the (noun, colour, style) of features[k]; norms[k] is its squared length."""

    labels: list[tuple[str, str | None, str]]
    features: np.ndarray
    norms: np.ndarray


def decode(image: np.ndarray, level: Level) -> Decoded:
    """Read an image; see `decode_all`."""
    return decode_all([image], level)[0]


def decode_all(images: Sequence[np.ndarray] | np.ndarray, level: Level) -> list[Decoded]:
    """Read images.

    Args:
      images: n of uint8 [h, h, 3]; other sizes than 64 are scaled.
      level: whose nouns, colours, styles and backgrounds may occur.

    Raises:
      UserError: an image is not square uint8 RGB.
    """
    cuts: dict[str, list[_Cut]] = defaultdict(list)
    backgrounds: list[str | None] = []
    for index, original in enumerate(images):
        image = at_side(original, SIDE)
        pixels = image.astype(np.float32)
        colour = np.median(_border(pixels), axis=0)
        nearest, distance = nearest_background(colour, level.backgrounds)
        backgrounds.append(nearest if distance <= SAME_BACKGROUND else None)
        cuts[nearest] += [
            _Cut(index, box, _cut_features(image, box, nearest))
            for box in find_blobs(pixels, colour)
        ]
    objects: list[list[DecodedObject]] = [[] for _ in images]
    for background, found in cuts.items():
        if found:
            for cut, thing in zip(found, _recognise(found, background, level), strict=True):
                objects[cut.image].append(thing)
    return [Decoded(b, tuple(o)) for b, o in zip(backgrounds, objects, strict=True)]


def at_side(image: np.ndarray, side: int) -> np.ndarray:
    """Return an image at [side, side, 3], scaled where it has another size.

    Raises:
      UserError: it is not square uint8 RGB.
    """
    own = image.shape[0]
    if image.shape != (own, own, 3) or image.dtype != np.uint8:
        raise UserError(f"image must be uint8 [h, h, 3]; got {image.dtype} {list(image.shape)}")
    if own == side:
        return image
    return np.asarray(Image.fromarray(image).resize((side, side), Image.Resampling.BICUBIC))


def _border(pixels: np.ndarray) -> np.ndarray:
    sides = pixels[:2], pixels[-2:], pixels[:, :2], pixels[:, -2:]
    return np.concatenate([side.reshape(-1, 3) for side in sides])


def nearest_background(colour: np.ndarray, names: tuple[str, ...]) -> tuple[str, float]:
    """Return (name of the background that is nearest to a colour [3], its distance)."""
    distances = {name: float(np.linalg.norm(colour - BACKGROUNDS[name])) for name in names}
    nearest = min(distances, key=distances.__getitem__)
    return nearest, distances[nearest]


def find_blobs(pixels: np.ndarray, background: np.ndarray) -> list[tuple[int, int, int, int]]:
    """Boxes (left, top, right, bottom), in pixels, of all that differs from the background.

    Fragments next to a much larger blob (a cat's whiskers, the sparks of a rocket) belong to it.

    Args:
      pixels: float [h, w, 3] in 0..255.
      background: [3].
    """
    mask = np.linalg.norm(pixels - background, axis=-1) > FOREGROUND
    labels, _ = ndimage.label(mask, structure=np.ones((3, 3)))
    slices = ndimage.find_objects(labels)
    areas = np.bincount(labels.ravel())[1:]
    blobs: list[tuple[int, int, int, int]] = []
    sizes: list[int] = []
    for index in np.argsort(-areas, kind="stable"):
        rows, columns = slices[index]
        box = (columns.start, rows.start, columns.stop, rows.stop)
        area = int(areas[index])
        for k, other in enumerate(blobs):
            if area < 0.3 * sizes[k] and _apart(box, other) <= 1:
                blobs[k] = _union(box, other)
                break
        else:
            if area >= SPECK:
                blobs.append(box)
                sizes.append(area)
    return blobs


def _apart(a: tuple[int, int, int, int], b: tuple[int, int, int, int]) -> int:
    """Pixels between two boxes; 0 when they touch or overlap."""
    return max(a[0] - b[2], b[0] - a[2], a[1] - b[3], b[1] - a[3], 0)


def _union(a: tuple[int, int, int, int], b: tuple[int, int, int, int]) -> tuple[int, int, int, int]:
    return min(a[0], b[0]), min(a[1], b[1]), max(a[2], b[2]), max(a[3], b[3])


def _cut_features(image: np.ndarray, box: tuple[int, int, int, int], background: str) -> np.ndarray:
    """[3, d] features of three cuts: blur moves the edge of a blob by a pixel, in or out."""
    return np.stack([_feature(image, box, margin, background) for margin in (-1, 0, 1)])


def _recognise(cuts: list[_Cut], background: str, level: Level) -> list[DecodedObject]:
    """The nearest sprite of each blob, over its cuts."""
    templates = _templates(level, background)
    # One product for all blobs: templates are megabytes, to be read as few times as can be.
    queries = np.concatenate([cut.features for cut in cuts])
    squared = templates.norms - 2 * queries @ templates.features.T
    squared += (queries**2).sum(-1, keepdims=True)
    squared = squared.reshape(len(cuts), -1, len(templates.labels)).min(1)
    things: list[DecodedObject] = []
    for cut, best in zip(cuts, squared.argmin(-1), strict=True):
        distance = float(np.sqrt(max(squared[len(things), best], 0)))
        noun, colour, style = templates.labels[best] if distance <= UNKNOWN else (None,) * 3
        left, top, right, bottom = (edge / SIDE for edge in cut.box)
        box = (left, top, right - left, bottom - top)
        things.append(DecodedObject(noun, colour, style, box, distance))
    return things


def _feature(
    image: np.ndarray, box: tuple[int, int, int, int], margin: int, background: str
) -> np.ndarray:
    """Feature [d] of a cut: its pixels at one size, and its aspect.

    Squared distances of the pixels' part are mean squares of values in 0..1.
    """
    left, top, right, bottom = box
    if min(right - left, bottom - top) < 3:
        margin = max(margin, 0)
    left, top, right, bottom = left - margin, top - margin, right + margin, bottom + margin
    pad = 2
    canvas = np.empty((image.shape[0] + 2 * pad, image.shape[1] + 2 * pad, 3), np.uint8)
    canvas[:] = BACKGROUNDS[background]
    canvas[pad:-pad, pad:-pad] = image
    cut = canvas[top + pad : bottom + pad, left + pad : right + pad]
    scaled = Image.fromarray(cut).resize((FEATURE_SIDE,) * 2, Image.Resampling.BILINEAR)
    colours = np.asarray(scaled, np.float32).ravel() / 255
    aspect = np.log((right - left) / (bottom - top))
    return np.append(colours / np.sqrt(colours.size), ASPECT_WEIGHT * aspect).astype(np.float32)


@functools.lru_cache(maxsize=16)
def _templates(level: Level, background: str) -> _Templates:
    """Every sprite of a level, drawn on a background and cut out just as a blob is."""
    labels, features = [], []
    for noun in level.nouns:
        for style in level.styles:
            for colour in (*level.colours, *(() if NOUNS[noun].is_shape else (None,))):
                for pixels in TEMPLATE_PIXELS:
                    feature = _sprite_feature(noun, style, colour, background, pixels)
                    if feature is not None:
                        labels.append((noun, colour, style))
                        features.append(feature)
    stacked = np.stack(features)
    return _Templates(labels, stacked, (stacked**2).sum(-1))


def _sprite_feature(
    noun: str, style: str, colour: str | None, background: str, pixels: int
) -> np.ndarray | None:
    width, height = extent(noun, style, pixels)
    canvas = np.empty((height + 4, width + 4, 3), np.uint8)
    canvas[:] = BACKGROUNDS[background]
    ink, cover = premultiplied_sprite(noun, style, colour, width, height)
    canvas[2:-2, 2:-2] = np.minimum(ink + (canvas[2:-2, 2:-2] * cover + 127) // 255, 255)
    blobs = find_blobs(canvas.astype(np.float32), np.asarray(BACKGROUNDS[background], np.float32))
    return _feature(canvas, blobs[0], 0, background) if blobs else None


@functools.cache
def is_like_natural(noun: str, style: str, colour: str) -> bool:
    """True if a tint hardly changes the art: the flat fox is an orange fox already."""
    if NOUNS[noun].is_shape:
        return False
    a, b = (_sprite_feature(noun, style, tint, "gray", 24) for tint in (None, colour))
    return a is not None and b is not None and bool(np.linalg.norm(a - b) < LIKE_NATURAL)


LIKE_NATURAL = 0.09
"""Root mean square distance (values in 0..1) below which a tint counts as the art's own colours."""
