"""Sprites: shapes and emoji art as RGBA images of any size, in natural or named colours.

Every sprite is cut to the extent of its ink, so that a box in a layout is exactly what is seen.
"""

from __future__ import annotations

import functools
import io

import numpy as np
from PIL import Image
from scipy import ndimage

from imagen_jax.data.scenes import art
from imagen_jax.data.scenes.vocabulary import BACKGROUNDS, COLOURS, NOUNS, RGB, STYLES
from imagen_jax.errors import UserError

MASTER_PIXELS = 256
LARGEST = 1024
"""Greatest length of a sprite's longer side, in pixels."""
_SMALL = 64
"""Sprites up to this length are kept, being most of all and small."""
_LUMA = np.array([0.299, 0.587, 0.114], np.float32)


@functools.lru_cache(maxsize=4096)
def _kept_drawing(noun: str, style: str, colour: str | None, pixels: int) -> np.ndarray:
    """`_drawing` of the sizes that come again and again."""
    return _drawing(noun, style, colour, pixels)


def small_drawing(noun: str, style: str, colour: str | None) -> np.ndarray:
    """A noun as drawn at 128 pixels, cut to its ink: uint8 [h, w, 4], straight alpha.

    Args:
      colour: paint of a shape; None for emoji, which are drawn in their own colours (see `tint`).
    """
    return _kept_drawing(noun, style, colour, MASTER_PIXELS // 2)


def _drawing(noun: str, style: str, colour: str | None, pixels: int) -> np.ndarray:
    """A noun as drawn, cut to its ink: uint8 [h, w, 4]; only shapes are drawn in a colour."""
    import resvg_py

    icon = NOUNS[noun].icon
    if icon is not None:
        svg = art.icon_svg(icon, style)
    else:
        assert colour is not None  # of a shape: see check_words
        svg = art.shape_svg(noun, style, COLOURS[colour])
    png = resvg_py.svg_to_bytes(svg_string=svg, width=pixels, height=pixels)
    rgba = np.asarray(Image.open(io.BytesIO(bytes(png))).convert("RGBA"))
    ink = rgba[..., 3] > 16
    rows, columns = np.flatnonzero(ink.any(1)), np.flatnonzero(ink.any(0))
    return rgba[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]


def _master(noun: str, style: str, colour: str | None, pixels: int) -> Image.Image:
    """The sprite to scale down from: RGBA with premultiplied alpha, cut to its ink."""
    drawing = _kept_drawing if pixels <= MASTER_PIXELS else _drawing
    if colour is not None and not NOUNS[noun].is_shape:
        rgba = tint(drawing(noun, style, None, pixels), COLOURS[colour])
    else:
        rgba = drawing(noun, style, colour, pixels)
    return Image.fromarray(rgba).convert("RGBa")


def tint(rgba: np.ndarray, colour: RGB) -> np.ndarray:
    """Recolour art by its luminance: the median becomes the colour, below it shade, above it light.

    Args:
      rgba: uint8 [h, w, 4], straight alpha.
      colour: RGB of 0..255.

    Returns:
      uint8 [h, w, 4] with the same alpha.
    """
    luminance = rgba[..., :3].astype(np.float32) @ _LUMA / 255
    middle = float(np.clip(np.median(luminance[rgba[..., 3] > 128]), 0.15, 0.85))
    target = np.asarray(colour, np.float32)
    shade = np.clip(luminance / middle, 0, 1)[..., None] ** 1.4
    light = np.clip((luminance - middle) / max(1 - middle, 0.3), 0, 1)[..., None]
    rgb = target * (0.15 + 0.85 * shade)
    rgb = rgb + (255 - rgb) * 0.6 * light
    return np.concatenate([rgb.astype(np.uint8), rgba[..., 3:]], -1)


@functools.cache
def aspect(noun: str, style: str) -> float:
    """Width over height of the sprite's ink (independent of its colour)."""
    colour = "red" if NOUNS[noun].is_shape else None
    width, height = _master(noun, style, colour, MASTER_PIXELS).size
    return width / height


def extent(noun: str, style: str, pixels: int) -> tuple[int, int]:
    """(width, height) of the sprite whose longer side is `pixels`."""
    ratio = aspect(noun, style)
    if ratio >= 1:
        return pixels, max(1, round(pixels / ratio))
    return max(1, round(pixels * ratio)), pixels


def premultiplied_sprite(
    noun: str, style: str, colour: str | None, width: int, height: int
) -> tuple[np.ndarray, np.ndarray]:
    """The sprite stretched to a box, ready to be composited.

    Returns:
      (ink, cover): ink uint16 [height, width, 3] = colour x alpha, and
      cover uint16 [height, width, 1] = 255 - alpha, both of 0..255.
    """
    make = _kept_sprite if max(width, height) <= _SMALL else _sprite
    return make(noun, style, colour, width, height)


@functools.lru_cache(maxsize=16384)
def _kept_sprite(
    noun: str, style: str, colour: str | None, width: int, height: int
) -> tuple[np.ndarray, np.ndarray]:
    return _sprite(noun, style, colour, width, height)


def _sprite(
    noun: str, style: str, colour: str | None, width: int, height: int
) -> tuple[np.ndarray, np.ndarray]:
    longer = max(width, height)
    # Images of 64 pixels, the bulk, need no more than a quarter of the memory.
    pixels = next(p for p in (MASTER_PIXELS // 2, MASTER_PIXELS, LARGEST)
                  if longer <= (_SMALL if p == MASTER_PIXELS // 2 else p))  # fmt: skip
    image = _master(noun, style, colour, pixels).resize((width, height), Image.Resampling.BOX)
    array = np.asarray(image).astype(np.uint16)
    ink, cover = array[..., :3].copy(), 255 - array[..., 3:]
    ink.flags.writeable = cover.flags.writeable = False
    return ink, cover


def sprite(noun: str, style: str, colour: str | None, pixels: int) -> np.ndarray:
    """A sprite as an image of its own.

    Args:
      noun: a name of vocabulary.NOUNS.
      style: a key of vocabulary.STYLES.
      colour: a name of vocabulary.COLOURS, or None for the art's own colours (not for shapes).
      pixels: length of the longer side, 1..1024.

    Returns:
      uint8 [h, w, 4], RGBA with straight alpha, max(h, w) == pixels.

    Raises:
      UserError: on an unknown noun, style or colour, a shape without a colour or a bad size.
    """
    check_words(noun, style, colour)
    if not 1 <= pixels <= LARGEST:
        raise UserError(f"sprite: pixels={pixels} is not within 1..{LARGEST}")
    ink, cover = premultiplied_sprite(noun, style, colour, *extent(noun, style, pixels))
    alpha = 255 - cover.astype(np.float32)
    straight = np.clip(ink * 255 / np.maximum(alpha, 1), 0, 255)
    return np.concatenate([straight, alpha], -1).round().astype(np.uint8)


def check_words(noun: str, style: str, colour: str | None) -> None:
    """Raise UserError, with the choices, unless the sprite exists."""
    if noun not in NOUNS:
        raise UserError(f"unknown noun {noun!r}; choices: {', '.join(sorted(NOUNS))}")
    if style not in STYLES:
        raise UserError(f"unknown style {style!r}; choices: {', '.join(STYLES)}")
    if colour is None and NOUNS[noun].is_shape:
        raise UserError(f"the shape {noun!r} needs a colour; choices: {', '.join(COLOURS)}")
    if colour is not None and colour not in COLOURS:
        raise UserError(f"unknown colour {colour!r}; choices: {', '.join(COLOURS)}")


@functools.cache
def is_visible(noun: str, style: str, colour: str | None, background: str) -> bool:
    """True if the sprite stands out from a background of vocabulary.BACKGROUNDS.

    Most of its ink must differ from the background, and what differs must hang together.
    """
    rgba = sprite(noun, style, colour, 32)
    ink = rgba[..., 3] > 128
    away = np.linalg.norm(rgba[..., :3] - np.asarray(BACKGROUNDS[background], np.float32), axis=-1)
    seen = ink & (away > 50)
    parts = np.bincount(ndimage.label(seen, structure=np.ones((3, 3)))[0].ravel())[1:]
    return bool(seen.sum() > 0.7 * ink.sum() and parts.max() > 0.9 * parts.sum())


@functools.lru_cache(maxsize=65536)
def stands_out(noun: str, style: str, colour: str | None, background: str) -> bool:
    """True if a sprite of an open scene stands out from a background.

    Most of its ink must differ from the background, and what differs must reach as far as it does
    on all four sides.
    """
    ink, away = _ink_and_distance(noun, style, colour, background)
    seen = ink & (away > 50)
    if seen.sum() < 0.6 * ink.sum():
        return False
    return bool(np.abs(np.subtract(_box(seen), _box(ink))).max() <= 1)


def _ink_and_distance(
    noun: str, style: str, colour: str | None, background: str
) -> tuple[np.ndarray, np.ndarray]:
    rgba = sprite(noun, style, colour, 32)
    away = np.linalg.norm(rgba[..., :3] - np.asarray(BACKGROUNDS[background], np.float32), axis=-1)
    return rgba[..., 3] > 128, away


def _box(mask: np.ndarray) -> tuple[int, ...]:
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    return rows[0], rows[-1], columns[0], columns[-1]


@functools.cache
def is_loose(noun: str, style: str) -> bool:
    """True if the drawing has separate parts, which beside others nobody could attribute."""
    colour = "red" if NOUNS[noun].is_shape else None
    ink = np.pad(sprite(noun, style, colour, 48)[..., 3] > 64, 2)
    near = ndimage.binary_dilation(ink, iterations=1)
    return bool(ndimage.label(near, structure=np.ones((3, 3)))[1] > 1)
