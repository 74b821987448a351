"""Jobs: one at a time, each with its progress, its images and a way to stop it."""

from __future__ import annotations

import dataclasses
import sys
import threading
import time
import traceback
from collections import deque
from typing import Literal, NamedTuple

import numpy as np

from imagen_jax.cascade import Cascade, Finished, Request, Step
from imagen_jax.errors import UserError
from imagen_jax.page.drawing import data_url, preview
from imagen_jax.page.form import Form, request
from imagen_jax.page.limits import MAX_FRAMES, MAX_WAITING

State = Literal["waiting", "running", "done", "stopped", "failed"]


class Frame(NamedTuple):
    """An estimate of an image at one step, as the browser shows it.

    Attributes:
      stage: that made it.
      step, steps: of the stage, from 1.
      url: the image, as an address.
    """

    stage: str
    step: int
    steps: int
    url: str


@dataclasses.dataclass(eq=False)
class Job:
    """Images that were asked for.

    Attributes:
      form: what was asked for on the page.
      request: what it asks of the cascade.
      state: waiting, running, done, stopped by the user or failed.
      error: why it failed.
      frames: of each image, estimates at the steps of all stages so far, the newest last.
      stages: stage name -> number of the image -> [h, w, 3] uint8 that the stage made.
      last_stage: name of the last stage, once it is done.
      seconds: that it ran.
      version: grows with every change, for those who show it.
      stop_asked: whether the user wants it to end.
    """

    form: Form
    request: Request
    state: State = "waiting"
    error: str = ""
    frames: list[list[Frame]] = dataclasses.field(default_factory=list)
    stages: dict[str, dict[int, np.ndarray]] = dataclasses.field(default_factory=dict)
    last_stage: str | None = None
    seconds: float = 0.0
    version: int = 0
    stop_asked: bool = False

    def __post_init__(self) -> None:
        self.frames = [[] for _ in self.request.prompts]

    @property
    def prompt(self) -> str:
        """Of all its images."""
        return str(self.request.prompts[0])

    @property
    def count(self) -> int:
        """Images that were asked for."""
        return len(self.frames)

    @property
    def ended(self) -> bool:
        """Whether nothing more comes."""
        return self.state in ("done", "stopped", "failed")

    def image(self, row: int) -> np.ndarray | None:
        """An image of the last stage, [h, w, 3] uint8, if it is done."""
        return self.stages.get(self.last_stage or "", {}).get(row)


class _Stopped(Exception):
    pass


def _is_between(frame: Frame) -> bool:
    """Whether a frame is dropped when the next one of its stage is there: MAX_FRAMES are kept."""
    if frame.step == 1 or frame.steps <= MAX_FRAMES:
        return False
    return frame.step * MAX_FRAMES // frame.steps == (frame.step - 1) * MAX_FRAMES // frame.steps


class Worker:
    """Makes the images of one job at a time, in a thread of its own."""

    def __init__(self, cascade: Cascade):
        """Args:
        cascade: what makes them.
        """
        self.cascade = cascade
        self._waiting: deque[Job] = deque()
        self._changed = threading.Condition()
        threading.Thread(target=self._work, daemon=True, name="images").start()

    def submit(self, form: Form) -> Job:
        """Puts a job at the end of the queue.

        Raises:
          UserError: something is missing in the form, too much or out of range, or MAX_WAITING
            jobs wait already.
        """
        job = Job(form, request(form, self.cascade))
        with self._changed:
            if len(self._waiting) >= MAX_WAITING:
                raise UserError(f"{MAX_WAITING} jobs are waiting; try again when some are done")
            self._waiting.append(job)
            self._changed.notify_all()
        return job

    def ahead(self, job: Job) -> int:
        """How many waiting jobs come before one that waits."""
        with self._changed:
            return self._waiting.index(job) if job in self._waiting else 0

    def stop(self, job: Job) -> None:
        """Ends a job after the step that is being made; what is done is kept."""
        with self._changed:
            job.stop_asked = True
            if job in self._waiting:
                self._waiting.remove(job)
                job.state = "stopped"
                job.version += 1

    def _work(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._waiting)
                job = self._waiting.popleft()
                job.state = "running"
                job.version += 1
            started = time.monotonic()
            state: State = "failed"
            try:
                self._run(job)
                state = "done"
            except _Stopped:
                state = "stopped"
            except ValueError as error:
                job.error = str(error)
            except Exception as error:  # a defect: told, and the next job runs
                traceback.print_exc(file=sys.stderr)
                job.error = f"{type(error).__name__}: {error}"
            job.seconds = time.monotonic() - started
            job.state = state
            job.version += 1

    def _run(self, job: Job) -> None:
        def on_step(step: Step) -> None:
            for row, image in zip(step.rows, step.images(), strict=True):
                frame = Frame(step.stage, step.step, step.steps, data_url(preview(image)))
                frames = job.frames[row]
                if frames and frames[-1].stage == step.stage and _is_between(frames[-1]):
                    frames[-1] = frame  # at once: others read them
                else:
                    frames.append(frame)
            job.version += 1
            if job.stop_asked:
                raise _Stopped

        def on_finished(finished: Finished) -> None:
            made = job.stages.setdefault(finished.stage, {})
            for row, image in zip(finished.rows, finished.images, strict=True):
                made[int(row)] = image
            if finished.is_last:
                job.last_stage = finished.stage
            job.version += 1

        self.cascade.run(job.request, on_step=on_step, on_finished=on_finished, show_progress=False)
