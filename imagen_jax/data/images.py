"""Images of a corpus -> encoded squares of one size, or the reason why not."""

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
class RecordImage:
    """An image as it is recorded.

    Attributes:
      content: PNG or JPEG.
      changed: what was done to it: some of "turned upright", "converted to RGB", "reduced",
        "cropped" and "converted from" another format than PNG and JPEG.
      side: shorter side of the image as it came, in pixels.
    """

    content: bytes
    changed: list[str]
    side: int


def record_image(image: np.ndarray | bytes | None, size: int, fit: str) -> RecordImage:
    """An image as it is recorded.

    Pixels become a PNG. A PNG or JPEG of the right size in RGB is kept as it is, to the byte.
    Else it is decoded, turned upright, put on white where it is transparent and, with fit "crop",
    reduced by area averaging until its shorter side is `size`, then cropped to the middle square;
    it is encoded again as JPEG if it came in a lossy format, else as PNG.

    Args:
      image: [size, size, 3] uint8 pixels, an encoded image, or None for one that is missing.
      size: side of the recorded image in pixels.
      fit: one of choices.FITS.

    Raises:
      UnusableError: it is missing, cannot be decoded, is smaller, or is larger with fit "exact".
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
    kind, decoded, changed = _decode(image)
    if min(decoded.size) < size:
        raise UnusableError(
            f"image is smaller than {size} x {size} pixels", f"{decoded.width} x {decoded.height}"
        )
    if decoded.size != (size, size) and fit == "exact":
        raise UnusableError(
            f"image is not of {size} x {size} pixels", f"{decoded.width} x {decoded.height}"
        )
    if min(decoded.size) > size:
        changed.append("reduced")
    if decoded.width != decoded.height:
        changed.append("cropped")
    if kind not in ("JPEG", "PNG"):
        changed.append(f"converted from {kind}")
    side = min(decoded.size)
    if not changed:
        return RecordImage(image, [], side)
    if decoded.size != (size, size):
        left, top = (decoded.width - side) // 2, (decoded.height - side) // 2
        box = (left, top, left + side, top + side)
        decoded = decoded.resize((size, size), Image.Resampling.BOX, box=box)
    # VP8L is the part of a WebP that holds pixels without loss.
    lossy = kind in _LOSSY and not (kind == "WEBP" and b"VP8L" in image)
    return RecordImage(_encode(decoded, "JPEG" if lossy else "PNG"), changed, side)


def _decode(image: bytes) -> tuple[str, Image.Image, list[str]]:
    """(format, upright RGB image, what was done to it)."""
    changed = []
    try:
        decoded: Image.Image = Image.open(io.BytesIO(image))
        kind = decoded.format or ""
        decoded.load()
        if decoded.getexif().get(_ORIENTATION) in _TURNED:
            decoded = ImageOps.exif_transpose(decoded)
            changed.append("turned upright")
        if decoded.mode != "RGB":
            decoded = _rgb(decoded)
            changed.append("converted to RGB")
    except UnidentifiedImageError as error:  # its own message differs from run to run
        raise UnusableError("undecodable image", "of no known format") from error
    except MemoryError:
        raise  # says nothing about the image
    except Exception as error:  # damaged files make decoders raise nearly anything
        detail = f"{type(error).__name__}: {error}"
        raise UnusableError("undecodable image", detail) from error
    return kind, decoded, changed


def _rgb(decoded: Image.Image) -> Image.Image:
    """RGB; what is transparent shows white."""
    if decoded.mode.startswith("I;16"):  # Pillow itself would clip 0..65535 to 0..255
        decoded = Image.fromarray(np.rint(np.asarray(decoded) / 257).astype(np.uint8))
    if decoded.mode in ("I", "F"):
        raise UserError(f"pixels of mode {decoded.mode} have no known range")
    if decoded.has_transparency_data:
        decoded = decoded.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", decoded.size, "white"), decoded).convert(
            "RGB"
        )
    return decoded.convert("RGB")


def _encode(decoded: Image.Image, kind: str) -> bytes:
    buffer = io.BytesIO()
    if kind == "PNG":
        # Level 1: PNG is lossless at any level, and higher ones cost more time than the encoder.
        decoded.save(buffer, "PNG", compress_level=1)
    else:
        decoded.save(buffer, "JPEG", quality=JPEG_QUALITY, subsampling=0)
    return buffer.getvalue()
