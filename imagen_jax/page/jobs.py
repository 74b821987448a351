"""Jobs: one at a time, each with its progress, its images and a way to stop it."""

from __future__ import annotations

import dataclasses
import sys
import threading
import time
import traceback
import weakref
from collections import deque
from collections.abc import Hashable
from typing import Literal, NamedTuple

import numpy as np

from imagen_jax.cascade import Cascade, Finished, Request, Step
from imagen_jax.errors import UserError
from imagen_jax.page.drawing import data_url, preview
from imagen_jax.page.form import Form, request
from imagen_jax.page.limits import (
    LARGE,
    MAX_FRAMES,
    MAX_KEPT_BYTES,
    MAX_KINDS,
    MAX_WAITING,
    MAX_WAITING_OF_TAB,
)
from imagen_jax.stage_programs import forget_programs

State = Literal["waiting", "running", "done", "stopped", "failed", "dropped"]


class Frame(NamedTuple):
    """An estimate of an image at one step, as the browser shows it.

    Attributes:
      stage: stage that made it.
      step, steps: step of the stage, from 1, and number of steps.
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
      form: the request as the page's form holds it.
      request: the request to the cascade.
      state: waiting, running, done, stopped by the user, failed, or dropped: its images are not
        kept any more.
      error: why it failed, or was dropped.
      frames: for each image, estimates at the steps of all stages so far, the newest last.
      stages: stage name -> number of the image -> [h, w, 3] uint8 that the stage made.
      urls: the same as the browser shows them, as addresses.
      thumb: address of the small first image, or of its newest estimate.
      last_stage: name of the last stage, once it is done.
      seconds: seconds that it ran.
      version: grows with every change, for those who show it.
      stop_asked: True if the user wants it to end.
    """

    form: Form
    request: Request
    state: State = "waiting"
    error: str = ""
    frames: list[list[Frame]] = dataclasses.field(default_factory=list)
    stages: dict[str, dict[int, np.ndarray]] = dataclasses.field(default_factory=dict)
    urls: dict[str, dict[int, str]] = dataclasses.field(default_factory=dict)
    thumb: str = ""
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
        """True when the job has ended."""
        return self.state in ("done", "stopped", "failed", "dropped")

    @property
    def kept_bytes(self) -> int:
        """Memory of its images."""
        urls = sum(len(frame.url) for row in self.frames for frame in row) + len(self.thumb)
        urls += sum(len(url) for rows in self.urls.values() for url in rows.values())
        made = sum(image.nbytes for rows in self.stages.values() for image in rows.values())
        given = (self.form.image, self.request.image, self.request.mask)
        return urls + made + sum(array.nbytes for array in given if array is not None)

    def drop(self) -> None:
        """Forget its images."""
        self.state = "dropped"
        self.error = "its images were dropped to make room for newer ones"
        self.last_stage = None
        self.frames, self.stages, self.urls, self.thumb = [[] for _ in self.frames], {}, {}, ""
        self.form = dataclasses.replace(self.form, image=None, mask=None)
        self.request = dataclasses.replace(self.request, image=None, mask=None)
        self.version += 1

    def image(self, row: int) -> np.ndarray | None:
        """An image of the last stage, [h, w, 3] uint8, if it is done."""
        return self.stages.get(self.last_stage or "", {}).get(row)

    def url(self, row: int) -> str | None:
        """Address of an image of the last stage, if it is done."""
        return self.urls.get(self.last_stage or "", {}).get(row)


@dataclasses.dataclass(eq=False)
class Tab:
    """State of a browser tab that survives a reload.

    Attributes:
      jobs: newest first.
      pages: number of its open pages; 0 after it was closed.
    """

    jobs: list[Job] = dataclasses.field(default_factory=list)
    pages: int = 0


class _Stopped(Exception):
    pass


def _is_between(frame: Frame) -> bool:
    """True if a frame is dropped when the next one of its stage is there: MAX_FRAMES are kept."""
    if frame.step == 1 or frame.steps <= MAX_FRAMES:
        return False
    return frame.step * MAX_FRAMES // frame.steps == (frame.step - 1) * MAX_FRAMES // frame.steps


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


