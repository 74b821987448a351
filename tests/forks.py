"""Processes that start at once, forked from one that has loaded the libraries.

Only for scripts: a process in which JAX has computed something must not be forked.
"""

from __future__ import annotations

import os
import sys
import traceback
from collections.abc import Callable
from pathlib import Path

import jax
import tiny  # noqa: F401  its text encoder

import imagen_jax.train.loop  # noqa: F401  what `imagen train` imports
from imagen_jax.main import main


def fork(function: Callable[[], int | None], log: Path | None = None) -> int:
    """Starts a process that ends with the function's result as its status; returns its id.

    Args:
      log: file that its output is appended to; None is the output of this process.
    """
    sys.stdout.flush()
    if child := os.fork():
        return child
    status = 1
    try:
        if log is not None:
            file = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
            os.dup2(file, 1)
            os.dup2(file, 2)
        status = function() or 0
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


def imagen(argv: list[str], devices: int = 1) -> int:
    """`imagen ARGV` on so many devices, in a forked process: its exit status."""
    jax.config.update("jax_num_cpu_devices", devices)
    return main(argv)


def wait(child: int) -> int:
    """Exit status of a process, when it has ended."""
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
