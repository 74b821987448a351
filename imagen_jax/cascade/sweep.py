"""Sweeps: the same prompt and noise under other settings, as a labelled grid."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from imagen_jax.cascade.prompts import Prompt
from imagen_jax.errors import UserError
from imagen_jax.grid import labelled_grid
from imagen_jax.stage import SampleConfig

if TYPE_CHECKING:
    from imagen_jax.cascade.cascade import Cascade
    from imagen_jax.cascade.samples import CascadeSamples

FIELDS = (*(field.name for field in dataclasses.fields(SampleConfig)), "strength", "seed")


@dataclasses.dataclass(frozen=True)
class Axis:
    """One setting and the values that it takes.

    Attributes:
      field: one of FIELDS.
      values: at least one.
      stage: of which stage; None for all. A seed belongs to none.
    """

    field: str
    values: Sequence[Any]
    stage: str | None = None

    def __post_init__(self) -> None:
        if self.field not in FIELDS:
            raise UserError(f"cannot sweep over {self.field!r}; choices: {', '.join(FIELDS)}")
        if not self.values:
            raise UserError(f"a sweep over {self.field} needs values, got none")
        if self.field == "seed" and self.stage is not None:
            raise UserError("a seed is of all stages, not of one")

    def setting(self, value: Any) -> dict[str, Any]:
        """The argument of Cascade.sample that it stands for."""
        return {self.field: value if self.stage is None else {self.stage: value}}

    def label(self, value: Any) -> str:
        """Of an image."""
        shown = f"{value:g}" if isinstance(value, float) else str(value)
        return f"{'' if self.stage is None else self.stage + ' '}{self.field} {shown}"


@dataclasses.dataclass(frozen=True)
class Sweep:
    """The images of a sweep.

    Attributes:
      samples: one for each combination, the last axis changing fastest; each of one image.
      labels: of each.
      columns: values of the last axis.
    """

    samples: list[CascadeSamples]
    labels: list[str]
    columns: int

    @property
    def images(self) -> np.ndarray:
        """[n, h, w, 3] uint8."""
        return np.concatenate([samples.images for samples in self.samples])

    def grid(self) -> Image.Image:
        """All of them, a row for each value of the first axis of two."""
        images = self.images
        scale = max(1, 128 // images.shape[1])
        return labelled_grid(images, self.labels, columns=self.columns, scale=scale)


def sweep(cascade: Cascade, prompt: Prompt, axes: Sequence[Axis], **options: Any) -> Sweep:
    """Images of a prompt for all combinations of the values of one or two settings.

    Guidance, steps, aug_level and strength are data to the compiled programs: sweeping over them
    compiles nothing anew.

    Args:
      cascade: what makes them.
      prompt: text, or a Blend.
      axes: one for a row, or two: rows, then columns.
      **options: of Cascade.sample.

    Raises:
      UserError: another number of axes, two over the same setting, or what Cascade.sample raises.
    """
    if len(axes) not in (1, 2):
        raise UserError(f"a sweep has 1 or 2 axes, got {len(axes)}")
    if len({axis.field for axis in axes}) < len(axes):
        raise UserError(f"both axes of the sweep are over {axes[0].field!r}")
    for axis in axes:
        if axis.field in options:
            raise UserError(f"{axis.field} is swept over and was given, too")
    rows = [({}, "")] if len(axes) == 1 else [
        (axes[0].setting(value), axes[0].label(value) + ", ") for value in axes[0].values
    ]  # fmt: skip
    samples, labels = [], []
    for of_row, row_label in rows:
        for value in axes[-1].values:
            settings = of_row | axes[-1].setting(value)
            samples.append(cascade.sample([prompt], **settings, **options))
            labels.append(row_label + axes[-1].label(value))
    return Sweep(samples, labels, len(axes[-1].values))