class Worker:
    """Makes the images of one job at a time, in a thread of its own."""

    def __init__(self, cascade: Cascade):
        """Args:
        cascade: the cascade that samples.
        """
        self.cascade = cascade
        self._waiting: deque[tuple[Job, Tab]] = deque()
        self._running: tuple[Job, Tab] | None = None
        self._kinds: set[Hashable] = set()  # of jobs whose programs are compiled
        self._ended: deque[weakref.ref[Job]] = deque()  # a tab may have forgotten them
        self._changed = threading.Condition()
        threading.Thread(target=self._work, daemon=True, name="images").start()

    def submit(self, form: Form, tab: Tab) -> Job:
        """Put a job at the end of the queue.

        Args:
          form: the request.
          tab: who asks.

        Raises:
          UserError: something is missing in the form, too much or out of range, or enough jobs
            wait already.
        """
        job = Job(form, request(form, self.cascade))
        with self._changed:
            if sum(of is tab for _, of in self._waiting) >= MAX_WAITING_OF_TAB:
                raise UserError(
                    f"{MAX_WAITING_OF_TAB} of your jobs are waiting; try again when one has begun, "
                    "or stop one"
                )
            if len(self._waiting) >= MAX_WAITING:
                raise UserError(f"{MAX_WAITING} jobs are waiting; try again when some are done")
            self._waiting.append((job, tab))
            self._changed.notify_all()
        return job

    def ahead(self, job: Job) -> int:
        """Number of waiting jobs ahead of this one."""
        with self._changed:
            jobs = [waiting for waiting, _ in self._waiting]
            return jobs.index(job) if job in jobs else 0

    def stop(self, job: Job) -> None:
        """End a job after the step that is being made; what is done is kept."""
        with self._changed:
            job.stop_asked = True
            if any(waiting is job for waiting, _ in self._waiting):
                self._waiting = deque(pair for pair in self._waiting if pair[0] is not job)
                job.state = "stopped"
                job.version += 1

    def leave(self, tab: Tab) -> None:
        """Stop all jobs of a tab if it was closed: nobody else could."""
        if tab.pages:
            return
        with self._changed:
            pairs = [*self._waiting, *([self._running] if self._running else [])]
        for job, of in pairs:
            if of is tab:
                self.stop(job)

    def _work(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._waiting)
                self._running = self._waiting.popleft()
                job, _ = self._running
                job.state = "running"
                job.version += 1
            started = time.monotonic()
            state: State = "failed"
            try:
                self._run(job)
                state = "done"
            except _Stopped:
                state = "stopped"
            except UserError as error:
                job.error = str(error)
            except Exception as error:  # a defect: told, and the next job runs
                traceback.print_exc(file=sys.stderr)
                job.error = f"{type(error).__name__}: {error}"
            job.seconds = time.monotonic() - started
            job.state = state
            job.version += 1
            with self._changed:
                self._running = None
            self._ended.append(weakref.ref(job))
            del job
            self._drop_oldest()

    def _drop_oldest(self) -> None:
        """Drop images of the jobs that ended first, until the others have MAX_KEPT_BYTES."""
        kept = [(of, job) for of in self._ended if (job := of()) is not None]
        total = sum(job.kept_bytes for _, job in kept)
        while total > MAX_KEPT_BYTES and len(kept) > 1:
            total -= kept[0][1].kept_bytes
            kept.pop(0)[1].drop()
        self._ended = deque(of for of, _ in kept)

    def _run(self, job: Job) -> None:
        def on_step(step: Step) -> None:
            for row, image in zip(step.rows, step.images(), strict=True):
                frame = Frame(step.stage, step.step, step.steps, data_url(preview(image)))
                frames = job.frames[row]
                if frames and frames[-1].stage == step.stage and _is_between(frames[-1]):
                    frames[-1] = frame  # at once: others read them
                else:
                    frames.append(frame)
                if row == 0:
                    job.thumb = frame.url
            job.version += 1
            if job.stop_asked:
                raise _Stopped

        def on_finished(finished: Finished) -> None:
            made = job.stages.setdefault(finished.stage, {})
            urls = job.urls.setdefault(finished.stage, {})
            for row, image in zip(finished.rows, finished.images, strict=True):
                urls[int(row)] = data_url(preview(image, LARGE))
                made[int(row)] = image
                if row == 0:
                    job.thumb = data_url(preview(image))
            if finished.is_last:
                job.last_stage = finished.stage
            job.version += 1

        kind = _kind(job.request)
        if kind not in self._kinds and len(self._kinds) >= MAX_KINDS:
            forget_programs()
            self._kinds.clear()
        self._kinds.add(kind)
        self.cascade.run(job.request, on_step=on_step, on_finished=on_finished, show_progress=False)
