"""Signals that end a command as Ctrl-C does."""

from __future__ import annotations

import contextlib
import signal
import threading
import time
from collections.abc import Iterator
from types import FrameType

AT_ONCE = 1.0
"""Seconds within which signals to end are one."""


@contextlib.contextmanager
def signals() -> Iterator[threading.Event]:
    """Let SIGTERM end the block as Ctrl-C does, and SIGHUP of a terminal that is closed.

    Once it ends, no second one keeps it from writing what is there: a terminal sends Ctrl-C to all
    of a job, and who runs this command may pass it on, too.

    Yields:
      What is to be set when the block ends because of one.
    """
    from imagen_jax.progress import leave_terminal

    last = -AT_ONCE
    ending = threading.Event()

    def stop(number: int, frame: FrameType | None) -> None:
        nonlocal last
        if number == signal.SIGHUP:
            leave_terminal()
        again, last = time.monotonic() - last < AT_ONCE, time.monotonic()
        if not (again or ending.is_set()):
            raise KeyboardInterrupt

    before = {}
    if threading.current_thread() is threading.main_thread():  # no other one may ask for them
        before = {
            number: signal.signal(number, stop)
            for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
            if signal.getsignal(number) is not signal.SIG_IGN  # by nohup
        }
    try:
        yield ending
    finally:
        for number, handler in before.items():
            if signal.getsignal(number) is stop:
                signal.signal(number, handler)
