"""Sweeps: the same prompts and noise under other settings."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, Unpack

import numpy as np
from PIL import Image

from imagen_jax.cascade.prompts import Prompt
from imagen_jax.cascade.stages import SETTINGS, PerStage, Settings
from imagen_jax.errors import UserError
from imagen_jax.grid import labelled_grid
from imagen_jax.typing import TextEmbedding

if TYPE_CHECKING:
    from imagen_jax.cascade.cascade import Cascade
    from imagen_jax.cascade.samples import Samples

FIELDS = (*SETTINGS, "strength", "seed")


@dataclasses.dataclass(frozen=True)
class Axis:
    """One setting and the values that it takes.

    Attributes:
      field: one of FIELDS.
      values: at least one, none of them twice.
      stage: stage that it is a setting of; None for all. A seed belongs to none.
    """

    field: str
    values: Sequence[Any]
    stage: str | None = None

    def __post_init__(self) -> None:
        if self.field not in FIELDS:
            raise UserError(f"cannot sweep over {self.field!r}; choices: {', '.join(FIELDS)}")
        if not self.values:
            raise UserError(f"a sweep over {self.field} needs values, got none")
        if len(set(map(str, self.values))) < len(self.values):
            raise UserError(f"{self.field} has a value twice: {list(self.values)}")
        if self.field == "seed" and self.stage is not None:
            raise UserError("a seed is of all stages, not of one")

    @property
    def name(self) -> str:
        """The field, after the stage and a point where it is of one."""
        return self.field if self.stage is None else f"{self.stage}.{self.field}"


class Combination(NamedTuple):
    """One value of each axis.

    Attributes:
      values: name of an axis -> its value.
      settings: arguments of Cascade.sample that they stand for.
    """

    values: dict[str, Any]
    settings: dict[str, Any]


def label_of(values: Mapping[str, Any], equals: str = " ", comma: str = ", ") -> str:
    """Return the values of a combination as text, such as "guidance 2, steps 16"."""
    return comma.join(
        f"{name}{equals}{value:g}" if isinstance(value, float) else f"{name}{equals}{value}"
        for name, value in values.items()
    )


def combinations(axes: Sequence[Axis]) -> list[Combination]:
    """Return every choice of one value for each axis, the last axis changing fastest.

    Raises:
      UserError: no axis, or two over the same setting.
    """
    if not axes:
        raise UserError("nothing to sweep: give several values of a setting")
    for a, b in itertools.combinations(axes, 2):
        if a.field == b.field and (a.stage == b.stage or None in (a.stage, b.stage)):
            raise UserError(f"two axes of the sweep are over {a.field!r}")
    found = []
    for values in itertools.product(*(axis.values for axis in axes)):
        settings: dict[str, Any] = {}
        for axis, value in zip(axes, values, strict=True):
            if axis.stage is None:
                settings[axis.field] = value
            else:
                settings.setdefault(axis.field, {})[axis.stage] = value
        named = zip((axis.name for axis in axes), values, strict=True)
        found.append(Combination(dict(named), settings))
    return found


@dataclasses.dataclass(frozen=True)
class Sweep:
    """The images of a sweep.

    Attributes:
      samples: one for each combination, the last axis changing fastest; each of one image.
      labels: n labels.
      columns: values of the last axis.
    """

    samples: list[Samples]
    labels: list[str]
    columns: int

    @property
    def images(self) -> np.ndarray:
        """[n, h, w, 3] uint8."""
        return np.concatenate([samples.images for samples in self.samples])

    def grid(self) -> Image.Image:
        """Return all of them, a row for each value of the first axis of two."""
        images = self.images
        scale = max(1, 128 // images.shape[1])
        return labelled_grid(images, self.labels, columns=self.columns, scale=scale)


def sweep(
    cascade: Cascade,
    prompt: Prompt,
    axes: Sequence[Axis],
    *,
    seed: int | None = None,
    negative_prompts: str | None = None,
    text: TextEmbedding | None = None,
    size: int | tuple[int, int] | None = None,
    image: Any = None,
    mask: Any = None,
    strength: PerStage[float] = None,
    resamples: int = 1,
    jump: int = 1,
    start_stage: str | None = None,
    show_progress: bool = True,
    **settings: Unpack[Settings],
) -> Sweep:
    """Return images of a prompt for all combinations of the values of one or two settings.

    Guidance, steps, aug_level and strength are data to the compiled programs: sweeping over them
    compiles nothing again.

    Args:
      cascade: cascade that makes them.
      prompt: text, or a Blend.
      axes: one for a row, or two: rows, then columns.
      seed: seed of all images; None is 0.
      negative_prompts, text, size, image, mask, strength, resamples, jump, start_stage: arguments
        of Cascade.request that are the same for all.
      show_progress: draw a progress bar for each stage of each image.
      **settings: fields of SampleConfig that are the same for all.

    Raises:
      UserError: another number of axes, two over the same setting, a setting that is swept over and
        given, or what Cascade.request raises.
    """
    if len(axes) not in (1, 2):
        raise UserError(f"a sweep has 1 or 2 axes, got {len(axes)}")
    options = {
        "seed": seed, "negative_prompts": negative_prompts, "text": text, "size": size,
        "image": image, "mask": mask, "strength": strength, "resamples": resamples, "jump": jump,
        "start_stage": start_stage, **settings,
    }  # fmt: skip
    given = {name: value for name, value in options.items() if value is not None}
    check_not_given(axes, given)
    samples, labels = [], []
    for combination in combinations(axes):
        request = cascade.request([prompt], **given | combination.settings)
        samples.append(cascade.run(request, show_progress=show_progress))
        labels.append(label_of(combination.values))
    return Sweep(samples, labels, len(axes[-1].values))


def check_not_given(axes: Sequence[Axis], options: Mapping[str, Any]) -> None:
    """Raise UserError if an option that is swept over was given, too."""
    for axis in axes:
        if axis.field in options:
            raise UserError(f"{axis.field} is swept over and was given, too")
