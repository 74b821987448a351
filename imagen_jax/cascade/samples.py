"""What sampling returns: images, and everything that is needed to make them again."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from imagen_jax.cascade.prompts import Blend, Prompt
from imagen_jax.cascade.request import StageRun
from imagen_jax.sampling import Edit
from imagen_jax.stage import SampleConfig

VERSION = 1
"""Of the form of a record; a higher one is not read."""


@dataclasses.dataclass(frozen=True)
class Recipe:
    """Everything that n images are made of.

    Attributes:
      prompts: n prompts.
      negative_prompts: n texts that are guided away from; "" for none.
      seeds: n seeds; image i is a function of its row of everything here.
      settings: name of each stage that runs -> how it is sampled.
      sizes: stage name -> (height, width).
      fingerprints: stage name -> of its weights and all else that decides its images.
      dtype: of weights and activations, where it is not the config's.
      edits: stage name -> how the given image is edited; empty where there is none.
      given: n records of what else was given, by hashes: of "image", "mask" and "text".
    """

    prompts: list[Prompt]
    negative_prompts: list[str]
    seeds: list[int]
    settings: dict[str, SampleConfig]
    sizes: dict[str, tuple[int, int]]
    fingerprints: dict[str, str]
    dtype: str | None
    edits: dict[str, Edit]
    given: list[dict[str, str]]

    def record(self, index: int) -> dict[str, Any]:
        """Everything that image `index` was made of, as JSON knows it; `repeat` takes it."""
        prompt = self.prompts[index]
        return {
            "version": VERSION,
            "prompt": dataclasses.asdict(prompt) if isinstance(prompt, Blend) else prompt,
            "negative_prompt": self.negative_prompts[index],
            "seed": self.seeds[index],
            "dtype": self.dtype,
            "given": self.given[index],
            "stages": {
                name: {
                    "fingerprint": self.fingerprints[name],
                    "size": list(self.sizes[name]),
                    "settings": dataclasses.asdict(settings),
                    "edit": dataclasses.asdict(self.edits[name]) if name in self.edits else None,
                }
                for name, settings in self.settings.items()
            },
        }


@dataclasses.dataclass(frozen=True)
class CascadeSamples(Recipe):
    """Images, and everything that is needed to make them again.

    Attributes:
      images: [n, h, w, 3] uint8 of the last stage.
      stages: stage name -> [n, h, w, 3] uint8 images of that stage.
      intermediates: stage name -> [steps, n, h, w, 3] uint8 estimates of the clean image at every
        step; empty unless asked for.
    """

    images: np.ndarray
    stages: dict[str, np.ndarray]
    intermediates: dict[str, np.ndarray]


class Finished(NamedTuple):
    """Images of one stage that are done.

    Attributes:
      stage: name of the stage.
      rows: [k] which of all n images they are.
      images: [k, h, w, 3] uint8.
      recipe: of all n images.
      is_last: whether the stage is the last one, and they are the result.
    """

    stage: str
    rows: np.ndarray
    images: np.ndarray
    recipe: Recipe
    is_last: bool


def hash_of(array: np.ndarray) -> str:
    """16 hexadecimal digits of an array's type, shape and values."""
    array = np.ascontiguousarray(array)
    said = f"{array.dtype.str} {array.shape};".encode()
    return hashlib.sha256(said + array.tobytes()).hexdigest()[:16]


def make_recipe(
    runs: Sequence[StageRun],
    prompts: list[Prompt],
    negative_prompts: list[str],
    seeds: list[int],
    fingerprints: Mapping[str, str],
    dtype: str | None,
    *,
    image: np.ndarray | None,
    mask: np.ndarray | None,
    text: Any,
) -> Recipe:
    """The recipe of n images that stages are to make.

    Args:
      runs: what each stage does.
      image, mask, text: what was given: rows of 3, 2 and 2 axes, one for all or n.
      prompts, negative_prompts, seeds, fingerprints, dtype: as in Recipe.
    """
    given = {}
    for name, array, axes in (("image", image, 3), ("mask", mask, 2), ("text", text, 2)):
        if array is not None:
            rows = np.reshape(array, (-1, *np.shape(array)[-axes:]))
            hashes = [hash_of(row) for row in rows]
            given[name] = hashes * len(prompts) if len(rows) == 1 else hashes
    return Recipe(
        prompts=prompts,
        negative_prompts=negative_prompts,
        seeds=seeds,
        settings={run.stage.name: run.settings for run in runs},
        sizes={run.stage.name: run.size for run in runs},
        fingerprints={run.stage.name: fingerprints[run.stage.name] for run in runs},
        dtype=dtype,
        edits={run.stage.name: run.edit for run in runs if run.edit is not None},
        given=[{name: of[i] for name, of in given.items()} for i in range(len(prompts))],
    )
