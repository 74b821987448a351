"""The stages of a cascade together: which of them run, with which settings, at which sizes."""

from __future__ import annotations

import dataclasses
import math
import warnings
from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias, TypedDict, TypeVar

import numpy as np

from imagen_jax.config import build
from imagen_jax.diffusion.samplers import Heun, format_sampler, parse_sampler
from imagen_jax.diffusion.transitions import Sampler
from imagen_jax.errors import UserError
from imagen_jax.stage import Stage
from imagen_jax.stage_config import SampleConfig

SETTINGS = tuple(field.name for field in dataclasses.fields(SampleConfig))
"""Names of the sampling settings."""

T = TypeVar("T")
PerStage: TypeAlias = T | Mapping[str, T] | None
"""One value for all stages, a mapping from stage names to values, or None for the config's."""


class Settings(TypedDict, total=False):
    """Sampling settings that replace those of a cascade: fields of SampleConfig, see there."""

    sampler: PerStage[str | Sampler]
    steps: PerStage[int]
    time_grid: PerStage[str]
    guidance: PerStage[float]
    threshold: PerStage[str]
    percentile: PerStage[float]
    aug_level: PerStage[float]
    guidance_min_logsnr: PerStage[float]
    guidance_max_logsnr: PerStage[float]
    threshold_cap: PerStage[float]
    end_logsnr: PerStage[float]
    pad: PerStage[int]


MAX_ENLARGEMENT = 4
"""Sides of images, at most, over what the last stage was trained for. A record of a stranger, or a
misprint, would else ask for more memory than there is."""


def choose_stages(stages: Sequence[Stage], names: Sequence[str] | None) -> list[Stage]:
    """Return the stages of some names, checked to follow one another."""
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
            start = "noise" if stage.low_res is None else f"images of {stage.low_res} pixels"
            raise UserError(
                f"stage {stage.name!r} starts from {start}, but the one before it, "
                f"{before.name!r}, makes images of {before.resolution} pixels"
            )
    return chosen


def stage_settings(stages: Sequence[Stage], overrides: Settings) -> dict[str, SampleConfig]:
    """Return the settings of every stage: its defaults, replaced by what is not None.

    Args:
      overrides: a value holds for all stages, a mapping from stage names to values for those
        stages. A sampler may be its text or the sampler itself.

    Raises:
      UserError: an unknown field or stage, or a value of another type or out of range.

    Warns:
      UserWarning: an aug_level that a stage was not trained with, or a time grid that the sampler
        is not made for.
    """
    result = {stage.name: stage.sample for stage in stages}
    for field, value in overrides.items():
        if field not in SETTINGS:
            raise UserError(f"unknown setting {field!r}; choices: {', '.join(SETTINGS)}")
        for name, setting in per_stage(field, value, list(result)).items():
            if setting is None:
                continue
            if field == "sampler" and not isinstance(setting, str):
                setting = format_sampler(setting)
            setting = setting.item() if isinstance(setting, np.generic) else setting
            values = dataclasses.asdict(result[name]) | {field: setting}
            result[name] = build(SampleConfig, values, name)
    for stage in stages:
        settings = result[stage.name]
        heun = isinstance(parse_sampler(settings.sampler), Heun)
        if heun and settings.time_grid != "karras":
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
    """Return a value for every stage, or a mapping from names of stages to theirs.

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
    """Return height and width of the last stage's images.

    Raises:
      UserError: a size that the stages cannot make, or none; says the nearest that they can.
    """
    sides = tuple(size) if isinstance(size, Sequence) else (size, size)
    whole = [isinstance(side, int | np.integer) and not isinstance(side, bool) for side in sides]
    if len(sides) != 2 or not all(whole):
        raise UserError(f"size must be a whole number, or height and width; got {size!r}")
    height, width = (int(side) for side in sides)
    trained = stages[-1].resolution
    if max(height, width) > MAX_ENLARGEMENT * trained:
        raise UserError(
            f"images of {height} x {width} are too large for a cascade that was trained for "
            f"{trained} pixels: sides may be {MAX_ENLARGEMENT} times as long"
        )
    step = size_step(stages)
    if min(height, width) < 1 or height % step or width % step:
        near = [max(step, round(side / step) * step) for side in (height, width)]
        made = " -> ".join(str(stage.resolution) for stage in stages)
        raise UserError(
            f"this cascade ({made} pixels) cannot make images of {height} x {width}: height and "
            f"width must be multiples of {step}; the nearest is {near[0]} x {near[1]}"
        )
    return height, width


def first_stage(
    stages: Sequence[Stage], start_stage: str | None, given: bool, enlarges: bool
) -> int:
    """Return the index of the first stage that runs.

    Args:
      start_stage: the name of the one that was asked for; None for the first that can.
      given: True if there is an image to start from.
      enlarges: True if that image is enlarged, not edited.

    Raises:
      UserError: a stage that is not there, or that cannot start from what is given.
    """
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
            f"stage {names[first]!r} starts from an image of {stages[first].low_res} pixels, "
            "which no stage that is there makes; give it as image"
        )
    return first
