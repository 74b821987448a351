"""Paths of Google Cloud Storage, gs://bucket/name, that are used as those of a file system are.

TensorStore reads and writes the objects; it finds the user's credentials by itself. An object
appears whole or not at all, and no folder has to be made: there is one where names begin with it.
What a name begins with is listed whole, so folders are to hold thousands of objects, not millions.

TensorFlow (TensorBoard's files) and Orbax (checkpoints) reach gs:// on their own.
"""

from __future__ import annotations

import errno
import fnmatch
import functools
import io
import os
from collections.abc import Iterator, Sequence
from pathlib import PosixPath
from typing import Any

from imagen_jax.errors import MachineError

SCHEME = "gs://"


class BucketPath(PosixPath):
    """gs://bucket/name; files.as_path makes them.

    `Path(path)` of one is a path of this machine, and not the same: use it as it is.
    """

    def __str__(self) -> str:
        return super().__str__().replace("gs:/", SCHEME, 1)

    def __fspath__(self) -> str:
        return str(self)

    @property
    def bucket(self) -> str:
        """Name of the bucket."""
        return self.parts[1]

    @property
    def key(self) -> str:
        """Name of the object in the bucket."""
        return "/".join(self.parts[2:])

    def is_absolute(self) -> bool:
        """True."""
        return True

    def absolute(self) -> BucketPath:
        """Return the path itself."""
        return self

    def resolve(self, strict: bool = False) -> BucketPath:
        """Return the path itself: there are no links."""
        return self

    def exists(self, **_: Any) -> bool:
        """Is there an object of this name, or one in this folder?"""
        return self.is_file() or self.is_dir()

    def is_file(self, **_: Any) -> bool:
        """Is there an object of this name?"""
        return bool(self.key) and self.read(slice(0, 0)).state == "value"

    def is_dir(self, **_: Any) -> bool:
        """Is there an object in this folder? The bucket itself is one always."""
        return not self.key or bool(self.names())

    def is_symlink(self) -> bool:
        """False."""
        return False

    def stat(self, **_: Any) -> os.stat_result:
        """Raise UnsupportedOperation: storage does not tell the size of an object alone."""
        raise io.UnsupportedOperation(f"{self}: objects have no os.stat_result")

    def version(self) -> str:
        """Return what differs after every writing of the object.

        Raises:
          FileNotFoundError: it is not there.
        """
        return str(self.there(self.read(slice(0, 0))).stamp.generation.hex())

    def has_size(self, size: int) -> bool:
        """Has the object so many bytes?

        Raises:
          FileNotFoundError: it is not there.
        """
        return (not size or self._reaches(size)) and not self._reaches(size + 1)

    def _reaches(self, size: int) -> bool:
        """Has the object so many bytes, or more?"""
        try:
            store = _store(self.bucket)
            self.there(store.read(self.key, byte_range=slice(size - 1, size)).result())
        except ValueError as error:
            if str(error).startswith("OUT_OF_RANGE"):
                return False
            raise _told(self, error) from error
        return True

    def names(self) -> list[str]:
        """Names of all objects in this folder and those below it, relative to it, sorted."""
        return [name for name in self._all_names() if name and name[-1] != "/"]

    def _all_names(self) -> list[str]:
        """As names, and with those by which other libraries mark a folder: "" and "below/"."""
        import tensorstore as ts

        prefix = f"{self.key}/" if self.key else ""
        end = prefix[:-1] + "0" if prefix else ""  # the character after /
        found = _ask(self, _store(self.bucket).list(ts.KvStore.KeyRange(prefix, end), len(prefix)))
        # Where nothing may be listed, TensorStore lists nothing; reading is refused, too.
        BucketPath(self, ".lock").read(slice(0, 0))
        return sorted(key.decode() for key in found)

    def iterdir(self) -> Iterator[BucketPath]:  # type: ignore[override]
        """Yield all that is in this folder."""
        names = self.names()
        if not names and self.key:
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(self))
        for name in sorted({name.partition("/")[0] for name in names}):
            yield self / name

    def glob(self, pattern: str, **_: Any) -> Iterator[BucketPath]:  # type: ignore[override]
        """Yield what fits a pattern such as "*/stage.json"; ** is not supported."""
        wanted = pattern.split("/")
        found = {tuple(name.split("/")[: len(wanted)]) for name in self.names()}
        for parts in sorted(found):
            if len(parts) == len(wanted) and all(map(fnmatch.fnmatchcase, parts, wanted)):
                yield self.joinpath(*parts)

    def rglob(self, pattern: str, **_: Any) -> Iterator[BucketPath]:  # type: ignore[override]
        """Yield all objects in this folder and those below it whose own names fit a pattern."""
        for name in self.names():
            if fnmatch.fnmatchcase(name.rpartition("/")[2], pattern):
                yield self / name

    def mkdir(self, *_: Any, **__: Any) -> None:
        """Do nothing: folders are not made."""

    def rmdir(self) -> None:
        """Do nothing: a folder without objects is not there."""

    def unlink(self, missing_ok: bool = False) -> None:
        """Remove the object."""
        if not missing_ok:
            self.version()
        _ask(self, _store(self.bucket).write(self.key, None))

    def rename(self, target: Any) -> BucketPath:
        """Give an object, or all of a folder, another name: each is copied, then all are removed.

        A copy that is interrupted leaves the old names as they were.
        """
        if self.is_file():
            target.write_bytes(self.read_bytes())
            self.unlink()
            return target  # type: ignore[no-any-return]
        for name in self.names():
            (target / name).write_bytes((self / name).read_bytes())
        for name in self._all_names():
            _ask(self, _store(self.bucket).write(f"{self.key}/{name}", None))
        return target  # type: ignore[no-any-return]

    replace = rename

    def open(self, mode: str = "r", *_: Any, **how: Any) -> Any:
        """Open the object, read whole, for reading."""
        if mode not in ("r", "rt", "rb"):
            raise io.UnsupportedOperation(
                f"{self}: objects are written whole, by files.atomic_path"
            )
        content = io.BytesIO(self.read_bytes())
        if mode == "rb":
            return content
        return io.TextIOWrapper(content, how.get("encoding") or "utf-8", newline=how.get("newline"))

    def read_bytes(self) -> bytes:
        """Return the content of the object."""
        return bytes(self.there(self.read()).value)

    def read_text(self, encoding: str | None = None, *_: Any, **__: Any) -> str:
        """Return the content of the object as text."""
        return self.read_bytes().decode(encoding or "utf-8")

    def read_range(self, start: int, end: int) -> bytes:
        """Return bytes of the object, fewer where it ends before `end`."""
        return read_ranges([(self, start, end)])[0]

    def write_bytes(self, data: Any) -> int:
        """Write the object."""
        _ask(self, _store(self.bucket).write(self.key, bytes(data)))
        return len(data)

    def write_text(self, data: str, encoding: str | None = None, *_: Any, **__: Any) -> int:
        """Write text as the object."""
        return self.write_bytes(data.encode(encoding or "utf-8"))

    def create(self, data: bytes) -> bool:
        """Write the object unless there is one already; return whether it was written."""
        missing = self.read(slice(0, 0))
        return missing.state == "missing" and self.write_if(data, missing.stamp.generation)

    def read(self, part: slice | None = None) -> Any:
        """Return TensorStore's ReadResult of the object, or of bytes of it; it may be missing."""
        store = _store(self.bucket)
        return _ask(self, store.read(self.key) if part is None else
                    store.read(self.key, byte_range=part))  # fmt: skip

    def there(self, found: Any) -> Any:
        """Return a ReadResult, or raise FileNotFoundError if it is of no object."""
        if found.state != "value":
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(self))
        return found

    def write_if(self, data: bytes, generation: bytes) -> bool:
        """Write the object if it is of this generation; return whether it was written."""
        written = _ask(self, _store(self.bucket).write(self.key, data, if_equal=generation))
        return bool(written.generation)


