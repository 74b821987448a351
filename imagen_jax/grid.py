"""A labelled grid of images."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw

from imagen_jax.errors import UserError
from imagen_jax.lettering import Lettering

_PAPER = (255, 255, 255)
_TEXT = (40, 44, 52)
_FRAME = (214, 217, 222)
_MARGIN = 12
_FONT_SIZE = 13


def labelled_grid(
    images: np.ndarray, labels: Sequence[str], columns: int, scale: int = 2
) -> Image.Image:
    """Draw images in rows, each above its label.

    Args:
      images: uint8 [n, h, w, 3].
      labels: n texts, wrapped to the width of an image; empty for none. Characters that no font
        here has are escaped, with a warning.
      columns: images in a row.
      scale: whole factor by which images are enlarged, pixels staying square.

    Returns:
      RGB image on white paper; rows are as high as their longest label needs.

    Raises:
      UserError: no images, not as many labels as images, or columns or scale below 1.
    """
    if images.ndim != 4 or images.shape[-1] != 3 or images.dtype != np.uint8:
        raise UserError(
            f"images must be uint8 [n, h, w, 3]; got {images.dtype} {list(images.shape)}"
        )
    count, height, width, _ = images.shape
    if count == 0 or count != len(labels):
        raise UserError(f"{count} images with {len(labels)} labels; need as many, at least one")
    if columns < 1 or scale < 1:
        raise UserError(f"columns={columns} and scale={scale} must be at least 1")
    lettering = Lettering(labels, _FONT_SIZE)
    columns = min(columns, count)
    width, height = width * scale, height * scale
    wrapped = [lettering.wrap(lettering.readable(label), width) for label in labels]
    line = lettering.line_height
    rows = range(0, count, columns)
    text_heights = [line * max(len(w) for w in wrapped[i : i + columns]) for i in rows]
    sheet = Image.new(
        "RGB",
        (
            _MARGIN + columns * (width + _MARGIN),
            _MARGIN + sum(height + 6 + text + _MARGIN for text in text_heights),
        ),
        _PAPER,
    )
    draw = ImageDraw.Draw(sheet)
    top = _MARGIN
    for first, text_height in zip(rows, text_heights, strict=True):
        for index in range(first, min(first + columns, count)):
            left = _MARGIN + (index - first) * (width + _MARGIN)
            image = Image.fromarray(images[index])
            if scale > 1:
                image = image.resize((width, height), Image.Resampling.NEAREST)
            draw.rectangle((left - 1, top - 1, left + width, top + height), outline=_FRAME)
            sheet.paste(image, (left, top))
            for number, text in enumerate(wrapped[index]):
                at = (left, top + height + 5 + number * line)
                lettering.draw(sheet, at, text, _TEXT)
        top += height + 6 + text_height + _MARGIN
    return sheet
