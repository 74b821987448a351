"""The image that is edited: uploaded, cropped to the shape that is made, and painted over."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
from nicegui import run, ui

from imagen_jax.cascade import crop_to
from imagen_jax.errors import UserError
from imagen_jax.page.drawing import Stroke, data_url, mask_of, preview, strokes_as_svg
from imagen_jax.page.limits import BRUSH, MAX_POINTS, clamped
from imagen_jax.page.uploads import Uploads

SHOWN = 512
"""Longest side, in pixels, of the image in the browser."""
DRAW = """(e) => {
  const brush = (window.imagenBrush ??= {points: [], pressed: false});
  const draft = document.querySelector("#OVERLAY .draft");
  if (e.mouse_event_type === "mousedown") brush.pressed = draft !== null && e.button === 0;
  const draws = brush.pressed && draft !== null && e.buttons === 1;
  if (draws) {
    brush.points.push([e.image_x, e.image_y]);
    draft.setAttribute("points", brush.points.concat(brush.points.slice(-1)).join(" "));
  } else brush.pressed = false;
  if (brush.points.length && (!draws || e.mouse_event_type === "mouseleave")) {
    emit(brush.points.splice(0));
  }
}"""
"""The browser's part of it, in JavaScript: it draws a stroke by itself, and sends it as a whole."""


class Canvas:
    """An image and the strokes over it.

    Attributes:
      image: uint8 [h, w, 3], the part of the upload that images are made of; None before.
      element: the page element that holds it.
    """

    def __init__(self, uploads: Uploads, size: tuple[int, int], on_error: Callable[[str], None]):
        """Args:
        uploads: reads what is uploaded.
        size: height and width of the images that are made; their shape is cut out.
        on_error: told what is wrong with an upload.
        """
        self.image: np.ndarray | None = None
        self._uploads = uploads
        self._name = ""
        self._own_size = (0, 0)
        self._size = size
        self._painting = False
        self._strokes: list[Stroke] = []
        self._on_error = on_error
        self._shown: np.ndarray | None = None
        with ui.column().classes("w-full gap-2") as self.element:
            self._upload = uploads.add("Choose an image, or drop it here", self._uploaded, on_error)
            self._upload.classes("w-full upload")
            self._note = ui.label().classes("note")
            self._image = ui.interactive_image(
                events=["mousedown", "mousemove", "mouseup", "mouseleave"]
            ).classes("canvas")
            with self._image:
                # No need to sanitize: the strokes are numbers that were formatted here.
                self._overlay = ui.html(sanitize=False).classes("strokes")
            handler = DRAW.replace("OVERLAY", self._overlay.html_id)
            self._image.on("mouse", lambda event: self._draw(event.args), js_handler=handler)
            with ui.row().classes("w-full items-center no-wrap gap-2") as self._tools:
                ui.label("Brush").classes("note")
                self._brush = ui.slider(
                    min=BRUSH[0], max=BRUSH[1], value=14, on_change=lambda: self._show_strokes()
                ).props("aria-label=Brush dense")
                ui.button("Undo", on_click=self._undo).props("flat dense no-caps")
                ui.button("Clear", on_click=self.clear).props("flat dense no-caps")
        self._show()

    async def mask(self) -> np.ndarray | None:
        """Return bool [h, w] of what is painted over, of the size of the cropped image.

        It is drawn in another thread: the page answers all tabs meanwhile.
        """
        if self.image is None or self._shown is None or not self._strokes:
            return None
        strokes = [Stroke([*stroke.points], stroke.width) for stroke in self._strokes]
        cropped = crop_to(self.image, self._size)
        return await run.io_bound(mask_of, strokes, self._shown.shape[:2], cropped.shape[:2])

    def load(self, image: np.ndarray, name: str, own_size: tuple[int, int] | None = None) -> None:
        """Take an image [h, w, 3] uint8 in place of the one before.

        Args:
          own_size: height and width of the image that it is a part of.
        """
        self.image, self._name = image, name
        self._own_size = image.shape[:2] if own_size is None else own_size
        self._cut()

    def set_size(self, size: tuple[int, int]) -> None:
        """Cuts the image to the shape of images of another size."""
        if size != self._size:
            self._size = size
            self._cut()

    def set_painting(self, painting: bool) -> None:
        """True while the brush is in use."""
        self._painting = painting
        self._show()

    def clear(self) -> None:
        """Takes all strokes away."""
        self._strokes = []
        self._show_strokes()

    def _undo(self) -> None:
        self._strokes = self._strokes[:-1]
        self._show_strokes()

    def _show_strokes(self) -> None:
        drawn = ""
        if self._painting and self._shown is not None:
            size = self._shown.shape[:2]
            drawn = strokes_as_svg([*self._strokes, self._stroke([])], size)
        self._overlay.content = drawn

    def _stroke(self, points: list[tuple[float, float]]) -> Stroke:
        """A stroke of the brush as it is set; as it was made, if a browser sets no width."""
        assert self._shown is not None
        brush = clamped(self._brush.value, *BRUSH)
        return Stroke(points, (brush or 14) / 100 * self._shown.shape[1])

    async def _uploaded(self, content: bytes, name: str) -> None:
        self._upload.run_method("reset")
        try:
            image, own_size = await self._uploads.read(content)
        except UserError as error:
            self._on_error(f"{name}: {error}")
            return
        self.load(image, name, own_size)

    def _cut(self) -> None:
        """Shows the part of the image that is used, without strokes."""
        if self.image is not None:
            self._shown = preview(crop_to(self.image, self._size), SHOWN)
            self._image.set_source(data_url(self._shown))
        self.clear()
        self._show()

    def _show(self) -> None:
        self._tools.visible = self._painting and self.image is not None
        self._image.visible = self._note.visible = self.image is not None
        if self.image is None:
            return
        self._show_strokes()
        height, width = self._own_size
        said = f"{self._name}, {width} x {height}"
        if height * self._size[1] != width * self._size[0]:
            said += f"; its middle is used, {self._size[1]} wide to {self._size[0]} high"
        if self._painting:
            said += ". Brush over what is to be repainted."
        self._note.text = said

    def _draw(self, points: Any) -> None:
        """Takes a stroke of a browser, which sends anything: numbers outside the image, texts."""
        if not self._painting or self._shown is None or not isinstance(points, list):
            return
        height, width = self._shown.shape[:2]
        stroke = self._stroke([])
        for point in points[: MAX_POINTS + 1]:
            if not (isinstance(point, list) and len(point) == 2):
                return
            x, y = clamped(point[0], 0, width), clamped(point[1], 0, height)
            if x is None or y is None:
                return
            if not stroke.points or math.dist(stroke.points[-1], (x, y)) >= stroke.width / 6:
                stroke.points.append((x, y))
        if sum(len(of.points) for of in (*self._strokes, stroke)) > MAX_POINTS:
            self._on_error(f"strokes have more than {MAX_POINTS:,} points; undo some, or clear all")
        elif stroke.points:
            self._strokes.append(stroke)
        self._show_strokes()
