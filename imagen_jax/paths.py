"""Paths that users give: of this machine, or gs://bucket/name (buckets.py)."""

from __future__ import annotations

import contextlib
import os
import re
import tempfile
import urllib.parse
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from imagen_jax.buckets import SCHEME, BucketPath
from imagen_jax.errors import UserError


def as_path(path: str | os.PathLike[str]) -> Path:
    """Return a path that a user gave: of gs://bucket/name a BucketPath, else one of this machine.

    ~ is expanded; of an address file://, it is the path.

    Raises:
      UserError: an address of another kind, such as s3://bucket; or ~name of an unknown user.
    """
    if isinstance(path, BucketPath):
        return path
    text = os.fspath(path)
    if text.startswith("file://"):
        text = urllib.parse.unquote(text.removeprefix("file://").removeprefix("localhost"))
    if text.startswith(SCHEME) and text.removeprefix(SCHEME).strip("/"):
        return BucketPath(text)
    if match := re.match(r"([a-z][a-z0-9+.-]*)://", text, re.IGNORECASE):
        raise UserError(
            f"{text} is an address of a kind that is not read or written here, {match[1]}://; "
            "choices: gs://bucket/folder, or a path"
        )
    if text.startswith("gs:/"):  # such as pathlib makes of gs://
        raise UserError(f"{text} is no path; an address in a bucket begins with gs://")
    try:
        return Path(text).expanduser()
    except RuntimeError as error:  # ~name of nobody here
        raise UserError(f"{text}: {error} Give the whole path, or ./~ for that name") from error


def local_path(path: str | os.PathLike[str]) -> Path:
    """Return a path that a user gave, of this machine alone; else as as_path.

    Raises:
      UserError: as as_path, or an address.
    """
    if isinstance(found := as_path(path), BucketPath):
        raise UserError(
            f"{path} is in a bucket, and is read and written on this machine only; copy it, as by "
            "`gcloud storage cp`, and give the path"
        )
    return found


def is_there(path: Path) -> bool:
    """Is there a file or folder, a link to nothing, or a device such as /dev/stdout?"""
    return path.exists() if isinstance(path, BucketPath) else os.path.lexists(path)


def those_there(paths: Iterable[Path]) -> set[Path]:
    """Return those of some paths that are files; each folder in a bucket is listed once."""
    paths = list(paths)
    remote = {path.parent for path in paths if isinstance(path, BucketPath)}
    listed = {folder / name for folder in remote for name in folder.names()}
    return {path for path in paths if (path in listed if path.parent in remote else path.is_file())}


def has_size(path: Path, size: int) -> bool:
    """Has a file so many bytes?

    Raises:
      FileNotFoundError: it is not there.
    """
    return path.has_size(size) if isinstance(path, BucketPath) else path.stat().st_size == size


def names_in(folder: Path) -> list[str]:
    """Return the names of all files and folders in a folder, of which there may be very many."""
    if isinstance(folder, BucketPath):
        return [path.name for path in folder.iterdir()]
    return os.listdir(folder)


def append(path: Path, line: str) -> None:
    """Add a line to a log that this process alone writes; in a bucket, all is written again."""
    if isinstance(path, BucketPath):
        path.write_bytes((path.read_bytes() if path.is_file() else b"") + line.encode())
        return
    with path.open("a", encoding="utf-8") as file:
        file.write(line)


def version_of(path: Path) -> tuple[Any, ...]:
    """Return what differs once a file was written again, as JSON.

    Raises:
      FileNotFoundError: it is not there.
    """
    if isinstance(path, BucketPath):
        return (path.version(),)
    return path.stat().st_size, path.stat().st_mtime_ns


@contextlib.contextmanager
def local_copy(path: Path) -> Iterator[Path]:
    """Yield a path of this machine with a file's content: itself, or a copy for the block."""
    if not isinstance(path, BucketPath):
        yield path
        return
    with tempfile.TemporaryDirectory(prefix="imagen-jax-") as directory:
        copy = Path(directory, path.name)
        copy.write_bytes(path.read_bytes())
        yield copy
