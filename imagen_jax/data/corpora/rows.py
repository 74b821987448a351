"""Corpora of numbered rows: tables, folders, annotations. Shards are ranges of rows."""

from __future__ import annotations

import base64
import binascii
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

_BASE64_STARTS = ("/9j/", "iVBORw0KGgo", "UklGR", "R0lGOD", "Qk", "SUkq", "TU0AK")


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
        tried = f"tried {self.place}"
        try:
            if storage.is_remote(self.place):
                return storage.read_bytes(self.place)
            return read_file(Path(self.place))
        except PermissionError:
            raise
        except UnusableError as error:
            raise UnusableError(error.reason, tried) from error
        except (FileNotFoundError, NotADirectoryError, ValueError, OSError) as error:
            odd = storage.oddities(self.name, self.folder)
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

    def __len__(self) -> int:
        return len(self.rows)

    def describe(self) -> dict[str, Any]:
        """See `Source`."""
        return {**self._description, "rows": len(self), "encoding": self._encoding}

    def examples_of_shard(self, shard: int, num_shards: int) -> Iterator[CorpusExample | Dropped]:
        """An even part of the rows, in their order; every caption of an image is an example."""
        start, end = (len(self) * edge // num_shards for edge in (shard, shard + 1))
        for row in self.rows.rows(start, end):
            if isinstance(row, Dropped):
                yield row
            else:
                yield from examples_of(row, self._encoding)


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
            "image is a URL, and nothing is downloaded (img2dataset does that)", f"URL {value}"
        )
    name = value
    if name.startswith("file://"):
        name = urllib.parse.unquote(name.removeprefix("file://").removeprefix("localhost"))
    return StoredImage(storage.join(folder, name), value, folder)


def _base64(text: str) -> bytes | None:
    """The content of base64 or a data: URL; None for other text."""
    if text.startswith("data:") and "," in text:
        header, text = text.split(",", 1)
        if not header.endswith(";base64"):
            return urllib.parse.unquote_to_bytes(text)
    elif len(text) < 64 or not text.startswith(_BASE64_STARTS):
        return None
    try:
        return base64.b64decode("".join(text.split()), validate=True)
    except (binascii.Error, ValueError):
        return None
