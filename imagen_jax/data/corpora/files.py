"""Corpora of files that hold many examples each; shards are whole files."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from imagen_jax.data.choices import DAMAGED_FILES
from imagen_jax.data.corpora import storage
from imagen_jax.data.corpora.rows import CorpusExample
from imagen_jax.data.sources import Dropped
from imagen_jax.errors import UserError
from imagen_jax.files import fingerprint


class DamagedFileError(UserError):
    """A file that cannot be read to its end.

    Attributes:
      fault: the fault.
    """

    def __init__(self, place: str, fault: object):
        super().__init__(f"{place} is damaged: {fault}")
        self.fault = str(fault)


class OtherKindError(DamagedFileError):
    """A file that is whole, perhaps, but not of the kind that is read."""

    def __init__(self, place: str, wanted: str, start: bytes):
        found = storage.kind_of(start)
        said = f": it is {found}" if found else ""
        UserError.__init__(self, f"{place} is no {wanted}{said}")
        self.fault = f"no {wanted}{said}"


@dataclass(frozen=True)
class Keys:
    """Keys to look for in a file.

    Attributes:
      image, caption: names of features or suffixes; None looks for usual ones.
      encoding: encoding of captions.
    """

    image: str | None = None
    caption: str | None = None
    encoding: str = "utf-8"


Reader = Callable[[str, Keys], Iterator[CorpusExample | Dropped]]
"""(file, what to look for) -> its examples, with ids that are unique in the file."""


class Files:
    """Files that hold many examples each; a `Source`.

    Args:
      kind: kind of corpus, for its description.
      places: the files.
      read: reads one; raises DamagedFileError.
      keys: keys to look for.
      damaged: one of choices.DAMAGED_FILES: "stop" is an error at the first damaged file; "drop"
        yields, where the damage begins, a Dropped in place of the rest of the file.

    Attributes:
      places: the files.
      summary: description for people.
    """

    def __init__(
        self,
        kind: str,
        places: Sequence[str],
        read: Reader,
        keys: Keys,
        damaged: str = DAMAGED_FILES[0],
    ):
        self.places = list(places)
        self._names = storage.names_of(places)
        self._kind, self._read, self._keys, self._damaged = kind, read, keys, damaged
        what = places[0] if len(places) == 1 else f"{len(places):,} files"
        self.summary = f"{kind} {what}"

    def examples_of_shard(self, shard: int, num_shards: int) -> Iterator[CorpusExample | Dropped]:
        """The examples of a shard's files.

        Their ids begin with the file's path from the folder of all files, without its suffix.

        Raises:
          UserError: at once: more shards than files; on iteration: a damaged file; names it.
        """
        if num_shards > len(self.places):
            raise UserError(
                f"{num_shards} shards of {len(self.places)} files: files are not divided; choose "
                f"at most {len(self.places)} shards"
            )
        start, end = (len(self.places) * edge // num_shards for edge in (shard, shard + 1))
        return self._examples(range(start, end))

    def _examples(self, numbers: range) -> Iterator[CorpusExample | Dropped]:
        for i in numbers:
            empty = True
            try:
                for example in self._read(self.places[i], self._keys):
                    yield _renamed(example, f"{self._names[i]}/{example.id}")
                    empty = False
                if empty:
                    yield Dropped(self._names[i], "file without examples", self.places[i])
            except OtherKindError as error:
                if self._damaged != "drop":
                    raise
                yield Dropped(self._names[i], "file of another kind", error.fault)
            except DamagedFileError as error:
                if self._damaged != "drop":
                    raise UserError(
                        f"{error}; to leave out what cannot be read of such files, counted and "
                        "listed: --damaged-files drop"
                    ) from error
                yield Dropped(self._names[i], "rest of a damaged file", error.fault)

    def default_shards(self) -> int:
        """As many as there are files."""
        return len(self.places)

    def describe(self) -> dict[str, Any]:
        """The kind, and a hash over names and sizes of the files.

        What is done with damaged ones is not in it: a job that has stopped at one may resume.
        """
        sizes = [
            [name, storage.size(place)]
            for name, place in zip(self._names, self.places, strict=True)
        ]
        return {
            "name": self._kind,
            "files": len(sizes),
            "bytes": sum(size for _, size in sizes),
            "sha256": fingerprint(sizes),
            "image_key": self._keys.image,
            "caption_key": self._keys.caption,
            "encoding": self._keys.encoding,
        }


def _renamed(example: CorpusExample | Dropped, name: str) -> CorpusExample | Dropped:
    if isinstance(example, Dropped):
        return Dropped(name, example.reason, example.detail)
    return example._replace(id=name)
