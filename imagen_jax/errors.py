"""Errors that are no defects: mistakes of users, and what the machine refuses; and their text."""

from __future__ import annotations

import errno
import os

_FULL = tuple(map(os.strerror, (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS)))


class UserError(ValueError):
    """A mistake in what the user gave: an argument, a config, a file.

    The message says what is wrong, which value was received, and which choices there are. Commands
    print it as one line; every other exception is a defect of the program and keeps its traceback.
    """


class UnusableError(UserError):
    """Why an image, or an example of a corpus, cannot be used.

    Attributes:
      reason: in words that many share; embedding counts them by it.
      detail: particulars of this case.
    """

    def __init__(self, reason: str, detail: str = ""):
        super().__init__(f"{reason} ({detail})" if detail else reason)
        self.reason = reason
        self.detail = detail


class MachineError(OSError):
    """Something that the machine refuses: the disk is full, a device is not there.

    The message says what was tried and what has become of it. Commands print it as one line.
    """


def printable(line: str) -> str:
    """Return a line with what would command a terminal, or is no text, escaped."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in line)


def no_space(error: BaseException) -> str | None:
    """Return "No space left on device", or what else keeps a disk from being written, if that is
    what an error says, of whatever library it is; None for others."""
    return next((reason for reason in _FULL if reason in str(error)), None)
