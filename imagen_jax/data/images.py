"""The one way to open an image that someone else has made: safe, upright, sRGB, on white.

Images come from corpora, uploads and folders of strangers. Pillow recognises forty formats by
content, some of which run other programs (PostScript runs Ghostscript) or no longer have a
maintainer; `open_image` reads those of FORMATS alone, and refuses what is damaged even where a
decoder would fill in the rest, so that what it accepts also decodes elsewhere.
"""

from __future__ import annotations

import functools
import importlib
import io
import re
import stat
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageCms, ImageFile, ImageOps, UnidentifiedImageError

from imagen_jax.buckets import BucketPath
from imagen_jax.data.image_bytes import (
    PNG_START,
    check_structure,
    damaged,
    png_chunks,
    unknown_kind,
    webp_size,
)
from imagen_jax.errors import UnusableError

FORMATS = ("JPEG", "MPO", "PNG", "WEBP", "GIF", "BMP", "PPM", "TIFF", "AVIF", "HEIF", "JXL")
"""Pillow's names of the formats that are read; an MPO is a JPEG with further images behind it.
HEIF and JXL are read where the packages pillow-heif and pillow-jxl-plugin are installed."""
MAX_PIXELS = 2**27
"""Most pixels of an image that is opened, unless the caller gives another limit."""
MAX_BYTES = 2**30
"""Of the largest file that is read as one image."""
_PLUGINS = {"HEIF": "pillow_heif", "JXL": "pillow_jxl"}
_ORIENTATION = 0x0112  # of EXIF
_TURNED = range(2, 9)
_WITHOUT_TEXT = "without text chunks"
_PNG_TEXT = (b"tEXt", b"zTXt", b"iTXt")
_SAME_COLOUR = 2  # levels of 255
_BITS_PER_SAMPLE, _PHOTOMETRIC = 258, 262  # tags of TIFF
_WHITE_IS_ZERO = 0  # a value of the second

# Of damaged metadata and of sizes: damage is an error here, and sizes have a limit of their own.
warnings.filterwarnings("ignore", module=r"PIL\.")


@dataclass(frozen=True)
class OpenedImage:
    """An image ready for use.

    Attributes:
      image: upright RGB in sRGB, on white where it was transparent; RGBA if alpha was asked for.
      kind: format, one of FORMATS.
      changed: changes to its pixels: "turned upright", "converted from PROFILE" (of colour),
        "converted to RGB", "put on white", "first frame of several", "colour profile ignored".
    """

    image: Image.Image
    kind: str
    changed: list[str]


def read_file(path: Path) -> bytes:
    """Return the content of a file that is to be an image.

    Raises:
      OSError: it is not there, or may not be read.
      UnusableError: it is no regular file, or larger than any image is: a link to a device has no
        end.
    """
    if isinstance(path, BucketPath):
        return path.read_bytes()
    status = path.stat()
    if not stat.S_ISREG(status.st_mode):
        raise UnusableError("image is no file")
    if status.st_size > MAX_BYTES:
        raise UnusableError("image file of more than 1 GiB")
    return path.read_bytes()


def open_image(content: bytes, max_pixels: int = MAX_PIXELS, alpha: bool = False) -> OpenedImage:
    """Decodes an image.

    Embedded ICC profiles are converted to sRGB; 16 bits a channel become 8; EXIF orientation is
    applied; transparency, colour keys included, is laid on white; of an animation the first frame
    is taken.

    Args:
      content: the encoded image.
      max_pixels: most pixels that are decoded.
      alpha: keep transparency as a fourth channel in place of white below it.

    Raises:
      UnusableError: no image, a format that is not read (named), a damaged or truncated file, or
        too many pixels.
    """
    check_structure(content)
    check_webp(content, max_pixels)
    try:
        image = _open(content)
    except UnusableError:
        raise
    except Image.DecompressionBombError as error:
        raise UnusableError(f"image of more than {max_pixels} pixels") from error
    except UnidentifiedImageError as error:  # its own message differs from run to run
        raise unknown_kind(content) from error
    except MemoryError:
        raise  # says nothing about the image
    except Exception as error:  # damaged files make decoders raise nearly anything
        raise damaged(f"{type(error).__name__}: {error}") from error
    _check_size(image.size, max_pixels)
    try:
        return _decode(image, content, alpha)
    except (UnusableError, MemoryError):
        raise
    except Exception as error:
        raise damaged(f"{type(error).__name__}: {error}") from error


