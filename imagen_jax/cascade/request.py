"""From what is asked of a cascade to what each of its stages does."""

from __future__ import annotations

import dataclasses
import math
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from imagen_jax.cascade.images import (
    check_aspect,
    check_images,
    check_masks,
    resize,
    resize_mask,
)
from imagen_jax.errors import UserError
from imagen_jax.sampling import Edit
from imagen_jax.stage import SampleConfig, Stage


@dataclasses.dataclass(frozen=True)
class StageRun:
    """What one stage does for a request.

    Attributes:
      settings: how it is sampled.
      size: height and width of its images.
      low_res: [1 or n, h, w, 3] uint8 that it starts from; None for a base stage, and where it
        starts from what the stage before makes.
      image: [1 or n, height, width, 3] uint8 that it edits, or None.
      change: [1 or n, height, width] bool, where it is painted anew; None for everywhere.
      edit: how; None where there is no image.
    """

    stage: Stage
    settings: SampleConfig
    size: tuple[int, int]
    low_res: np.ndarray | None = None
    image: np.ndarray | None = None
    change: np.ndarray | None = None
    edit: Edit | None = None


def choose_stages(stages: Sequence[Stage], names: Sequence[str] | None) -> list[Stage]:
    """Stages by their names, checked to follow one another."""
    there = [stage.name for stage in stages]
    names = there if names is None else list(names)
    if not names:
        raise UserError(f"no stage was chosen; choices: {', '.join(there)}")
    for name in names:
        if name not in there:
            raise UserError(f"unknown stage {name!r}; choices: {', '.join(there)}")
    chosen = [stages[there.index(name)] for name in names]
    for before, stage in zip(chosen, chosen[1:], strict=False):
        if stage.text != before.text:
            raise UserError(
                f"the stages read different text: {stage.name!r} {stage.text}, {before.name!r} "
                f"{before.text}"
            )
        if stage.low_res != before.resolution:
            raise UserError(
                f"stage {stage.name!r} starts from {stage.low_res} pixels, but what comes before "
                f"it, {before.name!r}, makes {before.resolution}"
            )
    return chosen


def check_seeds(seeds: Sequence[int], count: int) -> list[int]:
    """The seeds as integers; UserError unless there are `count`, in [0, 2**32)."""
    if len(seeds) != count:
        raise UserError(f"{len(seeds)} seeds for {count} prompts; need as many")
    for seed in seeds:
        whole = isinstance(seed, int | np.integer) and not isinstance(seed, bool)
        if not whole or not 0 <= seed < 2**32:
            raise UserError(f"seeds must be whole numbers in [0, 2**32), got {seed!r}")
    return [int(seed) for seed in seeds]


def stage_settings(stages: Sequence[Stage], **overrides: Any) -> dict[str, SampleConfig]:
    """Settings of every stage: its defaults, replaced by what is not None.

    Args:
      **overrides: fields of SampleConfig; a value holds for all stages, a mapping from stage
        names to values for those stages.

    Raises:
      UserError: an unknown field or stage, or a value of another type or out of range.

    Warns:
      UserWarning: an aug_level that a stage was not trained with, or a time grid that the sampler
        is not made for.
    """
    fields = {field.name: type(getattr(stages[0].sample, field.name))
              for field in dataclasses.fields(SampleConfig)}  # fmt: skip
    result = {stage.name: stage.sample for stage in stages}
    for field, value in overrides.items():
        if field not in fields:
            raise UserError(f"unknown setting {field!r}; choices: {', '.join(fields)}")
        for name, setting in per_stage(field, value, list(result)).items():
            if setting is None:
                continue
            setting = setting.item() if isinstance(setting, np.generic) else setting
            number = isinstance(setting, int | float) and not isinstance(setting, bool)
            if fields[field] is float and number:
                setting = float(setting)
            if type(setting) is not fields[field]:
                raise UserError(
                    f"{field} must be of type {fields[field].__name__}, got {setting!r}"
                )
            result[name] = dataclasses.replace(result[name], **{field: setting})
    for stage in stages:
        settings = result[stage.name]
        if settings.sampler == "heun" and settings.time_grid != "karras":
            warnings.warn(
                f"heun on the time grid {settings.time_grid} of {stage.name} may make nothing but "
                "noise: its first step is too long for it; use the time grid karras",
                stacklevel=2,
            )
        level, most = settings.aug_level, stage.train.max_aug_level
        if stage.low_res is not None and level > most:
            warnings.warn(
                f"aug_level of {stage.name} is {level:g}, more noise than it saw in training "
                f"({most:g} at most)",
                stacklevel=2,
            )
    return result


def per_stage(what: str, value: Any, names: Sequence[str]) -> Mapping[str, Any]:
    """A value for every stage, or a mapping from names of stages to theirs.

    Raises:
      UserError: a name that no stage has.
    """
    if not isinstance(value, Mapping):
        return dict.fromkeys(names, value)
    for name in value:
        if name not in names:
            raise UserError(f"{what}: unknown stage {name!r}; choices: {', '.join(names)}")
    return value


