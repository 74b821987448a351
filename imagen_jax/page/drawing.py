"""Images for the browser, and masks from strokes of a brush."""

from __future__ import annotations

import base64
import io
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image, ImageDraw

from imagen_jax.cascade import save_image
from imagen_jax.page.limits import PREVIEW


class Stroke(NamedTuple):
    """A line that a round brush has drawn.

    Attributes:
      points: (x, y) in pixels of the image that was drawn on.
      width: width of the brush, in the same pixels.
    """

    points: list[tuple[float, float]]
    width: float


def preview(image: np.ndarray, longest: int = PREVIEW) -> np.ndarray:
    """An image [h, w, 3] uint8 whose sides are at most `longest`, by the mean of areas."""
    factor = max(image.shape[:2]) / longest
    if factor <= 1:
        return image
    height, width = (max(1, round(side / factor)) for side in image.shape[:2])
    resized = Image.fromarray(image).resize((width, height), Image.Resampling.BOX)
    return np.asarray(resized)


def data_url(image: np.ndarray) -> str:
    """An image [h, w, 3] uint8 as the address of an <img>: without loss where it is small."""
    file = io.BytesIO()
    small = max(image.shape) <= 128
    kind = "png" if small else "webp"
    options: dict[str, Any] = {"compress_level": 1} if small else {"quality": 90, "method": 0}
    Image.fromarray(image).save(file, kind, **options)
    return f"data:image/{kind};base64," + base64.b64encode(file.getvalue()).decode()


def png_of(given: np.ndarray) -> bytes:
    """The PNG file of an image [h, w, 3] uint8, or of a mask [h, w] bool, white where it is."""
    file = io.BytesIO()
    Image.fromarray(given).save(file, "png")
    return file.getvalue()


def png_with_record(image: np.ndarray, record: dict[str, Any]) -> bytes:
    """The PNG file that `imagen sample` would have written of an image [h, w, 3] uint8."""
    with tempfile.TemporaryDirectory() as directory:
        return save_image(image, record, Path(directory) / "image.png").read_bytes()


def mask_of(
    strokes: Sequence[Stroke], drawn_on: tuple[int, int], size: tuple[int, int]
) -> np.ndarray:
    """Mask of the pixels that strokes cover.

    Args:
      strokes: in pixels of the image that was drawn on.
      drawn_on: its height and width.
      size: height and width of the mask.

    Returns:
      bool of `size`, True where a stroke went.
    """
    scale = size[1] / drawn_on[1]
    mask = Image.new("L", (size[1], size[0]))
    draw = ImageDraw.Draw(mask)
    for stroke in strokes:
        points = [(x * scale, y * scale) for x, y in stroke.points]
        radius = stroke.width * scale / 2
        for x, y in points:
            draw.ellipse((x - radius, y - radius, x + radius, y + radius), fill=1)
        if len(points) > 1:
            draw.line(points, fill=1, width=max(1, round(2 * radius)))
    return np.asarray(mask) > 0


def strokes_as_svg(strokes: Sequence[Stroke], drawn_on: tuple[int, int]) -> str:
    """Strokes as an overlay on the image that was drawn on.

    Args:
      strokes: the last one is a draft: the browser moves it with the mouse.
      drawn_on: height and width of the image.
    """
    lines = []
    for stroke in strokes:
        # A line of no length is drawn as the dot that its round ends make.
        points = stroke.points if len(stroke.points) > 1 else stroke.points * 2
        path = " ".join(f"{x:.2f},{y:.2f}" for x, y in points)
        kind = ' class="draft"' if stroke is strokes[-1] else ""
        lines.append(f'<polyline{kind} points="{path}" stroke-width="{stroke.width:.2f}"/>')
    height, width = drawn_on
    return (
        f'<svg viewBox="0 0 {width} {height}" preserveAspectRatio="none">'
        '<g fill="none" stroke="#e11d74" stroke-linecap="round" stroke-linejoin="round" '
        f'opacity="0.6">{"".join(lines)}</g></svg>'
    )