@functools.cache
def readable_formats() -> tuple[str, ...]:
    """Those of FORMATS that this machine reads."""
    for plugin in _PLUGINS.values():
        try:
            module = importlib.import_module(plugin)
        except ImportError:
            continue
        if hasattr(module, "register_heif_opener"):
            module.register_heif_opener()
    Image.init()
    return tuple(kind for kind in FORMATS if kind in Image.OPEN)


def check_webp(content: bytes, max_pixels: int = MAX_PIXELS) -> None:
    """Check the size of an image if it is a WebP, whose decoder takes memory for its pixels as soon
    as it is opened.

    Raises:
      UnusableError: it has too many pixels.
    """
    _check_size(webp_size(content), max_pixels)


def _open(content: bytes) -> ImageFile.ImageFile:
    try:
        return Image.open(io.BytesIO(content), formats=readable_formats())
    except ValueError:
        if not content.startswith(PNG_START):
            raise
        # Pillow refuses text chunks above its limits. They are no part of the pixels.
        kept = [raw for name, raw in png_chunks(content) if name not in _PNG_TEXT]
        image = Image.open(io.BytesIO(b"".join([PNG_START, *kept])), formats=("PNG",))
        image.info[_WITHOUT_TEXT] = True
        return image


def _decode(image: ImageFile.ImageFile, content: bytes, alpha: bool) -> OpenedImage:
    kind = image.format or ""
    changed = [_WITHOUT_TEXT] if _WITHOUT_TEXT in image.info else []
    turned = image.getexif().get(_ORIENTATION) in _TURNED  # loading a TIFF turns it
    several = kind not in ("MPO", "JPEG") and getattr(image, "n_frames", 1) > 1
    profile = image.info.get("icc_profile")
    if kind == "PNG":
        _scale_colour_key(image, content[24])
    image.load()
    # Copies of large images, which Pillow makes even where nothing changes, cost as decoding does.
    upright: Image.Image = ImageOps.exif_transpose(image) if turned else image
    if turned:
        changed.append("turned upright")
    if several:
        changed.append("first frame of several")
    eight_bit_rgb = upright.mode == "RGB" and not (kind == "PNG" and content[24] == 16)
    colour, opacity = _channels(upright, image)
    transformed, note = _to_srgb(colour, profile)
    if opacity is not None and opacity.getextrema() == (255, 255):
        opacity, eight_bit_rgb = None, False
    if note:
        changed.append(note)
    elif opacity is None and not eight_bit_rgb:
        changed.append("converted to RGB")
    if opacity is not None:
        changed.append("put on white")
        transformed.putalpha(opacity)
        if not alpha:
            white = Image.new("RGBA", transformed.size, "white")
            transformed = Image.alpha_composite(white, transformed).convert("RGB")
    elif alpha:
        transformed = transformed.convert("RGBA")
    transformed.info = {}
    return OpenedImage(transformed, kind, changed)


def _scale_colour_key(image: Image.Image, depth: int) -> None:
    """Brings the transparent colour of a PNG to the 8 bits that its pixels have in Pillow."""
    key = image.info.get("transparency")
    if image.mode == "RGB" and isinstance(key, tuple) and depth == 16:
        image.info["transparency"] = tuple(value >> 8 for value in key)
    elif image.mode == "L" and isinstance(key, int) and depth < 8:
        image.info["transparency"] = key * 255 // (2**depth - 1)


