"""The process that samples: it loads the cascade, and makes the images of one request at a time.

Sampling keeps Python's lock and all cores busy; in a process of its own it leaves the page to
answer. process.py starts it.
"""

from __future__ import annotations

import contextlib
import dataclasses
import gc
import pickle
import queue
import sys
import threading
import traceback
from collections.abc import Callable, Hashable, Sequence
from multiprocessing.connection import Connection
from typing import Any

from imagen_jax.cascade import Cascade, Finished, Request, Step
from imagen_jax.config import import_module
from imagen_jax.errors import UserError
from imagen_jax.page.drawing import data_url, preview
from imagen_jax.page.limits import LARGE, MAX_KINDS
from imagen_jax.page.messages import Ended, Made, Make, Ready, Refused, Stepped, Stop
from imagen_jax.stage_programs import forget_programs


def load(
    pipe: Connection,
    workdir: str | None,
    encoder_weights: str | None,
    vocabulary: str | None,
    modules: Sequence[str],
) -> Cascade | None:
    """Return the cascade; None where that fails, which the page is told.

    Args:
      pipe: the pipe to the page.
      workdir, encoder_weights, vocabulary, modules: see process.Sampler.
    """
    try:
        for name in modules:
            import_module(name, f"--import is {name!r}")
        cascade = Cascade.load(workdir, encoder_weights, vocabulary)
    except Exception as error:
        error.add_note(traceback.format_exc())
        pipe.send(Refused(_that_can_be_sent(error)))
        return None
    gc.freeze()  # what was loaded stays to the end
    return cascade


def _that_can_be_sent(error: Exception) -> Exception:
    try:
        pickle.loads(pickle.dumps(error))
    except Exception:
        return RuntimeError("".join(traceback.format_exception(error)))
    return error


class Told:
    """Messages of the page, heard while images are made.

    Attributes:
      jobs: those that are to be made.
      stopped: number of the newest job that is to be stopped.
    """

    def __init__(self, pipe: Connection, when_alone: Callable[[], Any]):
        """Args:
        pipe: this end of the pipe.
        when_alone: called when the page is no more, however it ended.
        """
        self.jobs: queue.SimpleQueue[Make | None] = queue.SimpleQueue()
        self.stopped = -1
        self._pipe, self._when_alone = pipe, when_alone
        threading.Thread(target=self._listen, daemon=True, name="orders").start()

    def _listen(self) -> None:
        with contextlib.suppress(EOFError, OSError):
            while True:
                message = self._pipe.recv()
                if isinstance(message, Stop):
                    self.stopped = message.number
                else:
                    self.jobs.put(message)
        self.jobs.put(None)
        self._when_alone()


def serve_jobs(pipe: Connection, cascade: Cascade, told: Told) -> None:
    """Make the images of one job at a time, until the page is no more."""
    jobs = Jobs(pipe, cascade, told)
    with contextlib.suppress(BrokenPipeError, ConnectionResetError):
        pipe.send(Ready(cascade.without_weights()))
        while (job := told.jobs.get()) is not None:
            pipe.send(jobs.run(job))


class _StoppedError(Exception):
    pass


class Jobs:
    """Runs jobs, and tells how far they are."""

    def __init__(self, pipe: Connection, cascade: Cascade, told: Told):
        self._pipe, self._cascade, self._told = pipe, cascade, told
        self._kinds: set[Hashable] = set()  # of jobs whose programs are compiled

    def run(self, job: Make) -> Ended:
        """Make the images of a job, and return how it ended."""

        def check() -> None:
            if self._told.stopped == job.number:
                raise _StoppedError

        def on_step(step: Step) -> None:
            urls = [data_url(preview(image)) for image in step.images()]
            of_rows = dict(zip(step.rows.tolist(), urls, strict=True))
            self._pipe.send(Stepped(step.stage, step.step, step.steps, of_rows))
            check()

        try:
            check()
            self._check_weights(job.request)
            self._forget_kinds(job.request)
            self._cascade.run(
                job.request, on_step=on_step, on_finished=self._tell_made, show_progress=False
            )
        except _StoppedError:
            return Ended("stopped")
        except (BrokenPipeError, ConnectionResetError):
            raise
        except UserError as error:
            return Ended("failed", str(error))
        except Exception as error:  # a defect: told, and the next job runs
            traceback.print_exc(file=sys.stderr)
            return Ended("failed", f"{type(error).__name__}: {error}")
        return Ended("done")

    def _tell_made(self, finished: Finished) -> None:
        images = dict(zip(finished.rows.tolist(), finished.images, strict=True))
        urls = {row: data_url(preview(image, LARGE)) for row, image in images.items()}
        thumbs = {row: data_url(preview(image)) for row, image in images.items()}
        reasons = zip(finished.rows.tolist(), finished.black, strict=True)
        black = {row: reason for row, reason in reasons if reason}
        self._pipe.send(Made(finished.stage, finished.is_last, images, urls, thumbs, black))

    def _check_weights(self, request: Request) -> None:
        """Raises UserError if a job was asked of other weights, those of a process before."""
        if request.safety != self._cascade.applied:
            raise UserError("the cascade has changed since this was asked for; ask again")
        for asked in request.stages:
            if asked.fingerprint != self._cascade.fingerprints.get(asked.name):
                raise UserError("the cascade has changed since this was asked for; ask again")

    def _forget_kinds(self, request: Request) -> None:
        """Free compiled programs before those of too many kinds of jobs fill the memory."""
        kind = _kind(request)
        if kind not in self._kinds and len(self._kinds) >= MAX_KINDS:
            forget_programs()
            self._kinds.clear()
        self._kinds.add(kind)


def _kind(request: Request) -> Hashable:
    """All of a request that may decide which programs run it: what is left out is data to them."""
    stages = []
    for stage in request.stages:
        is_guided = stage.settings.guidance != 1
        settings = dataclasses.replace(
            stage.settings, steps=1, aug_level=0.0, guidance=2.0 if is_guided else 1.0
        )
        stages.append((stage.stage.name, stage.size, settings))
    return len(request), request.image is None, request.mask is None, tuple(stages)
