"""Parameters of a checkpoint that are not read yet."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

Index = tuple[slice, ...]


@dataclass(frozen=True)
class Leaf:
    """A parameter that is not read yet.

    Attributes:
      shape: its shape.
      read: function from an index of whole-number slices to that part, a NumPy array.
      chunk: numbers that are read at once, at least, where it is stored in chunks.
    """

    shape: tuple[int, ...]
    read: Callable[[Index], np.ndarray]
    chunk: int = 0


def first_line(error: Exception) -> str:
    """Return how an error of a library begins."""
    return (str(error).splitlines() or [type(error).__name__])[0][:500]
