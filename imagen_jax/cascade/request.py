"""A request to a cascade, checked once: a Request, with a StageRequest for each stage."""

from __future__ import annotations

import dataclasses
import difflib
import functools
import hashlib
import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ParamSpec, TypeVar

import numpy as np

from imagen_jax.cascade.images import check_aspect, check_images, check_masks
from imagen_jax.cascade.prompts import (
    Blend,
    Prompt,
    check_negative_prompts,
    check_prompts,
    check_text,
)
from imagen_jax.cascade.stages import (
    PerStage,
    Settings,
    check_size,
    first_stage,
    per_stage,
    stage_settings,
)
from imagen_jax.errors import UserError
from imagen_jax.sampling import Edit
from imagen_jax.stage import Stage
from imagen_jax.stage_config import SampleConfig
from imagen_jax.typing import TextEmbedding

VERSION = 1
"""Version of the form of a record; a higher one is not read."""

SEEDS = 2**32
"""Seeds of noise are below it."""

P = ParamSpec("P")
R = TypeVar("R")


@dataclasses.dataclass(frozen=True)
class StageRequest:
    """A request to one stage.

    Attributes:
      stage: the stage.
      settings: sampling settings.
      size: height and width of its images.
      edit: edit of the given image; None without an edit.
      fingerprint: hash of its weights and all else that decides its images.
    """

    stage: Stage
    settings: SampleConfig
    size: tuple[int, int]
    edit: Edit | None
    fingerprint: str

    @property
    def name(self) -> str:
        """Name of the stage."""
        return self.stage.name


@dataclasses.dataclass(frozen=True, eq=False)
class Request:
    """A request to a cascade: n images, each a function of its own row of everything here.

    Cascade.request makes it, and checks it.

    Attributes:
      prompts: n prompts.
      negative_prompts: n texts that are guided away from; "" for none.
      seeds: n seeds.
      stages: request of each stage that runs, lowest resolution first.
      dtype: dtype of weights and activations, where it is not the config's.
      image: [1 or n, h, w, 3] uint8 that is edited or enlarged; or None.
      mask: [1 or n, h, w] bool, True where the image is repainted; or None.
      text: token states of the prompts, where they were given; or None.
      safety: hashes of the safety checker and the watermark that the images get, None for one that
        they do not; None altogether for a cascade without both.
    """

    prompts: list[Prompt]
    negative_prompts: list[str]
    seeds: list[int]
    stages: tuple[StageRequest, ...]
    dtype: str | None = None
    image: np.ndarray | None = None
    mask: np.ndarray | None = None
    text: TextEmbedding | None = None
    safety: Mapping[str, str | None] | None = None

    def __len__(self) -> int:
        return len(self.prompts)

    def rows(self, start: int, stop: int) -> Request:
        """Return the request for the images start to stop alone."""
        at = slice(start, stop)

        def of(x: np.ndarray | None) -> np.ndarray | None:
            return x if x is None or len(x) == 1 else x[at]

        return dataclasses.replace(
            self,
            prompts=self.prompts[at],
            negative_prompts=self.negative_prompts[at],
            seeds=self.seeds[at],
            image=of(self.image),
            mask=of(self.mask),
            text=None if self.text is None else TextEmbedding(*(x[at] for x in self.text)),
        )

    def record(self, index: int) -> dict[str, Any]:
        """Return everything that an image is made of, as JSON knows it; `repeat` takes it."""
        prompt = self.prompts[index]
        states = None if self.text is None else np.asarray(self.text.states)
        given = {"image": self.image, "mask": self.mask, "text": states}
        record = {
            "version": VERSION,
            "prompt": dataclasses.asdict(prompt) if isinstance(prompt, Blend) else prompt,
            "negative_prompt": self.negative_prompts[index],
            "seed": self.seeds[index],
            "dtype": self.dtype,
            "given": {
                name: hash_of(x[index if len(x) > 1 else 0])
                for name, x in given.items()
                if x is not None
            },
            "stages": {
                asked.name: {
                    "fingerprint": asked.fingerprint,
                    "size": list(asked.size),
                    "settings": dataclasses.asdict(asked.settings),
                    "edit": None if asked.edit is None else dataclasses.asdict(asked.edit),
                }
                for asked in self.stages
            },
        }
        return record if self.safety is None else record | {"safety": dict(self.safety)}


def hash_of(array: np.ndarray) -> str:
    """Return 16 hexadecimal digits of an array's type, shape and values."""
    array = np.ascontiguousarray(array)
    said = f"{array.dtype.str} {array.shape};".encode()
    return hashlib.sha256(said + array.tobytes()).hexdigest()[:16]


def lists_choices(function: Callable[P, R]) -> Callable[P, R]:
    """Return the function, with an error for unknown keywords that lists all that it takes."""
    choices = [name for name in inspect.signature(function).parameters if name != "self"]

    @functools.wraps(function)
    def checked(*args: P.args, **kwargs: P.kwargs) -> R:
        for name in kwargs:
            if name not in choices:
                close = difflib.get_close_matches(name, choices, n=1)
                hint = f" (did you mean {close[0]!r}?)" if close else ""
                raise UserError(f"unknown argument {name!r}{hint}; choices: {', '.join(choices)}")
        return function(*args, **kwargs)

    return checked


