"""Images of a corpus -> encoded squares of one size, or the reason why not."""

from __future__ import annotations

import io
from dataclasses import dataclass

import numpy as np
from PIL import Image

from imagen_jax.data.images import OpenedImage, open_image
from imagen_jax.errors import UnusableError

JPEG_QUALITY = 95
_LOSSY = ("JPEG", "MPO", "WEBP", "AVIF", "HEIF", "JXL")


@dataclass(frozen=True)
class RecordImage:
    """An image as it is recorded.

    Attributes:
      content: PNG or JPEG.
      changed: changes to it: those of images.OpenedImage, "reduced", "cropped", and
        "converted from" another format than PNG and JPEG.
      side: shorter side of the image as it came, in pixels.
    """

    content: bytes
    changed: list[str]
    side: int


def record_image(image: np.ndarray | bytes | None, size: int, fit: str) -> RecordImage:
    """Fit an image to a record.

    Pixels become a PNG. A PNG or JPEG of the right size in RGB and sRGB is kept to the byte. Any
    other is decoded as `images.open_image` does and, with fit "crop", reduced by area averaging
    until its shorter side is `size`, then cropped to the middle square; it is encoded again as JPEG
    if it came in a lossy format, else as PNG.

    Args:
      image: [size, size, 3] uint8 pixels, an encoded image, or None for one that is missing.
      size: side of the recorded image in pixels.
      fit: one of choices.FITS.

    Raises:
      UnusableError: it is missing, cannot be opened, is smaller, or is larger with fit "exact".
    """
    if image is None:
        raise UnusableError("no image")
    if isinstance(image, np.ndarray):
        if image.dtype != np.uint8 or image.shape != (size, size, 3):
            raise UnusableError(
                f"image is not of {size} x {size} pixels, uint8",
                f"{image.dtype} {list(image.shape)}",
            )
        return RecordImage(_encode(Image.fromarray(image), "PNG"), [], size)
    return fit_image(open_image(image), image, size, fit)


def fit_image(opened: OpenedImage, content: bytes, size: int, fit: str) -> RecordImage:
    """Fit an opened image to a record; see `record_image`.

    Args:
      opened: the image.
      content: it as it came.
      size: side of the recorded image in pixels.
      fit: one of choices.FITS.

    Raises:
      UnusableError: it is smaller, or larger with fit "exact".
    """
    kind, decoded, changed = opened.kind, opened.image, list(opened.changed)
    if min(decoded.size) < size:
        raise UnusableError(
            f"image is smaller than {size} x {size} pixels", f"{decoded.width} x {decoded.height}"
        )
    if decoded.size != (size, size) and fit == "exact":
        raise UnusableError(
            f"image is larger than {size} x {size} pixels", f"{decoded.width} x {decoded.height}"
        )
    if min(decoded.size) > size:
        changed.append("reduced")
    if decoded.width != decoded.height:
        changed.append("cropped")
    if kind not in ("JPEG", "PNG"):
        changed.append(f"converted from {kind}")
    side = min(decoded.size)
    if not changed:
        return RecordImage(content, [], side)
    if decoded.size != (size, size):
        left, top = (decoded.width - side) // 2, (decoded.height - side) // 2
        box = (left, top, left + side, top + side)
        decoded = decoded.resize((size, size), Image.Resampling.BOX, box=box)
    # VP8L is the part of a WebP that holds pixels without loss.
    lossy = kind in _LOSSY and not (kind == "WEBP" and b"VP8L" in content)
    return RecordImage(_encode(decoded, "JPEG" if lossy else "PNG"), changed, side)


def _encode(decoded: Image.Image, kind: str) -> bytes:
    buffer = io.BytesIO()
    if kind == "PNG":
        # Level 1: PNG is lossless at any level, and higher ones cost more time than the encoder.
        decoded.save(buffer, "PNG", compress_level=1)
    else:
        decoded.save(buffer, "JPEG", quality=JPEG_QUALITY, subsampling=0)
    return buffer.getvalue()
