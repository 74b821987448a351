"""Ports for processes that are told a number, and listen there later."""

from __future__ import annotations

import itertools
import os
import socket

FIRST, COUNT = 10_000, 20_000
"""Below those that Linux and macOS give out: nobody is given one of them meanwhile."""
_places = itertools.count()


def free_port() -> int:
    """A port that nobody listens at, and another one in every process and at every call."""
    while True:
        port = FIRST + (101 * os.getpid() + next(_places)) % COUNT
        try:
            with socket.socket() as tried:
                tried.bind(("localhost", port))
        except OSError:
            continue
        return port
