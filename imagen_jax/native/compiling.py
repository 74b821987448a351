"""Source files of kernels, compiled on the machine that runs them and for its very processor, when
they are first needed: some seconds, once.
"""

from __future__ import annotations

import ctypes
import functools
import hashlib
import os
import platform
import shlex
import shutil
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Mapping
from pathlib import Path

import jax

from imagen_jax.caches import cache_directory, check_private

SOURCES = Path(__file__).parent
COMPILERS = ("c++", "g++", "clang++")
FLAGS = ("-std=c++17", "-O3", "-ffp-contract=fast", "-fPIC", "-shared", "-w")


@functools.cache
def register(source: str, functions: tuple[str, ...], **macros: str) -> bool:
    """Make functions of a source file known to XLA by their names, for jax.ffi.ffi_call.

    Args:
      source: name of a file in this directory.
      functions: handlers that it defines.
      macros: macros that it is compiled with.

    Returns:
      Whether they can be called. Where they cannot be compiled, a warning says why, once.
    """
    try:
        library = ctypes.CDLL(str(_compiled(source, macros)))
    except (OSError, subprocess.CalledProcessError) as error:
        said = getattr(error, "stderr", None)
        warnings.warn(
            f"{source} could not be compiled, so that networks run two or three times as long on "
            "this CPU. Install g++ or clang++, or name a C++ compiler in the environment variable "
            f"CXX. The reason: {said.decode(errors='replace')[:2000] if said else error}",
            stacklevel=2,
        )
        return False
    for function in functions:
        handler = jax.ffi.pycapsule(getattr(library, function))
        jax.ffi.register_ffi_target(function, handler, platform="cpu")
    return True


def _compiler() -> list[str]:
    """The command that compiles, with the flags for this processor."""
    named = shlex.split(os.environ.get("CXX", ""))
    found = named or [path for name in COMPILERS if (path := shutil.which(name))][:1]
    if not found:
        raise FileNotFoundError(f"found none of {', '.join(COMPILERS)}")
    if platform.machine() in ("x86_64", "AMD64"):
        return [*found, "-march=native", "-mprefer-vector-width=512"]
    return [*found, "-mcpu=native"]


def _features() -> bytes:
    """Version of the compiler and its target flags for this processor."""
    command = [*_compiler(), "-dM", "-E", "-x", "c++", os.devnull]
    return subprocess.run(command, capture_output=True, check=True).stdout


def _compiled(source: str, macros: Mapping[str, str]) -> Path:
    """Return the library of a source file, compiled if it was not, or if others may write it."""
    definitions = [f"-D{name}={value}" for name, value in sorted(macros.items())]
    texts = [path.read_bytes() for path in (SOURCES / source, *sorted(SOURCES.glob("*.h")))]
    inputs = [*texts, _features(), *map(str.encode, (*FLAGS, *definitions, jax.lib.__version__))]
    digest = hashlib.sha256(b"\0".join(inputs)).hexdigest()[:16]
    library = cache_directory("native") / f"{Path(source).stem}-{digest}.so"
    if library.exists():
        try:
            check_private(library)
        except PermissionError as error:  # it would run with all rights of this user
            warnings.warn(
                f"a compiled kernel is not loaded, but compiled again: {error}", stacklevel=2
            )
        else:
            return library
    with tempfile.TemporaryDirectory(dir=library.parent) as directory:
        made = Path(directory, library.name)
        command = [*_compiler(), *FLAGS, "-I", jax.ffi.include_dir(), "-I", str(SOURCES)]
        command += [*definitions, str(SOURCES / source), "-o", str(made)]
        print(f"compiling {source} for this processor, once", file=sys.stderr)
        subprocess.run(command, capture_output=True, check=True)
        made.chmod(0o700)
        made.replace(library)  # at once: other processes may be looking for it
    return library
