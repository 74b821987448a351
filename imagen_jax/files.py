"""Files: whole or not at all, one writer at a time, and JSON values compared and fingerprinted.

Paths are of this machine or in a bucket (paths.py). An object of a bucket appears whole when it is
written, so that nothing is renamed or synced there, and a lock is an object, too.
"""

from __future__ import annotations

import codecs
import contextlib
import datetime
import fcntl
import functools
import hashlib
import json
import os
import socket
import sys
import tempfile
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TextIO

from imagen_jax.bucket_lock import locked
from imagen_jax.buckets import BucketPath
from imagen_jax.errors import MachineError, UserError
from imagen_jax.paths import as_path, is_there, local_copy

LOCK = ".lock"
_MARKS = (
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF32_LE, "utf-32"),  # begins as the next one does
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
    (codecs.BOM_UTF32_BE, "utf-32"),
)


@contextlib.contextmanager
def given_file(path: str | os.PathLike[str], what: str) -> Iterator[Path]:
    """Yield the path of a file that a user gave, or of a copy of it, to be read in the block.

    Args:
      path: as it was given.
      what: the file's content, "list of prompts", for the message.

    Raises:
      UserError: an address of an unknown kind; or the block finds no such file, one that may not be
        read, or something else than UTF-8 where it wants that.
    """
    given = as_path(path)
    try:
        with local_copy(given) as local:
            yield local
    except FileNotFoundError as error:
        raise UserError(f"no {what} {path}: there is no such file") from error
    except IsADirectoryError as error:
        raise UserError(f"{path} is a directory; a {what} is a file") from error
    except NotADirectoryError as error:
        raise UserError(f"no {what} {path}: a part of the path is no directory") from error
    except PermissionError as error:
        raise UserError(f"{path} may not be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise UserError(
            f"{path} is no text in UTF-8 (at byte {error.start}); save it as UTF-8"
        ) from error


def read_text(path: str | os.PathLike[str], what: str) -> str:
    """Return the text of a file: UTF-8, or what its byte order mark says, as of Windows' programs.

    Args:
      path: as a user gave it.
      what: the file's content, for the message.

    Raises:
      UserError: as given_file, or it has a NUL character.
    """
    with given_file(path, what) as local:
        content = local.read_bytes()
        encoding = next((name for mark, name in _MARKS if content.startswith(mark)), "utf-8")
        text = content.decode(encoding)
    if "\0" in text:
        raise UserError(
            f"{path} has NUL characters, as UTF-16 without a byte order mark has; save it as UTF-8"
        )
    return text


def new_file(path: str | os.PathLike[str], suffix: str = "") -> Path:
    """Return the path of a file that a command is to write, checked before its work begins.

    Args:
      path: as a user gave it.
      suffix: end of its name, ".png"; "" for any.

    Raises:
      UserError: an unknown address, another suffix, a directory, or a file that is there already;
        or its folder is missing, or may not be written to.
    """
    local = as_path(path)
    if suffix and local.suffix.lower() != suffix:
        raise UserError(f"{path} is to be a {suffix} file; give it that name")
    if local.is_dir():
        raise UserError(f"{path} is a directory; give the path of a file")
    if is_there(local):
        raise UserError(f"{path} is there already, and nothing is overwritten; choose another name")
    if isinstance(local, BucketPath):
        return local
    if not local.parent.is_dir():
        raise UserError(f"{path} cannot be written: there is no folder {local.parent}")
    if not os.access(local.parent, os.W_OK):
        raise UserError(f"{path} cannot be written: {local.parent} may not be written to")
    return local


def output_folder(path: str | os.PathLike[str]) -> Path:
    """Return the path of a folder that a command writes to, which need not be there yet.

    Raises:
      UserError: an unknown address, or a file is there or above it.
      MachineError: it may not be written to, or not be made.
    """
    local = as_path(path)
    if isinstance(local, BucketPath):
        if local.is_file():
            raise UserError(f"{local} is a file; give the path of a folder")
        return local
    there = next(place for place in (local, *local.absolute().parents) if os.path.lexists(place))
    if there.is_symlink() and not there.exists():
        raise UserError(f"{there} is a link to {os.readlink(there)}, which is not there")
    if not there.is_dir():
        raise UserError(f"{there} is a file; give the path of a folder")
    if not os.access(there, os.W_OK | os.X_OK):
        where = "it" if there in (local, local.absolute()) else there
        raise MachineError(f"{local} cannot be written: {where} may not be written to")
    return local


def parse_json(text: str | bytes, name: str | os.PathLike[str]) -> Any:
    """Return the value that JSON stands for.

    Args:
      text: the JSON.
      name: what it is called in an error.

    Raises:
      UserError: it is none, or nested too deep to be read.
    """
    try:
        return json.loads(text)
    except ValueError as error:  # also of a number of too many digits
        raise UserError(f"{name} is not JSON: {error}") from error
    except RecursionError as error:
        raise UserError(f"{name} is JSON that is nested too deep") from error


