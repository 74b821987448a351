"""Files: whole or not at all, one writer at a time, and JSON values compared and fingerprinted.

Paths are those of one file system. `local_path` is where a path that a user gave comes in, and so
where addresses such as gs://bucket would be let through.
"""

from __future__ import annotations

import contextlib
import datetime
import fcntl
import hashlib
import json
import os
import platform
import re
import socket
import sys
import tempfile
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from imagen_jax.errors import UserError

LOCK = ".lock"


def local_path(path: str | os.PathLike[str]) -> Path:
    """Return a path that a user gave, with ~ expanded.

    Raises:
      UserError: an address such as gs://bucket, which is no path of this file system.
    """
    text = os.fspath(path)
    if match := re.match(r"([a-z][a-z0-9+.-]*)://", text, re.IGNORECASE):
        raise UserError(
            f"{text} is an address, and files are read and written by their paths only; mount the "
            f"{match[1]} storage (such as by gcsfuse) and give the path of the mounted folder"
        )
    return Path(text).expanduser()


@contextlib.contextmanager
def atomic_path(path: str | Path) -> Iterator[Path]:
    """Yield a temporary name beside `path`, synced and renamed to `path` if the block succeeds."""
    path = Path(path)
    temporary = path.with_name(f"{path.name}.{uuid.uuid4().hex}.tmp")
    try:
        yield temporary
        # Data before name: after a power cut the final name must never show half a file.
        _sync(temporary)
        os.replace(temporary, path)
        _sync(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


def write_json(path: str | Path, value: Any) -> None:
    """Write indented JSON, atomically."""
    with atomic_path(path) as temporary:
        temporary.write_text(json.dumps(value, indent=1, sort_keys=True) + "\n")


def fingerprint(value: Any) -> str:
    """Return the sha256 (hex) of the canonical JSON of `value`."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def differences(old: Any, new: Any, name: str = "") -> list[str]:
    """Return lines "a.b: old != new" for all that differs between two JSON values."""
    if isinstance(old, dict) and isinstance(new, dict):
        return [
            line
            for key in sorted(old.keys() | new.keys())
            for line in differences(
                old.get(key, "(absent)"), new.get(key, "(absent)"), f"{name}.{key}".lstrip(".")
            )
        ]
    return [] if old == new else [f"{name}: {old!r} != {new!r}"]


@contextlib.contextmanager
def only_writer(directory: str | Path, work: str) -> Iterator[None]:
    """Be the only process that writes to a directory, which is made if missing.

    The lock belongs to an open file: it ends with the process, however that ends.

    Args:
      directory: what is written to; a file .lock stays in it.
      work: what this process does, "imagen train", for the message of a second one.

    Raises:
      UserError: another process writes there; the message says which, and since when.
    """
    directory = Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    with open(directory / LOCK, "a+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            raise UserError(
                f"{directory} is being written by {file.read().strip() or 'another process'}; "
                "wait for its end, stop it, or choose another directory"
            ) from None
        except OSError as error:  # a file system without locks
            print(
                f"imagen: WARNING: {directory} cannot be locked ({error.strerror}): start no "
                "second process that writes there",
                file=sys.stderr,
            )
        file.truncate(0)
        now = datetime.datetime.now().strftime("%Y-%m-%d %H:%M:%S")
        file.write(f"{work} (process {os.getpid()} on {socket.gethostname()}, since {now})\n")
        file.flush()
        yield


def cache_directory(kind: str) -> Path:
    """Return where this machine keeps what it compiled or fetched.

    Compiled code is for one machine's processor, and a home directory may be shared by several.
    Without a home directory that can be written, as for `docker run --user`, it lies in the
    directory for temporary files.

    Args:
      kind: "compiled" for programs of JAX, "native" for kernels in C++, "emoji" for drawings.
    """
    name = f"{kind}-{platform.node()}"
    if given := os.environ.get("XDG_CACHE_HOME"):
        return Path(given) / "imagen-jax" / name
    home = os.path.expanduser("~")  # "~" itself where there is no home
    for existing in (Path(home, ".cache", "imagen-jax"), Path(home, ".cache"), Path(home)):
        if existing.is_dir():
            if home != "~" and os.access(existing, os.W_OK):
                return Path(home, ".cache", "imagen-jax", name)
            break
    return _own_temporary_directory() / name


def _own_temporary_directory() -> Path:
    """Return a directory that nobody else can write to: what lies there is run."""
    path = Path(tempfile.gettempdir()) / f"imagen-jax-{os.getuid()}"
    with contextlib.suppress(FileExistsError):
        path.mkdir(mode=0o700)
    found = path.lstat()
    if path.is_symlink() or found.st_uid != os.getuid() or found.st_mode & 0o022:
        return Path(tempfile.mkdtemp(prefix="imagen-jax-"))
    return path


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
