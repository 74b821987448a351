"""Structure, size and kind of an image file, read from its bytes before a decoder sees them.

Decoders read past damage, or take memory before they look; and what is no image has a name, too.
"""

from __future__ import annotations

import re
import struct
import zlib

from imagen_jax.errors import UnusableError

PNG_START = b"\x89PNG\r\n\x1a\n"


def damaged(detail: str) -> UnusableError:
    """Return the error for a damaged image."""
    return UnusableError("damaged image", detail)


def check_structure(content: bytes) -> None:
    """Check that a PNG or JPEG is whole.

    Raises:
      UnusableError: it is damaged, cut off or empty.
    """
    if not content:
        raise UnusableError("image of 0 bytes")
    if content.startswith(PNG_START):
        for _ in png_chunks(content):
            pass
    elif content.startswith(b"\xff\xd8\xff"):
        _check_jpeg(content)


def png_chunks(content: bytes) -> list[tuple[bytes, bytes]]:
    """Return (name, chunk with length and checksum) of every chunk to IEND.

    Raises:
      UnusableError: a wrong checksum, or no IEND.
    """
    chunks = []
    at = len(PNG_START)
    while at + 12 <= len(content):
        (length,) = struct.unpack_from(">I", content, at)
        end = at + 12 + length
        if end > len(content):
            break
        name = content[at + 4 : at + 8]
        (checksum,) = struct.unpack_from(">I", content, end - 4)
        if zlib.crc32(memoryview(content)[at + 4 : end - 4]) != checksum:
            raise damaged(f"PNG: wrong checksum of chunk {name!r}")
        chunks.append((name, content[at:end]))
        if name == b"IEND":
            return chunks
        at = end
    raise damaged("PNG: cut off before its end (IEND)")


_MARKER = re.compile(rb"\xff+([\x01-\xcf\xd8-\xfe])")
"""Of JPEG, but for those within entropy-coded data: stuffed zeros and restarts."""


def _check_jpeg(content: bytes) -> None:
    """Walks from marker to marker to the end of the first image."""
    at = 2
    while (found := _MARKER.search(content, at)) is not None:
        at = found.end()
        marker = found.group(1)[0]
        if marker == 0xD9:
            return
        if marker not in (0x01, 0xD8):
            if at + 2 > len(content):
                break
            at += struct.unpack_from(">H", content, at)[0]
    raise damaged("JPEG: cut off before its end (EOI)")


def webp_size(content: bytes) -> tuple[int, int] | None:
    """Return (width, height) of a WebP, whose decoder takes memory for its pixels when it is
    opened; None of anything else."""
    if content[:4] != b"RIFF" or content[8:12] != b"WEBP" or len(content) < 30:
        return None
    if content[12:16] == b"VP8X":
        width, height = (int.from_bytes(content[i : i + 3], "little") + 1 for i in (24, 27))
    elif content[12:16] == b"VP8L":
        bits = int.from_bytes(content[21:25], "little")
        width, height = (bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1
    else:
        width, height = (int.from_bytes(content[i : i + 2], "little") & 0x3FFF for i in (26, 28))
    return width, height


_KINDS: tuple[tuple[str, str], ...] = (
    (r"\A....ftyp(heic|heix|hevc|hevx|heim|heis|mif1|msf1)", "HEIC"),
    (r"\A(\xff\x0a|\x00\x00\x00\x0cJXL )", "JPEG XL"),
    (r"\A....ftypavi[fs]", "AVIF"),
    (r"\A....ftyp(crx |qt  )", "a raw photograph or film"),
    (r"\A(%!PS|\xc5\xd0\xd3\xc6)", "PostScript"),
    (r"\A%PDF", "PDF"),
    (r"\A8BPS", "Photoshop"),
    (r"\A(\x00\x00\x00\x0cjP  |\xff\x4f\xff\x51)", "JPEG 2000"),
    (r"\AP[1-7]\s", "PPM"),
    (r"\A\x00\x00[\x01\x02]\x00", "an icon"),
    (r"\Aversion https://git-lfs", "a Git LFS pointer in place of the file"),
    (r"(?i)\A\s*(<!doctype html|<html|<head|<script)", "an HTML page"),
    (r"(?i)\A\s*(<\?xml[^>]*>\s*)?(<!--.*?-->\s*)?(<!doctype svg[^>]*>\s*)?<svg", "SVG"),
    (r"\A\x1f\x8b", "gzip"),
    (r"\APK\x03\x04", "ZIP"),
    (r"\A(\xef\xbb\xbf)?[\t\r\n\x20-\x7e]+\Z", "text"),
    (r"\A\x00+\Z", "zeros alone"),
)
_ADVICE = {"HEIC": "pip install pillow-heif", "JPEG XL": "pip install pillow-jxl-plugin"}


def unknown_kind(content: bytes) -> UnusableError:
    """Return the error for a file of no known image format; it says what it is instead."""
    start = content[:1024].decode("latin1")
    for pattern, kind in _KINDS:
        if re.match(pattern, start, re.DOTALL):
            if kind in _ADVICE:
                return UnusableError(f"image is {kind}, which is not read here", _ADVICE[kind])
            return UnusableError(f"image is {kind}, which is not read")
    return UnusableError("image of no known format")