def size_step(stages: Sequence[Stage]) -> int:
    """Height and width of the last stage's images must be multiples of this."""
    last = stages[-1].resolution
    # What a stage makes is as large as the last one's images times resolution / last.
    wanted = [(stage.resolution, stage.network.size_multiple) for stage in stages]
    wanted += [(stage.low_res, 1) for stage in stages if stage.low_res is not None]
    step = 1
    for resolution, multiple in wanted:
        common = math.gcd(last, resolution)
        times = multiple // math.gcd(multiple, resolution // common)
        step = math.lcm(step, last // common * times)
    return step


def check_size(stages: Sequence[Stage], size: int | tuple[int, int]) -> tuple[int, int]:
    """Height and width of the last stage's images.

    Raises:
      UserError: a size that the stages cannot make, or none; says the nearest that they can.
    """
    sides = tuple(size) if isinstance(size, Sequence) else (size, size)
    whole = [isinstance(side, int | np.integer) and not isinstance(side, bool) for side in sides]
    if len(sides) != 2 or not all(whole):
        raise UserError(f"size must be a whole number, or height and width; got {size!r}")
    height, width = (int(side) for side in sides)
    step = size_step(stages)
    if min(height, width) < 1 or height % step or width % step:
        near = [max(step, round(side / step) * step) for side in (height, width)]
        made = " -> ".join(str(stage.resolution) for stage in stages)
        raise UserError(
            f"this cascade ({made} pixels) cannot make images of {height} x {width}: height and "
            f"width must be multiples of {step}; the nearest is {near[0]} x {near[1]}"
        )
    return height, width


def plan_stages(
    stages: Sequence[Stage],
    settings: Mapping[str, SampleConfig],
    count: int,
    *,
    size: int | tuple[int, int] | None = None,
    image: np.ndarray | None = None,
    mask: np.ndarray | None = None,
    strength: float | Mapping[str, float] | None = None,
    resamples: int = 1,
    jump: int = 1,
    start_stage: str | None = None,
) -> list[StageRun]:
    """What each stage does, from the first that runs to the last.

    Args: as for Cascade.sample.
      count: of the images that are made.

    Raises:
      UserError: arguments that do not fit one another or the stages; says which.
    """
    names = [stage.name for stage in stages]
    if image is None:
        for name, value in (("mask", mask), ("strength", strength)):
            if value is not None:
                raise UserError(f"{name} was given without an image to edit")
    if mask is None and (resamples, jump) != (1, 1):
        raise UserError("resamples and jump are of inpainting; they need a mask")
    enlarges = image is not None and mask is None and strength is None
    first = _first_stage(stages, start_stage, image is not None, enlarges)
    run = stages[first:]
    images = None if image is None else check_images(image, count)
    if images is not None and enlarges:
        factor = run[-1].resolution // (run[0].low_res or 1)
        whole = images.shape[1] * factor, images.shape[2] * factor
        height, width = check_size(run, whole if size is None else size)
    else:
        height, width = check_size(run, run[-1].resolution if size is None else size)

    if images is not None:
        check_aspect(images.shape[1:3], (height, width))

    def of(resolution: int) -> tuple[int, int]:
        last = run[-1].resolution
        return height * resolution // last, width * resolution // last

    if enlarges:
        assert images is not None
        assert run[0].low_res is not None
        small = resize(images, of(run[0].low_res))
        return [
            StageRun(stage, settings[stage.name], of(stage.resolution),
                     small if stage is run[0] else None)
            for stage in run
        ]  # fmt: skip
    if images is None:
        return [StageRun(stage, settings[stage.name], of(stage.resolution)) for stage in run]

    masks = None if mask is None else check_masks(mask, images)
    if masks is not None and len(masks) not in (1, count):
        raise UserError(f"{len(masks)} masks for {count} images; give one for all, or one each")
    strengths = {run[0].name: strength} if not isinstance(strength, Mapping) else strength
    per_stage("strength", strengths, names)
    runs = []
    for stage in run:
        of_stage = _number("strength", strengths.get(stage.name))
        low_res: np.ndarray | None = None
        if stage is run[0] and stage.low_res is not None:
            low_res = resize(images, of(stage.low_res))
        here = of(stage.resolution)
        if of_stage is None and masks is None:
            runs.append(StageRun(stage, settings[stage.name], here, low_res))
            continue
        runs.append(
            StageRun(
                stage,
                settings[stage.name],
                here,
                low_res,
                resize(images, here),
                None if masks is None else resize_mask(masks, here),
                Edit(1.0 if of_stage is None else of_stage, resamples, jump),
            )
        )
    return runs


def _number(what: str, value: Any) -> float | None:
    if value is not None and (isinstance(value, bool) or not isinstance(value, int | float)):
        raise UserError(f"{what} must be a number, got {value!r}")
    return value


def _first_stage(
    stages: Sequence[Stage], start_stage: str | None, given: bool, enlarges: bool
) -> int:
    names = [stage.name for stage in stages]
    if start_stage is not None and start_stage not in names:
        raise UserError(f"unknown start_stage {start_stage!r}; choices: {', '.join(names)}")
    if start_stage is not None:
        first = names.index(start_stage)
    else:
        # The first that can: to enlarge, it must start from an image.
        able = [i for i, stage in enumerate(stages) if stage.low_res is not None or not enlarges]
        first = able[0] if able else 0
    if enlarges and stages[first].low_res is None:
        raise UserError(
            f"an image alone is enlarged, which stage {names[first]!r} cannot, as it starts from "
            "noise; give strength or mask to edit the image instead"
        )
    if not given and stages[first].low_res is not None:
        raise UserError(
            f"stage {names[first]!r} starts from an image of {stages[first].low_res} pixels; give "
            "it as image"
        )
    return first