def read_ranges(parts: Sequence[tuple[BucketPath, int, int]]) -> list[bytes]:
    """Return bytes [start, end) of objects, all asked for at once; fewer where an object ends.

    Raises:
      FileNotFoundError: one is not there.
    """
    asked = [
        _store(path.bucket).read(path.key, byte_range=slice(start, end))
        for path, start, end in parts
    ]
    return [
        _within(path, start, end, future)
        for (path, start, end), future in zip(parts, asked, strict=True)
    ]


def _within(path: BucketPath, start: int, end: int, future: Any) -> bytes:
    try:
        return bytes(path.there(future.result()).value)
    except ValueError as error:
        if not str(error).startswith("OUT_OF_RANGE"):
            raise _told(path, error) from error
    whole = path.read_bytes()  # an object that ends within the range: a damaged shard
    return whole[start:end]


@functools.cache
def _store(bucket: str) -> Any:
    import tensorstore as ts

    # What is out of reach is told after a minute; without this, after a quarter of an hour.
    retries = {"max_retries": 6, "initial_delay": "1s", "max_delay": "32s"}
    spec = {"driver": "gcs", "bucket": bucket, "gcs_request_retries": retries}
    return ts.KvStore.open(spec).result()


def _ask(path: BucketPath, future: Any) -> Any:
    """Return what storage answers.

    Raises:
      MachineError: it refuses, or cannot be reached.
    """
    try:
        return future.result()
    except ValueError as error:  # TensorStore has no kinds of its own
        raise _told(path, error) from error


def _told(path: BucketPath, error: Exception) -> MachineError:
    said = " ".join(str(error).split())
    advice = ""
    if any(code in said for code in ("PERMISSION_DENIED", "UNAUTHENTICATED", "'401'", "'403'")):
        advice = (
            "; may this account use the bucket? `gcloud auth application-default login` signs in, "
            "and roles/storage.objectUser lets it read and write"
        )
    elif "NOT_FOUND" in said:
        advice = f"; is there a bucket {path.bucket}?"
    return MachineError(f"{path} cannot be reached: {said[:300]}{advice}")
