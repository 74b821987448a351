"""The log of the page's server: one line each."""

from __future__ import annotations

import logging
import traceback
from pathlib import Path

from imagen_jax.errors import printable

MAX_LINE = 500
"""Characters of a line; what a browser sends may be longer."""


def log_in_lines() -> None:
    """Log errors as one line each that a terminal only shows.

    What a browser sends may raise them within NiceGUI, and a browser may have anything logged.
    """
    handler = logging.StreamHandler()
    handler.setFormatter(_OneLine())
    for name in ("nicegui", "uvicorn"):
        log = logging.getLogger(name)
        log.handlers, log.propagate = [handler], False


class _OneLine(logging.Formatter):
    """Form of a line; of an error, the place where it was raised stands in for its traceback."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the line of a record."""
        line = record.getMessage()
        if record.exc_info and (error := record.exc_info[1]) is not None:
            *_, (frame, number) = traceback.walk_tb(error.__traceback__)
            where = f"{Path(frame.f_code.co_filename).name}, line {number}"
            line = f"{type(error).__name__} in {where}: {line}"
        line = printable(f"imagen: {record.name}: {' '.join(line.split())}")
        return line if len(line) <= MAX_LINE else f"{line[:MAX_LINE]} ..."
