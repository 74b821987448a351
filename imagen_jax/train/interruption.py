"""Training that is told to stop, and training that hangs."""

from __future__ import annotations

import faulthandler
import os
import signal
import sys
import threading
import time
from types import FrameType
from typing import Any

import jax
from jax.experimental import multihost_utils

from imagen_jax.progress import leave_terminal

PREEMPTED = 75
"""Exit status of a process that was told to stop: the same command resumes (EX_TEMPFAIL)."""
GRACE_SECONDS = 300.0
"""From the notice to the end at the latest; who sends SIGTERM kills sooner, as a rule."""
FIRST_LIMIT_SECONDS = 1800.0
"""A first step that takes longer, compilation included, is reported."""
LEAST_LIMIT_SECONDS = 300.0
"""A later step that takes less is never reported."""


class Preempted(Exception):
    """Training was told to stop, and the checkpoint of where it was is written."""


class Preemption:
    """Notices that this job is to stop: SIGTERM on any of its hosts.

    One process looks for the signal itself, and for SIGHUP, which comes when its terminal is closed
    unless nohup has it ignored. With several, JAX's service of preemption notices catches SIGTERM,
    and lets all hosts stop after the same step.
    """

    def __init__(self, grace: float = GRACE_SECONDS):
        """Args:
        grace: seconds after which a process that did not get to an end is ended by force.
        """
        self._grace = grace
        self._noticed_at: float | None = None
        self._previous: dict[int, Any] = {}
        self._alone = jax.process_count() == 1
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="preemption", daemon=True)

    def __enter__(self) -> Preemption:
        # Only the main thread may ask for signals; JAX's own service needs none of this.
        if self._alone and threading.current_thread() is threading.main_thread():
            for number in (signal.SIGTERM, signal.SIGHUP):
                if signal.getsignal(number) is not signal.SIG_IGN:
                    self._previous[number] = signal.signal(number, self._notice)
        self._thread.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._over.set()
        self._thread.join()
        for number, handler in self._previous.items():
            if signal.getsignal(number) == self._notice:
                signal.signal(number, handler)

    def reached(self, step: int) -> bool:
        """True, on every host, if training must stop after this step. Call it after every step."""
        if not self._alone and multihost_utils.reached_preemption_sync_point(step):
            self._notice()
        return self._noticed_at is not None

    def _notice(self, number: int = signal.SIGTERM, frame: FrameType | None = None) -> None:
        if number == signal.SIGHUP:
            leave_terminal()
        if self._noticed_at is None:
            self._noticed_at = time.monotonic()

    def _watch(self) -> None:
        while not self._over.wait(min(1.0, self._grace)):
            at = self._noticed_at
            if at is not None and time.monotonic() - at > self._grace:
                report_stacks(
                    f"still running {self._grace:g} s after the notice to stop; ended now"
                )
                os._exit(PREEMPTED)


class Watchdog:
    """Reports a step that takes far longer than those before, with what every thread is doing."""

    def __init__(self, first: float = FIRST_LIMIT_SECONDS, least: float = LEAST_LIMIT_SECONDS):
        """Args:
        first: seconds that may pass until the first beat.
        least: seconds that may always pass between beats; it is ten times as long as the slowest
          so far took, if that is more.
        """
        self._least = least
        self._limit = first
        self._longest = 0.0
        self._step: int | None = None
        self._since = time.monotonic()
        self._changed = threading.Condition()
        self._stop = False
        self._thread = threading.Thread(target=self._watch, name="watchdog", daemon=True)

    def __enter__(self) -> Watchdog:
        self._since = time.monotonic()
        self._thread.start()
        return self

    def __exit__(self, *exception: object) -> None:
        with self._changed:
            self._stop = True
            self._changed.notify()
        self._thread.join()

    def beat(self, step: int) -> None:
        """Says that a step has ended, and with it what is done between steps."""
        with self._changed:
            now = time.monotonic()
            if self._step is not None:  # the first one also compiles
                self._longest = max(self._longest, now - self._since)
            self._limit = max(self._least, 10 * self._longest)
            self._step, self._since = step, now

    def _watch(self) -> None:
        with self._changed:
            while not self._stop:
                late = time.monotonic() - self._since - self._limit
                if late >= 0:
                    after = "the start" if self._step is None else f"step {self._step}"
                    report_stacks(
                        f"host {jax.process_index()}: no step has ended for {self._limit:g} s, "
                        f"since {after}; where each thread is:"
                    )
                    self._limit *= 2  # the next report takes longer, lest they fill the log
                    continue
                self._changed.wait(-late)


def report_stacks(message: str) -> None:
    """Writes a message and the stack of every thread to the standard error stream."""
    print(f"imagen: {message}", file=sys.stderr, flush=True)
    faulthandler.dump_traceback(file=2, all_threads=True)
