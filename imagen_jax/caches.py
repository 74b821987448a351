"""Directories for what this machine compiles or fetches, which nobody but their owner can write."""

from __future__ import annotations

import functools
import os
import platform
import stat
import tempfile
import warnings
from pathlib import Path


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