def make_request(
    stages: Sequence[Stage],
    fingerprints: Mapping[str, str],
    dtype: str | None,
    prompts: Prompt | Sequence[Prompt],
    *,
    seed: int | Sequence[int],
    per_prompt: int,
    negative_prompts: str | Sequence[str] | None,
    text: TextEmbedding | None,
    size: int | tuple[int, int] | None,
    image: np.ndarray | None,
    mask: np.ndarray | None,
    strength: PerStage[float],
    resamples: int,
    jump: int,
    start_stage: str | None,
    settings: Settings,
) -> Request:
    """Return what is asked of stages, checked, with a row for each image.

    Args:
      stages: stages of the cascade.
      fingerprints: stage name -> see StageRequest.
      dtype: see Request.
      settings: fields of SampleConfig, see stage_settings.
      The others: as for Cascade.request.

    Raises:
      UserError: arguments out of range, or that do not fit one another or the stages.
    """
    prompts = check_prompts(prompts)
    if not 1 <= per_prompt <= SEEDS:
        raise UserError(f"per_prompt must be in [1, 2**32], got {per_prompt}")
    first_seeds: Sequence[Any] = [seed] * len(prompts)
    if isinstance(seed, Sequence | np.ndarray):
        first_seeds = list(seed)
    first_seeds = check_seeds(first_seeds, len(prompts))
    negative = check_negative_prompts(negative_prompts, len(prompts))
    if text is not None:
        text = check_text(text, len(prompts), stages[0].text)
    images = None if image is None else check_images(image, len(prompts))
    asked = plan_stages(
        stages, stage_settings(stages, settings), fingerprints, size=size, images=images,
        masked=mask is not None, strength=strength, resamples=resamples, jump=jump,
        start_stage=start_stage,
    )  # fmt: skip
    masks = None
    if mask is not None:
        assert images is not None
        masks = check_masks(mask, images, len(prompts))
    if any(negative) and all(each.settings.guidance == 1 for each in asked):
        names = ", ".join(each.name for each in asked)
        raise UserError(
            "a negative prompt changes nothing: guidance is 1 everywhere; raise it in one of "
            + names
        )

    def repeated(x: np.ndarray | None) -> np.ndarray | None:
        return x if x is None or len(x) == 1 else np.repeat(x, per_prompt, axis=0)

    which = np.repeat(np.arange(len(prompts)), per_prompt)
    return Request(
        prompts=[prompt for prompt in prompts for _ in range(per_prompt)],
        negative_prompts=[one for one in negative for _ in range(per_prompt)],
        seeds=check_seeds(
            [one + r for one in first_seeds for r in range(per_prompt)], len(prompts) * per_prompt
        ),
        stages=tuple(asked),
        dtype=dtype,
        image=repeated(images),
        mask=repeated(masks),
        text=None if text is None else TextEmbedding(*(x[which] for x in text)),
    )


def plan_stages(
    stages: Sequence[Stage],
    settings: Mapping[str, SampleConfig],
    fingerprints: Mapping[str, str],
    *,
    size: int | tuple[int, int] | None,
    images: np.ndarray | None,
    masked: bool,
    strength: PerStage[float],
    resamples: int,
    jump: int,
    start_stage: str | None,
) -> list[StageRequest]:
    """Return what is asked of each stage, from the first that runs to the last.

    Args: as for make_request.
      images: [n, h, w, 3] uint8, or None.
      masked: True if there is a mask.

    Raises:
      UserError: arguments that do not fit one another or the stages; says which.
    """
    if images is None:
        for name, value in (("mask", masked or None), ("strength", strength)):
            if value is not None:
                raise UserError(f"{name} was given without an image to edit")
    if not masked and (resamples, jump) != (1, 1):
        raise UserError("resamples and jump are of inpainting; they need a mask")
    enlarges = images is not None and not masked and strength is None
    first = first_stage(stages, start_stage, images is not None, enlarges)
    run = stages[first:]
    last = run[-1].resolution
    if images is not None and enlarges:
        factor = last // (run[0].low_res or 1)
        whole = images.shape[1] * factor, images.shape[2] * factor
        height, width = check_size(run, whole if size is None else size)
    else:
        height, width = check_size(run, last if size is None else size)
    if images is not None:
        check_aspect(images.shape[1:3], (height, width))
    strengths = strength if isinstance(strength, Mapping) else {run[0].name: strength}
    per_stage("strength", strengths, [stage.name for stage in stages])

    def edit(stage: Stage) -> Edit | None:
        of_stage = _number("strength", strengths.get(stage.name))
        if of_stage is None and not masked:
            return None
        return Edit(1.0 if of_stage is None else of_stage, resamples, jump)

    return [
        StageRequest(
            stage=stage,
            settings=settings[stage.name],
            size=(height * stage.resolution // last, width * stage.resolution // last),
            edit=edit(stage),
            fingerprint=fingerprints[stage.name],
        )
        for stage in run
    ]


def check_seeds(seeds: Sequence[int], count: int) -> list[int]:
    """Return the seeds as integers; UserError unless there are `count`, in [0, 2**32)."""
    if len(seeds) != count:
        raise UserError(f"{len(seeds)} seeds for {count} prompts; need as many")
    for seed in seeds:
        whole = isinstance(seed, int | np.integer) and not isinstance(seed, bool)
        if not whole or not 0 <= seed < SEEDS:
            raise UserError(f"seeds must be whole numbers in [0, 2**32), got {seed!r}")
    return [int(seed) for seed in seeds]


def _number(what: str, value: Any) -> float | None:
    if value is not None and (isinstance(value, bool) or not isinstance(value, int | float)):
        raise UserError(f"{what} must be a number, got {value!r}")
    return value
