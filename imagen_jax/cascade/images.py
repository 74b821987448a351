"""Images and masks that a user gives: read, checked, and brought to the size of a stage."""

from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np
from PIL import Image

from imagen_jax.data.images import open_image, read_file
from imagen_jax.errors import UnusableError, UserError
from imagen_jax.files import given_file

MAX_PIXELS = 64 * 2**20
"""Of a file that is read: what says that it holds more is not decoded."""


def read_image(file: str | Path | bytes, max_pixels: int = MAX_PIXELS) -> np.ndarray:
    """Return an image file as RGB: upright, in sRGB, and on white where it is transparent.

    Args:
      file: its path, or its content.
      max_pixels: most pixels that are decoded.

    Returns:
      [h, w, 3] uint8.

    Raises:
      OSError: there is no such file, or it cannot be read.
      UserError: it is no image of data.images.FORMATS, damaged, or has too many pixels.
    """
    return np.asarray(_open(file, max_pixels))


def read_mask(file: str | Path | bytes) -> np.ndarray:
    """Return a mask file: the image is repainted where it is white, and at least half bright.

    Where it is transparent it is black.

    Args, raises: as for read_image; also UserError where nothing is white.

    Returns:
      [h, w] bool, True where the image is repainted.

    Warns:
      UserWarning: some of it is neither black nor white, as in a JPEG.
    """
    mask = _open(file, MAX_PIXELS, alpha=True)
    black = Image.new("RGBA", mask.size, (0, 0, 0, 255))
    grey = np.asarray(Image.alpha_composite(black, mask).convert("L"))
    white = grey >= 128
    if not white.any():
        what = f"{grey.max()} of 255 at the brightest" if grey.any() else "black everywhere"
        raise UserError(
            f"{_name(file)} is {what}; the image is repainted where its mask is white "
            "(what is transparent counts as black)"
        )
    between = ((grey > 0) & (grey < 255)).mean()
    if between:
        warnings.warn(
            f"{_name(file)}: {between:.1%} of the mask is neither black nor white; where it is at "
            "least half bright, the image is repainted"
            + ", and what is transparent counts as black"
            * (mask.getchannel("A").getextrema()[0] != 255),
            stacklevel=2,
        )
    return white


def _name(file: str | Path | bytes) -> str:
    return "the given image" if isinstance(file, bytes) else str(file)


def _open(file: str | Path | bytes, max_pixels: int, alpha: bool = False) -> Image.Image:
    name = _name(file)
    try:
        if isinstance(file, bytes):
            return open_image(file, max_pixels, alpha).image
        with given_file(file, "image") as path:
            return open_image(read_file(path), max_pixels, alpha).image
    except UnusableError as error:
        raise UserError(f"{name}: {error}") from error


def crop_to(image: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    """The largest middle part of an image [h, w] or [h, w, 3] with the aspect ratio of `shape`."""
    height, width = image.shape[:2]
    h = max(1, min(height, round(width * shape[0] / shape[1])))
    w = max(1, min(width, round(height * shape[1] / shape[0])))
    top, left = (height - h) // 2, (width - w) // 2
    return image[top : top + h, left : left + w]


def check_images(image: np.ndarray, count: int) -> np.ndarray:
    """Images as [1 or count, h, w, 3].

    Args:
      image: uint8 [h, w, 3] for all, or [count, h, w, 3].

    Raises:
      UserError: another shape, type or number.
    """
    image = np.asarray(image)
    stack = image[None] if image.ndim == 3 else image
    if image.dtype != np.uint8 or stack.ndim != 4 or stack.shape[-1] != 3 or 0 in stack.shape:
        raise UserError(
            f"image must be uint8 [h, w, 3] or [n, h, w, 3]; got {image.dtype} {list(image.shape)}"
        )
    if len(stack) not in (1, count):
        raise UserError(f"{len(stack)} images for {count} prompts; give one for all, or one each")
    return stack


def check_masks(mask: np.ndarray, image: np.ndarray, count: int) -> np.ndarray:
    """Return masks as [1 or count, h, w], of the size of the images that they belong to.

    Args:
      mask: bool [h, w] for all, or [count, h, w]: True where an image is repainted.
      image: [1 or count, h, w, 3] images.
      count: number of prompts.

    Raises:
      UserError: another shape, type or number, or nothing is to be painted.
    """
    mask = np.asarray(mask)
    stack = mask[None] if mask.ndim == 2 else mask
    if mask.dtype != bool or stack.ndim != 3:
        raise UserError(f"mask must be bool [h, w] or [n, h, w]; got {mask.dtype} {mask.shape}")
    if stack.shape[1:] != image.shape[1:3]:
        raise UserError(
            f"the mask has {stack.shape[1]} x {stack.shape[2]} pixels, the image "
            f"{image.shape[1]} x {image.shape[2]}; they must be of one size"
        )
    if len(stack) not in (1, count):
        raise UserError(f"{len(stack)} masks for {count} prompts; give one for all, or one each")
    if not stack.any(axis=(1, 2)).all():
        raise UserError("a mask has nothing to paint: it is False everywhere")
    return stack


def resize(images: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Images [n, h, w, 3] of another size: means of areas where smaller, bicubic where larger."""
    if images.shape[1:3] == size:
        return images
    smaller = size[0] < images.shape[1] or size[1] < images.shape[2]
    how = Image.Resampling.BOX if smaller else Image.Resampling.BICUBIC
    resized = [Image.fromarray(image).resize((size[1], size[0]), how) for image in images]
    return np.stack([np.asarray(image) for image in resized])


def resize_mask(masks: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Masks [n, h, w] of another size: a pixel is True if any part of it was."""
    if masks.shape[1:] == size:
        return masks
    rows, columns = (_cells(old, new) for old, new in zip(masks.shape[1:], size, strict=True))
    by_row = np.stack([masks[:, a:b].any(axis=1) for a, b in rows], axis=1)
    return np.stack([by_row[:, :, a:b].any(axis=2) for a, b in columns], axis=2)


def _cells(old: int, new: int) -> list[tuple[int, int]]:
    """For each of `new` cells along a side, which of the `old` ones it overlaps."""
    return [(i * old // new, -(-(i + 1) * old // new)) for i in range(new)]


def check_aspect(given: tuple[int, ...], wanted: tuple[int, int]) -> None:
    """Raises UserError if two sizes differ in shape by more than a pixel of the smaller."""
    (h, w), (height, width) = given, wanted
    if abs(h * width - w * height) > min(max(h, w), max(height, width)):
        raise UserError(
            f"an image of {h} x {w} pixels has another aspect ratio than {height} x {width}; crop "
            "it first (crop_to, or --crop), or ask for a size of its shape"
        )