def read_json(path: str | os.PathLike[str], what: str) -> dict[str, Any]:
    """Return the object that a file of JSON holds.

    Args:
      path: as a user gave it.
      what: the file's content, for the message.

    Raises:
      UserError: as given_file, or the file holds something else than an object.
    """
    with given_file(path, what) as local:
        value = parse_json(local.read_text("utf-8"), path)
    if not isinstance(value, dict):
        raise UserError(f"{path} is no {what}: it holds a {type(value).__name__}, not an object")
    return value


@contextlib.contextmanager
def atomic_path(path: str | Path, new: bool = False) -> Iterator[Path]:
    """Yield a temporary name, whose file becomes `path` if the block succeeds.

    It lies beside `path`, is synced, and then renamed. What goes to a bucket is written to this
    machine's folder of temporary files first (TMPDIR), and then uploaded as one object.

    Args:
      path: the file.
      new: it is not to replace another, such as one that was written since new_file looked.

    Raises:
      UserError: another file is there now; what the block wrote is kept under the name of the
        message.
    """
    path = as_path(path)
    if isinstance(path, BucketPath):
        with tempfile.TemporaryDirectory(prefix="imagen-jax-") as directory:
            yield (temporary := Path(directory, path.name))
            free = _upload(path, temporary.read_bytes(), new)
        _tell_other(path, free)
        return
    temporary = path.with_name(f"{path.name}.{uuid.uuid4().hex}.tmp")
    try:
        yield temporary
        temporary.chmod(0o666 & ~_umask())  # some libraries write for the owner alone
        # Data before name: after a power cut the final name must never show half a file.
        _sync(temporary)
        free = unused_name(path) if new else path
        os.replace(temporary, free)
        _sync(path.parent)
    finally:
        temporary.unlink(missing_ok=True)
    _tell_other(path, free)


def _upload(path: BucketPath, content: bytes, new: bool) -> Path:
    if not new:
        path.write_bytes(content)
        return path
    while not (free := unused_name(path)).create(content):  # type: ignore[attr-defined]
        pass
    return free


def _tell_other(path: Path, free: Path) -> None:
    if free != path:
        raise UserError(
            f"{path} was written by another process in the meantime, and nothing is overwritten; "
            f"this one's is {free}"
        )


def unused_name(path: Path, first: int = 1) -> Path:
    """Return the first free name of "sheet.png", "sheet-2.png", "sheet-3.png" and so on.

    Args:
      path: the first of these names.
      first: number to begin with; 2 leaves out the plain name.
    """
    number = first
    while True:
        name = path if number == 1 else path.with_name(f"{path.stem}-{number}{path.suffix}")
        if not is_there(name):
            return name
        number += 1


@functools.cache
def _umask() -> int:
    """Of this process, which it can only read by setting it."""
    mask = os.umask(0o077)
    os.umask(mask)
    return mask


def write_json(path: str | Path, value: Any) -> None:
    """Write indented JSON, atomically."""
    with atomic_path(path) as temporary:
        temporary.write_bytes(as_json(value))


def as_json(value: Any) -> bytes:
    """Return what write_json writes."""
    return (json.dumps(value, indent=1, sort_keys=True) + "\n").encode()


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

    The lock belongs to an open file: it ends with the process, however that ends. In a bucket it is
    an object, see bucket_lock.locked.

    Args:
      directory: the directory to lock; a file .lock stays in it.
      work: name of this work, "imagen train", for the message to a second process.

    Raises:
      UserError: another process writes there; the message says which, and since when. Or the path
        is that of a file.
    """
    directory = output_folder(directory)
    if isinstance(directory, BucketPath):
        with locked(directory / LOCK, work):
            yield
        return
    directory.mkdir(parents=True, exist_ok=True)
    with _open_lock(directory / LOCK) as file:
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
        if not file.writable():
            yield
            return
        file.truncate(0)
        now = datetime.datetime.now().strftime("%Y-%m-%d %H:%M:%S")
        file.write(f"{work} (process {os.getpid()} on {socket.gethostname()}, since {now})\n")
        file.flush()
        yield


def _open_lock(path: Path) -> TextIO:
    """Open a file to be locked: that of another user, who may be writing, is only read."""
    try:
        return open(path, "a+", encoding="utf-8")
    except PermissionError:
        if not os.access(path.parent, os.W_OK):
            raise
        return open(path, encoding="utf-8")


@contextlib.contextmanager
def in_turn(directory: Path) -> Iterator[None]:
    """Wait until no other process is in such a block of this directory, for moments at most.

    Args:
      directory: an existing directory; a file .turn stays in it.
    """
    if isinstance(directory, BucketPath):
        with locked(directory / ".turn", "another process", wait=True):
            yield
        return
    with _open_lock(directory / ".turn") as file:
        with contextlib.suppress(OSError):  # a file system without locks
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
