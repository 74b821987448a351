"""The page's side of the process that samples: started, spoken to, and started again.

Imports nothing heavy: the process can load while the page does.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import threading
import warnings
from collections.abc import Callable, Iterator, Sequence
from multiprocessing.connection import Connection
from typing import TYPE_CHECKING, Any

from imagen_jax.errors import MachineError
from imagen_jax.page.messages import Ended, FromSampler, Make, Ready, Refused, Stop

if TYPE_CHECKING:
    from imagen_jax.cascade import Cascade

BEHIND = 10
"""Steps of niceness that sampling is behind answering: where both want a core, a tenth is left."""
END_SECONDS = 5.0
"""Seconds in which a process whose pipe is closed has ended."""


class GoneError(MachineError):
    """The process has ended by itself; says how."""


class Sampler:
    """The process that samples.

    Attributes:
      cascade: the cascade without its weights, which makes requests; there after `wait`.
      closed: True once it was ended for good.
    """

    cascade: Cascade

    def __init__(
        self,
        workdir: str | None = None,
        encoder_weights: str | None = None,
        vocabulary: str | None = None,
        modules: Sequence[str] = (),
    ):
        """Start it; it loads its cascade meanwhile.

        Args:
          workdir, encoder_weights, vocabulary: see Cascade.load.
          modules: the user's own, imported there first.
        """
        self.closed = False
        self._arguments = (workdir, encoder_weights, vocabulary, modules)
        self._process: Any = None
        self._sending = threading.Lock()
        self._begin()

    def wait(self) -> None:
        """Wait until the process has loaded its cascade.

        Raises:
          GoneError: it has ended.
          Exception: what it could not load it for.
        """
        message = self._receive()
        if isinstance(message, Refused):
            self._pipe.close()
            raise message.error
        assert isinstance(message, Ready)
        self.cascade = message.cascade

    def run(self, job: Make) -> Iterator[FromSampler]:
        """Yield what the process tells of a job, Ended last.

        Raises:
          GoneError: the process has ended while it was at it.
          Exception: it had ended before, and could not be started again.
        """
        if self._pipe.closed or self._pipe.poll():  # without a job, it says nothing but its end
            self.restart()
        self._send(job)
        while True:
            message = self._receive()
            yield message
            if isinstance(message, Ended):
                return

    def stop(self, number: int) -> None:
        """End the job of a number after the step that is being made."""
        with contextlib.suppress(GoneError):
            self._send(Stop(number))

    def restart(self) -> None:
        """Start the process again after it has ended; see wait."""
        self._begin()
        self.wait()

    def close(self) -> None:
        """End it for good."""
        self.closed = True
        if self._process is not None:
            self._process.terminate()

    def _begin(self) -> None:
        here, there = multiprocessing.Pipe()
        self._start(there)
        with self._sending:
            self._pipe = here

    def _start(self, there: Connection) -> None:
        """Start what samples with its end of the pipe."""
        context = multiprocessing.get_context("spawn")
        # As a daemon, it is ended with this process; where this one is killed, by the pipe.
        self._process = context.Process(
            target=_run, args=(there, *self._arguments, warnings.formatwarning), daemon=True
        )
        with _interrupts_kept_away():
            self._process.start()
        there.close()

    def _send(self, message: Make | Stop) -> None:
        try:
            with self._sending:
                self._pipe.send(message)
        except OSError as error:
            raise self._gone() from error

    def _receive(self) -> Any:
        try:
            return self._pipe.recv()
        except (EOFError, OSError) as error:
            raise self._gone() from error

    def _gone(self) -> GoneError:
        how = ""
        if self._process is not None:
            self._process.join(END_SECONDS)
            how = _how(self._process.exitcode)
        return GoneError(f"the process that makes images has ended{how}")


def _how(status: int | None) -> str:
    if status is None or status == 0:
        return ""
    if status > 0:
        return f" with status {status}"
    by = signal.Signals(-status).name
    return f" by {by}" + (", as it does where memory runs out" if by == "SIGKILL" else "")


@contextlib.contextmanager
def _interrupts_kept_away() -> Iterator[None]:
    """Keep Ctrl-C, which goes to all processes of a terminal, from one that is started here."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT])
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _run(
    pipe: Connection,
    workdir: str | None,
    encoder_weights: str | None,
    vocabulary: str | None,
    modules: Sequence[str],
    warn: Callable[..., str],
) -> None:
    """All that the process does.

    Args:
      pipe: its end of the pipe.
      workdir, encoder_weights, vocabulary, modules: see Sampler.
      warn: form of a warning, see warnings.formatwarning.
    """
    os.nice(BEHIND)  # of all its threads, which come later
    warnings.formatwarning = warn
    from imagen_jax.page.sampling import Told, load, serve_jobs

    told = Told(pipe, when_alone=lambda: os._exit(0))
    cascade = load(pipe, workdir, encoder_weights, vocabulary, modules)
    if cascade is not None:
        serve_jobs(pipe, cascade, told)
