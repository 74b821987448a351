"""Directories for what this machine compiles or fetches, which nobody but their owner can write."""

from __future__ import annotations

import contextlib
import functools
import glob
import importlib
import os
import platform
import stat
import tempfile
import warnings
import zlib
from pathlib import Path

from imagen_jax.paths import as_path


def cache_directory(kind: str) -> Path:
    """Return the directory for what this machine compiled or fetched, made for its owner alone.

    Compiled code is for one machine's processor, and a home directory may be shared by several, so
    that each machine has its own. Whoever can write it can run code as this user: a directory that
    belongs to another user, or that others may write, is not used. Then, and without a home
    directory that can be written, as for `docker run --user`, it lies in the directory for
    temporary files, and a warning says why.

    Args:
      kind: "compiled" for programs of JAX, "native" for kernels in C++, "emoji" for drawings.
    """
    name = f"{kind}-{platform.node()}"
    given = os.environ.get("XDG_CACHE_HOME", "")
    # The XDG rule: a path that is not absolute is ignored. "~" is left where there is no home.
    cache = given if os.path.isabs(given) else os.path.expanduser("~/.cache")
    try:
        if not os.path.isabs(cache):
            raise FileNotFoundError("there is no home directory")
        return _private_directory(Path(cache, "imagen-jax"), name)
    except OSError as error:
        reason = error
    temporary = Path(tempfile.gettempdir(), f"imagen-jax-{os.getuid()}")
    try:
        directory = _private_directory(temporary, name)
    except OSError:
        directory = _new_temporary_directory()
    warnings.warn(
        f"what is compiled or fetched is kept in {directory} only: {reason}. Set XDG_CACHE_HOME to "
        "a directory of your own",
        stacklevel=2,
    )
    return directory


@functools.cache
def _new_temporary_directory() -> Path:
    return Path(tempfile.mkdtemp(prefix="imagen-jax-"))


def _private_directory(parent: Path, name: str) -> Path:
    """Return the directory parent/name, both made for this user alone.

    Raises:
      OSError: they cannot be made, or somebody else can write them.
    """
    parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    check_private(parent)
    directory = parent / name
    directory.mkdir(exist_ok=True, mode=0o700)
    check_private(directory)
    if not os.access(directory, os.W_OK | os.X_OK):
        raise PermissionError(f"{directory} cannot be written")
    return directory


def check_private(path: Path) -> None:
    """Check that nobody but this user, or root, can change a file or directory.

    Raises:
      PermissionError: somebody else can; says how that is mended.
    """
    found = path.lstat()
    if found.st_uid not in (os.getuid(), 0):
        raise PermissionError(f"{path} belongs to another user (number {found.st_uid})")
    if stat.S_ISLNK(found.st_mode):
        raise PermissionError(f"{path} is a link")
    if found.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        raise PermissionError(
            f"{path} can be written by others (chmod go-w {path}, if nobody has put anything there)"
        )


_OF_PROGRAMS = "persistent compilation cache entry for "
_ZSTANDARD = bytes.fromhex("28b52ffd")


def drop_broken_programs(warning: str) -> str | None:
    """Return a better warning for JAX's that a compiled program cannot be read, or not be kept.

    JAX writes them in place, and never over one that is there: what a full disk or a kill has cut
    short would be compiled again in every process to come. It is removed, and so written again.

    Args:
      warning: JAX's.

    Returns:
      The warning to show; None if this one is of something else.
    """
    if not warning.startswith(("Error reading", "Error writing")) or _OF_PROGRAMS not in warning:
        return None
    name, _, why = warning.partition(_OF_PROGRAMS)[2].removeprefix("'").partition("': ")
    directory = as_path(os.environ.get("JAX_COMPILATION_CACHE_DIR", ""))
    for path in directory.glob(f"{glob.escape(name)}-*-cache"):
        with contextlib.suppress(FileNotFoundError):  # another process has removed it
            if not _is_whole(path.read_bytes()):
                path.unlink()
    what = f"the compiled program {name!r}"
    if warning.startswith("Error writing"):
        return f"{what} cannot be kept in {directory}: {why}"
    return f"{what} in {directory} cannot be read, and is compiled again: {why}"


def _is_whole(program: bytes) -> bool:
    """JAX packs programs with zstandard where that is installed, else with zlib."""
    try:
        if program.startswith(_ZSTANDARD):
            importlib.import_module("zstandard").ZstdDecompressor().decompress(program)
        else:
            zlib.decompress(program)
    except Exception:
        return False
    return True
