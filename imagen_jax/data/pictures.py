"""Pictures of a corpus -> encoded squares of one size, or the reason why not."""

from __future__ import annotations

import io
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from imagen_jax.errors import UserError

JPEG_QUALITY = 95
_LOSSY = ("JPEG", "MPO", "WEBP", "JPEG2000", "AVIF")
_ORIENTATION = 0x0112  # of EXIF
_TURNED = range(2, 9)


class UnusableError(Exception):
    """Why an example is left out.

    Attributes:
      reason: in words that many examples share; they are counted by it.
      detail: what is particular about this one.
    """

    def __init__(self, reason: str, detail: str = ""):
        super().__init__(f"{reason} ({detail})" if detail else reason)
        self.reason = reason
        self.detail = detail


@dataclass(frozen=True)
class Picture:
    """A picture as it is recorded.

    Attributes:
      content: PNG or JPEG.
      changed: what was done to it: some of "turned upright", "converted to RGB", "reduced",
        "cropped" and "converted from" another format than PNG and JPEG.
      side: shorter side of the picture as it came, in pixels.
    """

    content: bytes
    changed: list[str]
    side: int


def record_picture(image: np.ndarray | bytes | None, size: int, fit: str) -> Picture:
    """A picture as it is recorded.

    Pixels become a PNG. A PNG or JPEG of the right size in RGB is kept as it is, to the byte.
    Else it is decoded, turned upright, put on white where it is transparent and, with fit "crop",
    reduced by area averaging until its shorter side is `size`, then cropped to the middle square;
    it is encoded again as JPEG if it came in a lossy format, else as PNG.

    Args:
      image: [size, size, 3] uint8 pixels, an encoded picture, or None for one that is missing.
      size: side of the recorded picture in pixels.
      fit: one of choices.FITS.

    Raises:
      UnusableError: it is missing, cannot be decoded, is smaller, or is larger with fit "exact".
    """
    if image is None:
        raise UnusableError("no picture")
    if isinstance(image, np.ndarray):
        if image.dtype != np.uint8 or image.shape != (size, size, 3):
            raise UnusableError(
                f"picture is not of {size} x {size} pixels, uint8",
                f"{image.dtype} {list(image.shape)}",
            )
        return Picture(_encode(Image.fromarray(image), "PNG"), [], size)
    kind, picture, changed = _decode(image)
    if min(picture.size) < size:
        raise UnusableError(
            f"picture is smaller than {size} x {size} pixels", f"{picture.width} x {picture.height}"
        )
    if picture.size != (size, size) and fit == "exact":
        raise UnusableError(
            f"picture is not of {size} x {size} pixels", f"{picture.width} x {picture.height}"
        )
    if min(picture.size) > size:
        changed.append("reduced")
    if picture.width != picture.height:
        changed.append("cropped")
    if kind not in ("JPEG", "PNG"):
        changed.append(f"converted from {kind}")
    side = min(picture.size)
    if not changed:
        return Picture(image, [], side)
    if picture.size != (size, size):
        left, top = (picture.width - side) // 2, (picture.height - side) // 2
        box = (left, top, left + side, top + side)
        picture = picture.resize((size, size), Image.Resampling.BOX, box=box)
    # VP8L is the part of a WebP that holds pixels without loss.
    lossy = kind in _LOSSY and not (kind == "WEBP" and b"VP8L" in image)
    return Picture(_encode(picture, "JPEG" if lossy else "PNG"), changed, side)


def _decode(image: bytes) -> tuple[str, Image.Image, list[str]]:
    """(format, upright RGB picture, what was done to it)."""
    changed = []
    try:
        picture: Image.Image = Image.open(io.BytesIO(image))
        kind = picture.format or ""
        picture.load()
        if picture.getexif().get(_ORIENTATION) in _TURNED:
            picture = ImageOps.exif_transpose(picture)
            changed.append("turned upright")
        if picture.mode != "RGB":
            picture = _rgb(picture)
            changed.append("converted to RGB")
    except UnidentifiedImageError as error:  # its own message differs from run to run
        raise UnusableError("undecodable picture", "of no known format") from error
    except MemoryError:
        raise  # says nothing about the picture
    except Exception as error:  # damaged files make decoders raise nearly anything
        detail = f"{type(error).__name__}: {error}"
        raise UnusableError("undecodable picture", detail) from error
    return kind, picture, changed


def _rgb(picture: Image.Image) -> Image.Image:
    """RGB; what is transparent shows white."""
    if picture.mode.startswith("I;16"):  # Pillow itself would clip 0..65535 to 0..255
        picture = Image.fromarray(np.rint(np.asarray(picture) / 257).astype(np.uint8))
    if picture.mode in ("I", "F"):
        raise UserError(f"pixels of mode {picture.mode} have no known range")
    if picture.has_transparency_data:
        picture = picture.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", picture.size, "white"), picture).convert(
            "RGB"
        )
    return picture.convert("RGB")


def _encode(picture: Image.Image, kind: str) -> bytes:
    buffer = io.BytesIO()
    if kind == "PNG":
        # Level 1: PNG is lossless at any level, and higher ones cost more time than the encoder.
        picture.save(buffer, "PNG", compress_level=1)
    else:
        picture.save(buffer, "JPEG", quality=JPEG_QUALITY, subsampling=0)
    return buffer.getvalue()
