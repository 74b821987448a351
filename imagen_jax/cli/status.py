"""Exit status of a command, and errors in one line."""

from __future__ import annotations

import argparse
import dataclasses
import difflib
import errno
import os
import sys
from collections.abc import Sequence
from typing import Any, NoReturn

from imagen_jax.errors import MachineError, UserError, no_space, printable

MISTAKE = 64
"""Exit status after a mistake of the user (EX_USAGE of sysexits.h)."""
REFUSED = 1
"""Exit status after what the machine refuses."""
_REFUSALS = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EACCES, errno.EPERM, errno.EROFS,
             errno.EIO, errno.EMFILE, errno.ENFILE}  # fmt: skip
_NO_TEMPORARY = "No usable temporary directory found in "
"""Begin of Python's error where none can be written."""


def status_of(error: Exception, args: argparse.Namespace) -> int | None:
    """Return the exit status after an error that one line explains; None for a defect.

    Args:
      error: the exception.
      args: arguments of the command. A missing path among them, or one that is no directory,
        is the user's mistake.
    """
    if isinstance(error, UserError):
        return MISTAKE
    if isinstance(error, MachineError) or out_of_memory(error):
        return REFUSED
    if isinstance(error, OSError) and error.errno in _REFUSALS:
        return REFUSED
    if no_space(error) or _NO_TEMPORARY in str(error):  # of TensorFlow, or of code in Rust, too
        return REFUSED
    if isinstance(error, OSError) and isinstance(error.filename, str):
        values = [v for given in vars(args).values()
                  for v in (given if isinstance(given, list) else [given])]  # fmt: skip
        path = os.path.abspath(error.filename)
        for value in (v for v in values if isinstance(v, str) and v):
            if os.path.commonpath([path, os.path.abspath(value)]) == os.path.abspath(value):
                return MISTAKE
    return None


def out_of_memory(error: BaseException) -> bool:
    """True for what Python and JAX raise when there is no memory left."""
    jax = sys.modules.get("jax")
    of_jax = jax is not None and isinstance(error, jax.errors.JaxRuntimeError)
    return isinstance(error, MemoryError) or (of_jax and "RESOURCE_EXHAUSTED" in str(error))


def one_line(error: Exception, args: argparse.Namespace | None = None) -> str:
    """Return what an error says, in one line that a terminal only shows: messages hold names of
    files and captions that somebody else wrote.

    Args:
      error: the exception.
      args: arguments of the command, which name the place where the disk is full.
    """
    text = str(error)
    if out_of_memory(error):
        said = text.splitlines()[0] if text else "Python could get no more"
        text = f"out of memory; make fewer or smaller images at once (such as --batch-size): {said}"
    if _NO_TEMPORARY in text:
        tried = text.partition(_NO_TEMPORARY)[2]
        text = f"no temporary file can be written in any of {tried}; make room, or set TMPDIR"
    if isinstance(error, OSError) and error.strerror and error.filename:
        text = f"{error.filename}: {error.strerror}"
    elif not isinstance(error, UserError | MachineError):
        reason = no_space(error)
        place = "standard output" if _printed_in_vain(error) else None
        place = place or getattr(args, "output", None) or getattr(args, "workdir", None)
        if reason and place:
            text = f"{place} cannot be written: {reason}"
    return printable(" ".join(text.split()))


def _printed_in_vain(error: Exception) -> bool:
    """True if standard output refuses what is still to be written to it, which is then given up.

    Args:
      error: what was raised. Output without a buffer (PYTHONUNBUFFERED) has lost what it refused:
        where the error names no file, one more line shows whether it was that.
    """
    try:
        sys.stdout.flush()
        if getattr(error, "errno", None) in _REFUSALS and sys.stdout is sys.__stdout__:
            os.write(1, b"\n")
    except OSError:
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115
        return True
    return False


def show(text: str) -> None:
    """Print lines that may hold names and captions of somebody else."""
    print("\n".join(map(printable, text.split("\n"))))


def missing_device() -> str | None:
    """Return what is wrong with JAX_PLATFORMS, if the devices that it asks for are not there."""
    wanted, jax = os.environ.get("JAX_PLATFORMS"), sys.modules.get("jax")
    if not wanted or jax is None:
        return None
    try:
        jax.devices()
    except Exception as error:  # an AssertionError for cuda, a RuntimeError for tpu
        return (
            f"JAX_PLATFORMS is {wanted!r}, and JAX finds no such device here "
            f"({one_line(error) or type(error).__name__}); unset it, or set it to cpu"
        )
    return None


def unknown_options(unknown: Sequence[str], args: argparse.Namespace) -> str:
    """Return what is wrong with arguments that a command does not know, and what may be meant."""
    name = unknown[0].partition("=")[0]
    if not name.startswith("--"):
        return f"unexpected {name!r}"
    message = f"there is no option {name}"
    if "overrides" in args:
        from imagen_jax.stage_config import TrainConfig

        key = name[2:].replace("-", "_")
        if key in {field.name for field in dataclasses.fields(TrainConfig)}:
            stage = args.stage or "STAGE"
            return f"{message}; the config has it: --set stages.{stage}.train.{key}=..."
    known = [option for action in args.parser._actions for option in action.option_strings]
    known.remove("--help")
    close = [option for option in known if name.endswith(option[1:])]  # --image-size for --size
    if close := close or difflib.get_close_matches(name, known, 1):
        message += f"; did you mean {close[0]}?"
    return message


def empty_option(args: argparse.Namespace) -> str | None:
    """Return what is wrong with an option whose value is an empty text; None if there is none."""
    for action in args.parser._actions:
        values = getattr(args, action.dest, None)
        empty = values == "" or (isinstance(values, list) and "" in values)
        if empty and action.option_strings and action.dest != "negative":
            return f"argument {action.option_strings[-1]}: is empty, as of a variable not set"
    return None


class Parser(argparse.ArgumentParser):
    """A parser that ends the process with MISTAKE, not 2."""

    def error(self, message: str) -> NoReturn:
        """Print the message and where help is, and end the process."""
        self.exit(MISTAKE, f"{self.prog}: error: {message}; see {self.prog} --help\n")

    def _print_message(self, message: str, file: Any = None) -> None:
        """Print help: argparse itself passes over what goes wrong in that."""
        if file is sys.stdout:
            file.write(message)
        else:
            super()._print_message(message, file)
