"""Files of a corpus in a bucket of Google Cloud Storage, gs://, as TensorFlow reaches them.

A piece of a file is read at a time, however large the file is.
"""

from __future__ import annotations

import contextlib
import io
from collections.abc import Iterator
from typing import IO, Any

from imagen_jax.data.records import tensorflow
from imagen_jax.errors import MachineError

_PIECE = 2**20


class BucketFiles:
    """The part of an fsspec file system that storage.py uses, over tf.io.gfile.

    Raises (all methods):
      FileNotFoundError: there is no such file.
      MachineError: the bucket cannot be reached.
    """

    def unstrip_protocol(self, path: str) -> str:
        """Return the path: it has its gs:// already."""
        return path

    def exists(self, path: str) -> bool:
        """Is there such a file or folder?"""
        with _told(path):
            return bool(tensorflow().io.gfile.exists(path))

    def isdir(self, path: str) -> bool:
        """Is it a folder?"""
        with _told(path):
            return bool(tensorflow().io.gfile.isdir(path))

    def glob(self, pattern: str) -> list[str]:
        """Return the files and folders that fit a pattern."""
        with _told(pattern):
            return [str(path).rstrip("/") for path in tensorflow().io.gfile.glob(pattern)]

    def find(self, folder: str) -> list[str]:
        """Return all files of a folder and those below it."""
        with _told(folder):
            return [
                f"{root.rstrip('/')}/{name}"
                for root, _, names in tensorflow().io.gfile.walk(folder)
                for name in names
                if name and not name.endswith("/")
            ]

    def size(self, path: str) -> int:
        """Return the bytes of a file."""
        with _told(path):
            return int(tensorflow().io.gfile.stat(path).length)

    def open(self, path: str, mode: str = "rb") -> IO[bytes]:
        """Open a file for reading; it can be searched (`seek`)."""
        return io.BufferedReader(_Raw(path, self.size(path)), _PIECE)


class _Raw(io.RawIOBase):
    """A file of TensorFlow as one of Python."""

    def __init__(self, path: str, size: int):
        self._path, self._size, self._at = path, size, 0
        self._file = tensorflow().io.gfile.GFile(path, "rb")

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._at

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        start = {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self._size}[whence]
        self._at = max(0, start + offset)
        return self._at

    def readinto(self, buffer: Any) -> int:
        wanted = min(len(buffer), self._size - self._at)
        if wanted <= 0:
            return 0
        with _told(self._path):
            self._file.seek(self._at)
            content = self._file.read(wanted)
        buffer[: len(content)] = content
        self._at += len(content)
        return len(content)

    def close(self) -> None:
        if not self.closed:
            self._file.close()
        super().close()


@contextlib.contextmanager
def _told(path: str) -> Iterator[None]:
    """Turn TensorFlow's errors into Python's."""
    errors = tensorflow().errors
    try:
        yield
    except errors.NotFoundError as error:
        raise FileNotFoundError(f"{path}: there is no such file") from error
    except errors.OpError as error:
        said = " ".join(error.message.split())[:300]
        raise MachineError(f"{path} cannot be reached: {said}") from error
