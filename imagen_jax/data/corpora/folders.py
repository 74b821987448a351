"""Folders of images, each with its caption in a file of the same name beside it."""

from __future__ import annotations

import os
import posixpath
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from imagen_jax.data.corpora import storage
from imagen_jax.data.corpora.captions import check_encoding
from imagen_jax.data.corpora.rows import Row, RowCorpus
from imagen_jax.data.corpora.tars import CAPTION_SUFFIXES, IMAGE_SUFFIXES, json_captions
from imagen_jax.data.sources import Dropped
from imagen_jax.errors import UnusableError, UserError
from imagen_jax.files import fingerprint


class _Pair(NamedTuple):
    image: str | None
    captions: tuple[str, ...]


class FolderRows:
    """Images and captions of a folder, by name; `Rows` of a RowCorpus.

    Args:
      folder: folder that names begin from.
      files: all files below it.
      caption_key: suffix of captions, or key of captions in JSON; None looks for usual ones.

    Raises:
      UserError: no image has a caption beside it.
    """

    def __init__(self, folder: str, files: Sequence[str], caption_key: str | None):
        self._folder, self._key = folder, caption_key
        suffixes: tuple[str, ...] = CAPTION_SUFFIXES
        if caption_key is not None and any(_suffix(f) == caption_key.lower() for f in files):
            suffixes, self._key = (caption_key.lower(),), None
        captions: dict[tuple[str, str], list[str]] = {}
        for name in files:
            if _suffix(name) in (*suffixes, "json"):
                key = (os.path.splitext(name)[0], _suffix(name))
                captions.setdefault(key, []).append(name)
        images = [name for name in files if _suffix(name) in IMAGE_SUFFIXES]
        self._pairs: list[_Pair] = []
        used = set[str]()
        for image in images:
            stems = (os.path.splitext(image)[0], image)
            texts, sidecars = (
                tuple(name for suffix in of for stem in stems
                      for name in captions.get((stem, suffix), ()))
                for of in (suffixes, ("json",))
            )  # fmt: skip
            found = texts or sidecars
            used.update(found)
            self._pairs.append(_Pair(image, found))
        if not used:
            raise UserError(
                f"{folder} has {len(images)} images, and no captions beside them: that of NAME.jpg "
                f"is looked for in NAME.{', NAME.'.join((*suffixes, 'json'))}, or those of all in "
                "a table that names the images, such as metadata.csv with columns file_name and "
                "text"
            )
        # Captions without an image; of JSON not, which holds whatever else.
        self._pairs += [
            _Pair(None, (name,)) for names in captions.values() for name in names
            if name not in used and _suffix(name) != "json"
        ]  # fmt: skip
        self.images = len(images)

    def __len__(self) -> int:
        return len(self._pairs)

    def fingerprint(self) -> str:
        """Of the names and sizes of all files."""
        return fingerprint(
            [
                [self._name(name), storage.size(name) if storage.exists(name) else None]
                for pair in self._pairs
                for name in (pair.image, *pair.captions)
                if name is not None
            ]
        )

    def _name(self, place: str) -> str:
        return posixpath.relpath(place, self._folder or ".")

    def rows(self, start: int, end: int) -> Iterator[Row | Dropped]:
        """See `Rows`."""
        for image, captions in self._pairs[start:end]:
            if image is None:
                yield Dropped(self._name(captions[0]), "caption without an image", captions[0])
                continue
            name = self._name(image)
            if not captions:
                yield Dropped(name, "image without a caption", image)
            else:
                place = captions[0]
                content: list[Any] = []
                try:
                    for place in captions:
                        said = storage.read_bytes(place)
                        json = _suffix(place) == "json"
                        content.append(json_captions(said, self._key) if json else said)
                except FileNotFoundError:
                    yield Dropped(name, "caption that is a link to nothing", place)
                except UnusableError as error:
                    yield Dropped(name, error.reason, f"{place}: {error.detail}")
                except UserError:  # a device or a pipe
                    yield Dropped(name, "caption is no file", place)
                else:
                    # A path says all; an address is read where it lies in the row's own storage.
                    folder = storage.folder_of(image) if storage.is_remote(image) else ""
                    yield Row(name, image, content, folder)


def _suffix(name: str) -> str:
    return os.path.splitext(name)[1].removeprefix(".").lower()


def folder_corpus(
    folder: str, files: Sequence[str], caption_key: str | None, encoding: str
) -> RowCorpus:
    """A folder as a corpus.

    Args:
      folder: folder that names begin from.
      files: those below it.
      caption_key: see FolderRows.
      encoding: encoding of captions.

    Raises:
      UserError: see FolderRows; an unknown encoding.
    """
    rows = FolderRows(folder, files, caption_key)
    description = {
        "name": "folder", "sha256": rows.fingerprint(), "caption_key": caption_key
    }  # fmt: skip
    summary = f"folder {folder or '.'}: {rows.images:,} images, captions in files beside them"
    return RowCorpus(rows, description, summary, check_encoding(encoding))
