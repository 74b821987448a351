"""Messages between the page and the process that samples, through a pipe.

The page sends Make and Stop. The process sends Ready or Refused, once; then, for each Make, Stepped
and Made as they come, and last Ended.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, NamedTuple

if TYPE_CHECKING:
    import numpy as np

    from imagen_jax.cascade import Cascade, Request


class Make(NamedTuple):
    """The images of a request are to be made.

    Attributes:
      number: number of the job; grows from job to job.
      request: the request, of Ready.cascade.
    """

    number: int
    request: Request


class Stop(NamedTuple):
    """The job of a number is to end after the step that is being made."""

    number: int


class Ready(NamedTuple):
    """The process has loaded its cascade.

    Attributes:
      cascade: the cascade without its weights.
    """

    cascade: Cascade


class Refused(NamedTuple):
    """The process could not load its cascade, and ends.

    Attributes:
      error: why.
    """

    error: Exception


class Stepped(NamedTuple):
    """Estimates of images at one step.

    Attributes:
      stage: stage that is at work.
      step, steps: step of the stage, from 1, and number of steps.
      urls: number of the image -> the estimate as the browser shows it, as an address.
    """

    stage: str
    step: int
    steps: int
    urls: dict[int, str]


class Made(NamedTuple):
    """Images that a stage has finished.

    Attributes:
      stage: name of the stage.
      is_last: True for the last stage, whose images are the result.
      images: number of the image -> [h, w, 3] uint8.
      urls: the same as the browser shows them, as addresses.
      thumbs: the same, small.
      black: number of the image -> why the safety checker made it black, of those that are.
    """

    stage: str
    is_last: bool
    images: dict[int, np.ndarray]
    urls: dict[int, str]
    thumbs: dict[int, str]
    black: dict[int, str]


class Ended(NamedTuple):
    """A job is over.

    Attributes:
      state: how.
      error: why it failed.
    """

    state: Literal["done", "stopped", "failed"]
    error: str = ""


FromSampler = Stepped | Made | Ended
"""Message about a job."""
