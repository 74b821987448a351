"""Corpora of numbered rows: tables, folders, annotations. Shards are ranges of rows."""

from __future__ import annotations

import base64
import binascii
import re
import urllib.parse
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from imagen_jax.data.corpora import storage
from imagen_jax.data.corpora.captions import captions_of
from imagen_jax.data.images import read_file
from imagen_jax.data.sources import Dropped
from imagen_jax.errors import UnusableError

_BASE64_STARTS = re.compile(
    "/9j/|iVBORw0KGgo|UklGR|R0lGOD|Qk|SUkq|TU0AK|AAAA..Z0eX"  # the last is ftyp, of AVIF and HEIC
)
_SHOWN = 1000  # letters of a name in messages


class CorpusExample(NamedTuple):
    """An example of a corpus.

    Attributes:
      id: unique in the corpus.
      caption: the text.
      image: encoded; a StoredImage that is read when it is needed; None if there is none.
    """

    id: str
    caption: str
    image: bytes | StoredImage | None


@dataclass(frozen=True)
class StoredImage:
    """An image in a file of its own.

    Attributes:
      place: the file.
      name: its name in the corpus, for messages.
      folder: folder that the name was looked up in.
    """

    place: str
    name: str
    folder: str = ""

    def read(self) -> bytes:
        """The content.

        Raises:
          UnusableError: there is no such file, or one of another kind; says what was tried.
          OSError: it may not be read.
        """
        tried = f"tried {_short(self.place)}"
        try:
            if storage.is_remote(self.place):
                return storage.read_bytes(self.place)
            return read_file(Path(self.place))
        except PermissionError:
            raise
        except UnusableError as error:
            raise UnusableError(error.reason, tried) from error
        except (FileNotFoundError, NotADirectoryError, ValueError, OSError) as error:
            odd = storage.oddities(self.name, self.folder) if len(self.name) < _SHOWN else ""
            raise UnusableError("no image file", tried + odd) from error


class Row(NamedTuple):
    """A row of a corpus.

    Attributes:
      id: unique in the corpus.
      image: encoded, a path or an address, base64 text, or {"bytes", "path"} of Hugging Face.
      captions: whatever `captions_of` takes.
      folder: folder that paths are relative to.
    """

    id: str
    image: Any
    captions: Any
    folder: str


class Rows(Protocol):
    """Rows that `examples` reads: their number, and any range of them."""

    def __len__(self) -> int: ...

    def rows(self, start: int, end: int) -> Iterator[Row] | Iterator[Row | Dropped]: ...


class RowCorpus:
    """A corpus of numbered rows; a `Source`.

    Args:
      rows: the rows.
      description: JSON values that fix them.
      summary: description for people.
      encoding: encoding of captions that are bytes.

    Attributes:
      summary: description for people.
    """

    def __init__(
        self, rows: Rows, description: Mapping[str, Any], summary: str, encoding: str = "utf-8"
    ):
        self.rows = rows
        self.summary = summary
        self._description = dict(description)
        self._encoding = encoding
        self._edge = -1  # behind the rows that were read last, and the first row after them
        self._next: tuple[int, Row | Dropped | None] = (0, None)

    def __len__(self) -> int:
        return len(self.rows)

    def describe(self) -> dict[str, Any]:
        """See `Source`."""
        return {**self._description, "rows": len(self), "encoding": self._encoding}

    def examples_of_shard(self, shard: int, num_shards: int) -> Iterator[CorpusExample | Dropped]:
        """An even part of the rows, in their order; every caption of an image is an example.

        Neighbours with one image are all in the part in which they begin.
        """
        start, end = (len(self) * edge // num_shards for edge in (shard, shard + 1))
        for row in self._part(start, end):
            if isinstance(row, Dropped):
                yield row
            else:
                yield from examples_of(row, self._encoding)

    def _part(self, start: int, end: int) -> Iterator[Row | Dropped]:
        """Rows from `start` up to `end`, but for those of an image that begins before, and with all
        of one that begins within. Rows are read in order where parts are."""
        if start == 0:
            self._next = (0, None)
        elif start != self._edge:
            (before,) = self.rows.rows(start - 1, start)
            for _ in self._alike(before, start):
                pass
        at, row = self._next
        self._edge = -1
        if at < end:
            if row is not None:
                yield row
                at += 1
            for row in self.rows.rows(at, end):
                yield row
            assert row is not None  # there is one at least
            yield from self._alike(row, end)
        self._edge = end

    def _alike(self, before: Row | Dropped, at: int) -> Iterator[Row | Dropped]:
        """Rows from `at` on that have the image of the one before; the next one is kept."""
        while at < len(self):
            (row,) = self.rows.rows(at, at + 1)
            if not _one_image(before, row):
                self._next = (at, row)
                return
            yield row
            at += 1
        self._next = (at, None)


def _one_image(first: Row | Dropped | None, second: Row | Dropped) -> bool:
    if not isinstance(first, Row) or not isinstance(second, Row):
        return False
    return bool(first.image) and (first.image, first.folder) == (second.image, second.folder)


def examples_of(row: Row, encoding: str) -> Iterator[CorpusExample | Dropped]:
    """One example for each caption, or why there is none."""
    try:
        captions = captions_of(row.captions, encoding)
        if not captions:
            raise UnusableError("no caption")
        image = image_of(row.image, row.folder)
    except UnusableError as error:
        yield Dropped(row.id, error.reason, error.detail)
        return
    for number, caption in enumerate(captions):
        yield CorpusExample(f"{row.id}#{number}" if number else row.id, caption, image)


def image_of(value: Any, folder: str) -> bytes | StoredImage | None:
    """The image that a cell holds or names.

    Raises:
      UnusableError: it holds something else.
    """
    if isinstance(value, Mapping):
        content = value.get("bytes")
        value = value.get("path") if content is None else content
    if isinstance(value, list | tuple):
        if any(isinstance(part, int | float | list) for part in value):
            raise UnusableError("image is no file and no path", "a list of numbers")
        if len(value) > 1:
            raise UnusableError("several images in one row", f"{len(value)} images")
        return image_of(value[0], folder) if value else None
    if value is None or isinstance(value, bytes):
        return value or None
    if not isinstance(value, str):
        raise UnusableError("image is no file and no path", f"{type(value).__name__}")
    if not value.strip():
        return None
    if (encoded := _base64(value)) is not None:
        return encoded
    # Of the storage that the table is in alone: it may be somebody else's.
    if storage.is_remote(value) and value.partition("://")[0] != folder.partition("://")[0]:
        raise UnusableError(
            "image is a URL, and nothing is downloaded (img2dataset does that)",
            f"URL {_short(value)}",
        )
    name = value
    if name.startswith("file://"):
        name = urllib.parse.unquote(name.removeprefix("file://").removeprefix("localhost"))
    return StoredImage(storage.join(folder, name), value, folder)


def _short(name: str) -> str:
    return name if len(name) <= _SHOWN else f"{name[:_SHOWN]}... ({len(name):,} letters)"


def _base64(text: str) -> bytes | None:
    """The content of base64 or a data: URL; None for other text."""
    if text.startswith("data:") and "," in text:
        header, text = text.split(",", 1)
        if not header.endswith(";base64"):
            return urllib.parse.unquote_to_bytes(text)
    elif len(text) < 64 or not _BASE64_STARTS.match(text):
        return None
    try:
        return base64.b64decode("".join(text.split()), validate=True)
    except (binascii.Error, ValueError):
        return None
