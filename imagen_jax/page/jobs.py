"""Jobs: one at a time, each with its progress, its images and a way to stop it."""

from __future__ import annotations

import dataclasses
import sys
import threading
import time
import weakref
from collections import deque
from typing import Any, Literal, NamedTuple

import numpy as np

from imagen_jax.cascade import BLACK, Cascade, Request
from imagen_jax.errors import UserError, printable
from imagen_jax.page.form import Form, request
from imagen_jax.page.limits import MAX_FRAMES, MAX_KEPT_BYTES, MAX_WAITING, MAX_WAITING_OF_TAB
from imagen_jax.page.messages import Ended, FromSampler, Made, Make, Stepped
from imagen_jax.page.process import GoneError, Sampler

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
      black: number of the image -> why the safety checker made it black, of those that are.
      seconds: seconds that it ran.
      version: grows with every change, for those who show it.
      number: its number among the jobs that have begun, from 1; 0 before.
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
    black: dict[int, str] = dataclasses.field(default_factory=dict)
    seconds: float = 0.0
    version: int = 0
    number: int = 0

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

    def take(self, message: FromSampler) -> None:
        """Take what the process that samples tells."""
        if isinstance(message, Stepped):
            for row, url in message.urls.items():
                frame = Frame(message.stage, message.step, message.steps, url)
                frames = self.frames[row]
                if frames and frames[-1].stage == message.stage and _is_between(frames[-1]):
                    frames[-1] = frame  # at once: others read them
                else:
                    frames.append(frame)
            self.thumb = message.urls.get(0, self.thumb)
        elif isinstance(message, Made):
            self.urls.setdefault(message.stage, {}).update(message.urls)
            self.stages.setdefault(message.stage, {}).update(message.images)
            self.thumb = message.thumbs.get(0, self.thumb)
            self._hide(message)
            if message.is_last:
                self.last_stage = message.stage
        else:
            self.state, self.error = message
        self.version += 1

    def record(self, row: int) -> dict[str, Any]:
        """All that an image of the last stage was made of, as its file says it."""
        black = {BLACK: self.black[row]} if row in self.black else {}
        return self.request.record(row) | black

    def _hide(self, message: Made) -> None:
        """Forget what earlier steps and stages made of images that are black."""
        self.black |= message.black
        for row in message.black:
            last = self.frames[row][-1:]
            self.frames[row] = [frame._replace(url=message.urls[row]) for frame in last]
            for name in self.stages:
                if name != message.stage:
                    self.stages[name].pop(row, None)
                    self.urls[name].pop(row, None)

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


def _is_between(frame: Frame) -> bool:
    """True if a frame is dropped when the next one of its stage is there: MAX_FRAMES are kept."""
    if frame.step == 1 or frame.steps <= MAX_FRAMES:
        return False
    return frame.step * MAX_FRAMES // frame.steps == (frame.step - 1) * MAX_FRAMES // frame.steps


class Worker:
    """Has the images of one job made at a time."""

    def __init__(self, sampler: Sampler):
        """Args:
        sampler: makes them.
        """
        self._sampler = sampler
        self._waiting: deque[tuple[Job, Tab]] = deque()
        self._running: tuple[Job, Tab] | None = None
        self._begun = 0
        self._ended: deque[weakref.ref[Job]] = deque()  # a tab may have forgotten them
        self._changed = threading.Condition()
        threading.Thread(target=self._work, daemon=True, name="images").start()

    @property
    def cascade(self) -> Cascade:
        """The cascade that samples, without its weights."""
        return self._sampler.cascade

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
            if self._running is not None and self._running[0] is job:
                self._sampler.stop(job.number)
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
        while not self._sampler.closed:
            with self._changed:
                self._changed.wait_for(lambda: self._waiting)
                self._running = self._waiting.popleft()
                job, _ = self._running
                self._begun += 1
                job.number = self._begun
                job.state = "running"
                job.version += 1
            self._run(job)
            with self._changed:
                self._running = None
            self._ended.append(weakref.ref(job))
            del job
            self._drop_oldest()

    def _run(self, job: Job) -> None:
        """Have a job's images made; whatever happens, it has ended then."""
        started = time.monotonic()
        ended = Ended("failed")
        try:
            for message in self._sampler.run(Make(job.number, job.request)):
                if isinstance(message, Ended):
                    ended = message
                else:
                    job.take(message)
        except GoneError as error:
            ended = Ended("failed", f"{error}; it is started again: ask once more")
            self._restart(error)
        except Exception as error:  # it cannot be started
            ended = Ended("failed", _told(error))
        job.seconds = time.monotonic() - started
        job.take(ended)

    def _restart(self, gone: GoneError) -> None:
        if self._sampler.closed:
            return
        print(f"imagen: {gone}; it is started again", file=sys.stderr)
        try:
            self._sampler.restart()
        except Exception as error:  # the next job tries again
            print(f"imagen: {_told(error)}", file=sys.stderr)

    def _drop_oldest(self) -> None:
        """Drop images of the jobs that ended first, until the others have MAX_KEPT_BYTES."""
        kept = [(of, job) for of in self._ended if (job := of()) is not None]
        total = sum(job.kept_bytes for _, job in kept)
        while total > MAX_KEPT_BYTES and len(kept) > 1:
            total -= kept[0][1].kept_bytes
            kept.pop(0)[1].drop()
        self._ended = deque(of for of, _ in kept)


def _told(error: Exception) -> str:
    return printable(" ".join(str(error).split()) or type(error).__name__)
