"""A profiler trace of a training that runs: kill -USR1 its process."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

import jax

TRACED_STEPS = 5


class Profiler:
    """Traces the next steps whenever the process gets SIGUSR1; each host for itself."""

    def __init__(self, directory: Path, report: Callable[[str], None]):
        """Args:
        directory: directory of TensorBoard's logs; a trace goes to plugins/profile in it.
        report: shows a line.
        """
        self._directory = directory
        self._report = report
        self._wanted = False
        self._left = 0
        self._previous: Any = None

    def __enter__(self) -> Profiler:
        if threading.current_thread() is threading.main_thread():  # signals are for it alone
            self._previous = signal.signal(signal.SIGUSR1, self._want)
        return self

    def __exit__(self, *exception: object) -> None:
        if self._left:
            jax.profiler.stop_trace()
        if self._previous is not None:
            signal.signal(signal.SIGUSR1, self._previous)

    def after_step(self, result: Any) -> None:
        """Starts or ends a trace if it is time. `result`: arrays that the step computes."""
        if self._left:
            self._left -= 1
            if self._left == 0:
                jax.block_until_ready(result)
                jax.profiler.stop_trace()
                self._report(f"profiler trace of {TRACED_STEPS} steps in {self._directory}")
        elif self._wanted:
            self._wanted = False
            jax.block_until_ready(result)
            jax.profiler.start_trace(str(self._directory))
            self._left = TRACED_STEPS

    def _want(self, number: int, frame: FrameType | None) -> None:
        self._wanted = True