def _channels(
    image: Image.Image, file: ImageFile.ImageFile
) -> tuple[Image.Image, Image.Image | None]:
    """Colour of 8 bits (L, RGB, CMYK or LAB) and opacity, None if all is opaque by its format.

    Args:
      image: the image, upright.
      file: the file that it comes from, which knows the range of its pixels.
    """
    # Pillow itself would clip 0..65535 to 0..255; of PPM it scales any range to that.
    if image.mode.startswith("I;16") or (image.mode == "I" and file.format == "PPM"):
        return _from_16_bits(image, getattr(file, "tag_v2", {}))
    if image.mode in ("I", "F"):
        raise UnusableError("image of pixels without a known range", f"mode {image.mode}")
    if image.has_transparency_data:
        rgba = image.convert("RGBA")
        grey = image.mode in ("1", "L", "LA", "La")
        colour = rgba.getchannel("R") if grey else rgba.convert("RGB")
        return colour, rgba.getchannel("A")
    if image.mode == "1":
        return image.convert("L"), None
    if image.mode in ("L", "RGB", "CMYK", "LAB"):
        return image, None
    return image.convert("RGB"), None


def _from_16_bits(
    image: Image.Image, tags: Mapping[int, Any]
) -> tuple[Image.Image, Image.Image | None]:
    """As _channels, of up to 16 bits; `tags` are those of a TIFF."""
    pixels = np.asarray(image)
    bits = tags.get(_BITS_PER_SAMPLE, (16,))[0]
    levels = np.rint(pixels * (255 / (2**bits - 1))).clip(0, 255).astype(np.uint8)
    if tags.get(_PHOTOMETRIC) == _WHITE_IS_ZERO:  # which Pillow sees to with 8 bits alone
        levels = 255 - levels
    grey = Image.fromarray(levels)
    key = image.info.get("transparency")
    if not isinstance(key, int):
        return grey, None
    return grey, Image.fromarray(np.where(pixels == key, 0, 255).astype(np.uint8))


def _to_srgb(image: Image.Image, profile: bytes | None) -> tuple[Image.Image, str]:
    """(RGB image in sRGB, what was done by an ICC profile)."""
    if profile or image.mode == "LAB":
        transform, name = _transform(profile or b"", image.mode)
        if transform is not None:
            converted = ImageCms.applyTransform(image, transform)
            assert converted is not None  # it is not in place
            return converted, f"converted from {name}"
        if name:
            return image.convert("RGB"), name
    return image if image.mode == "RGB" else image.convert("RGB"), ""


@functools.lru_cache(maxsize=64)
def _transform(profile: bytes, mode: str) -> tuple[ImageCms.ImageCmsTransform | None, str]:
    """(transform to sRGB, name of the profile); (None, "") where it is sRGB's already; (None, what
    to count) where it cannot be used with such pixels, which browsers ignore, too."""
    srgb = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB"))
    try:
        source = (
            ImageCms.ImageCmsProfile(io.BytesIO(profile))
            if profile
            else ImageCms.ImageCmsProfile(ImageCms.createProfile("LAB"))
        )
        transform = ImageCms.buildTransform(source, srgb, mode, "RGB")
        name = ImageCms.getProfileDescription(source)
        if mode in ("L", "RGB"):
            probe = _probe(mode)
            found = ImageCms.applyTransform(probe, transform)
            assert found is not None
            off = np.abs(np.asarray(found, np.int16) - np.asarray(probe.convert("RGB"), np.int16))
            if off.max() <= _SAME_COLOUR:
                return None, ""
    except (ImageCms.PyCMSError, OSError, ValueError, TypeError):
        return None, "colour profile ignored"
    words = re.sub(r"[^\x20-\x7e\xa0-\uffff]+", " ", name)
    return transform, " ".join(words.split())[:60] or "an unnamed colour profile"


def _probe(mode: str) -> Image.Image:
    """All greys, or colours on a grid."""
    levels = np.arange(256, dtype=np.uint8)
    if mode == "L":
        return Image.fromarray(levels[None])
    grid = np.stack(np.meshgrid(*[levels[::51]] * 3), -1).reshape(1, -1, 3)
    return Image.fromarray(grid)


def _check_size(size: tuple[int, int] | None, max_pixels: int) -> None:
    if size is not None and size[0] * size[1] > max_pixels:
        raise UnusableError(f"image of more than {max_pixels} pixels", f"{size[0]} x {size[1]}")
