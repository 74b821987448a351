"""Compressed files, read up to a limit: what unfolds without end was made to fill a disk."""

from __future__ import annotations

import bz2
import gzip
import lzma
from typing import IO, Any

from imagen_jax.data.corpora import storage

MAX_GROWTH, FREE_GROWTH = 32, 2**28
"""A compressed file may hold so many times its own bytes, and so many bytes in any case: images are
compressed already, captions by a factor of five or so. What holds more was made to fill a disk."""
_COMPRESSIONS: tuple[tuple[bytes, Any], ...] = (
    (b"\x1f\x8b", gzip.open),
    (b"BZh", bz2.open),
    (b"\xfd7zXZ", lzma.open),
)


def unfolded(place: str) -> IO[bytes] | Unfolded:
    """Opens a file for reading, decompressed where it is gzip, bzip2 or xz.

    Raises:
      OSError: as storage.open_file; on reading, it holds too much for its size.
    """
    file = storage.open_file(place)
    start = file.read(6)
    file.seek(0)
    for magic, opener in _COMPRESSIONS:
        if start.startswith(magic):
            return Unfolded(opener(file, "rb"), growth_limit(storage.size(place)))
    return file


def growth_limit(compressed: int) -> int:
    """Return the most bytes that a compressed file of this size may hold."""
    return max(FREE_GROWTH, MAX_GROWTH * compressed)


def too_much(limit: int) -> str:
    """Return what is wrong with a compressed file that holds more than its limit."""
    return (
        f"it holds more than {limit // 2**20:,} MiB, which is too much for its size; decompress it "
        "first if that is right"
    )


class Unfolded:
    """The content of a compressed file, up to a limit.

    Attributes:
      limit: most bytes of it.
    """

    def __init__(self, file: IO[bytes], limit: int):
        self._file, self.limit = file, limit

    def read(self, count: int = -1) -> bytes:
        """At most so many bytes; the rest if below 0.

        Raises:
          OSError: there are more than the limit.
        """
        left = self.limit - self._file.tell()
        part = self._file.read(left + 1 if count < 0 else min(count, left + 1))
        if len(part) > left:
            raise OSError(too_much(self.limit))
        return part

    def seek(self, position: int) -> int:
        """Goes to a byte, counted from the start."""
        return self._file.seek(min(position, self.limit))

    def tell(self) -> int:
        """The byte that is read next."""
        return self._file.tell()

    def close(self) -> None:
        """Closes the file."""
        self._file.close()

    def __enter__(self) -> Unfolded:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
