"""Where a machine keeps what it compiled."""

from __future__ import annotations

import os
import platform
from pathlib import Path


def cache_directory(kind: str) -> Path:
    """A directory of this machine: compiled code is for its processor, and a home directory may be
    shared.

    Args:
      kind: "compiled" for programs of JAX, "native" for kernels in C++.
    """
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return cache / "imagen-jax" / f"{kind}-{platform.node()}"
