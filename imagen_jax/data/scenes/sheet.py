"""A contact sheet: what the scenes look like, with their captions."""

from __future__ import annotations

import numpy as np
from PIL import Image

from imagen_jax.data.scenes.levels import Level
from imagen_jax.data.scenes.source import scene_examples
from imagen_jax.errors import UserError
from imagen_jax.grid import labelled_grid

MAX_PIXELS = 2**28
"""Of a sheet, without its captions."""


def contact_sheet(
    level: Level | str, split: str = "train", seed: int = 0, count: int = 24, size: int = 128,
    columns: int = 6, seen_at: int | None = None, groups: int | None = None,
) -> Image.Image:  # fmt: skip
    """Draw the first scenes of a sequence above their captions.

    Args:
      level, split, seed, count, size, groups: as for `scene_examples`.
      columns: images in a row.
      seen_at: render at this size, then enlarge to `size`: what a stage of that size learns.

    Raises:
      UserError: as `scene_examples`, count or columns below 1, or too many pixels.
    """
    if count * size**2 > MAX_PIXELS:
        raise UserError(f"{count} scenes of {size} pixels are more than one image holds; ask for "
                        f"at most {MAX_PIXELS // size**2} of this size")  # fmt: skip
    examples = list(scene_examples(level, split, seed, count, seen_at or size, groups=groups))
    if not examples:
        raise UserError(f"count={count} must be at least 1")
    images = np.stack(
        [
            np.asarray(Image.fromarray(e.image).resize((size, size), Image.Resampling.BICUBIC))
            for e in examples
        ]
    )
    return labelled_grid(images, [e.caption for e in examples], columns, scale=1)
