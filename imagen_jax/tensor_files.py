"""Files of safetensors: arrays by name, and no code, of whoever made them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from imagen_jax.errors import UserError
from imagen_jax.files import given_file

if TYPE_CHECKING:
    import numpy as np

LFS_POINTER = b"version https://git-lfs"
"""Start of a file that Git LFS would have to fetch."""


def read_safetensors(path: str | Path) -> dict[str, np.ndarray]:
    """Return all arrays of a file by name.

    Raises:
      UserError: there is no such file, or it is damaged, or something else.
    """
    with open_safetensors(path) as file:
        return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118


@contextmanager
def open_safetensors(path: str | Path) -> Iterator[Any]:
    """Yield a file as safetensors.safe_open does: names at once, arrays as they are asked for.

    Raises:
      UserError: there is no such file, or it is damaged, or something else.
    """
    from safetensors import safe_open

    with given_file(path, "file of weights") as local:
        with open(local, "rb") as file:
            start = file.read(len(LFS_POINTER))
        with _told(local, start), safe_open(str(local), framework="numpy") as opened:
            yield opened


@contextmanager
def _told(name: str | Path, start: bytes) -> Iterator[None]:
    """Tell what is wrong with a file in one line."""
    from safetensors import SafetensorError

    if start == LFS_POINTER:
        raise UserError(
            f"{name} is a pointer of Git LFS in place of the file; fetch it with `git lfs pull`, "
            "or download the file itself"
        )
    try:
        yield
    except SafetensorError as error:
        raise UserError(f"{name} is no safetensors file, or damaged: {error}") from error
    except (KeyError, AttributeError) as error:  # of a dtype that NumPy does not know
        raise UserError(f"{name} holds arrays of a dtype that is not read: {error}") from error
