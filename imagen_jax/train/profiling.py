"""A profiler trace of a training that runs: kill -USR1 its process."""

from __future__ import annotations

import shutil
import signal
import tempfile
import threading
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

import jax

from imagen_jax.buckets import BucketPath
from imagen_jax.files import atomic_path

TRACED_STEPS = 5


class Profiler:
    """Traces the next steps whenever the process gets SIGUSR1; each host for itself."""

    def __init__(self, directory: Path, report: Callable[[str], None]):
        """Args:
        directory: directory of TensorBoard's logs; a trace goes to plugins/profile in it.
        report: shows a line.
        """
        self._directory = self._local = directory
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
            self._stop()
        if self._previous is not None:
            signal.signal(signal.SIGUSR1, self._previous)

    def after_step(self, result: Any) -> None:
        """Starts or ends a trace if it is time. `result`: arrays that the step computes."""
        if self._left:
            self._left -= 1
            if self._left == 0:
                jax.block_until_ready(result)
                self._stop()
                self._report(f"profiler trace of {TRACED_STEPS} steps in {self._directory}")
        elif self._wanted:
            self._wanted = False
            jax.block_until_ready(result)
            self._local = self._directory
            if isinstance(self._directory, BucketPath):  # which the profiler does not write to
                self._local = Path(tempfile.mkdtemp(prefix="imagen-jax-"))
            jax.profiler.start_trace(str(self._local))
            self._left = TRACED_STEPS

    def _stop(self) -> None:
        jax.profiler.stop_trace()
        if self._local != self._directory:
            for path in filter(Path.is_file, self._local.rglob("*")):
                with atomic_path(self._directory / path.relative_to(self._local)) as part:
                    path.rename(part)
            shutil.rmtree(self._local)

    def _want(self, number: int, frame: FrameType | None) -> None:
        self._wanted = True
