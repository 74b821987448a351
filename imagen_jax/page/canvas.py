"""The image that is edited: uploaded, cropped to the shape that is made, and painted over."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
from nicegui import events, run, ui

from imagen_jax.cascade import crop_to
from imagen_jax.errors import UserError
from imagen_jax.page.drawing import Stroke, data_url, mask_of, preview, strokes_as_svg
from imagen_jax.page.limits import BRUSH, MAX_POINTS, clamped
from imagen_jax.page.uploads import Uploads

SHOWN = 512
"""Longest side, in pixels, of the image in the browser."""


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
        self._painting = self._pressed = False
        self._strokes: list[Stroke] = []
        self._on_error = on_error
        self._shown: np.ndarray | None = None
        with ui.column().classes("w-full gap-2") as self.element:
            self._upload = uploads.add("Choose an image, or drop it here", self._uploaded, on_error)
            self._upload.classes("w-full upload")
            self._note = ui.label().classes("note")
            self._image = ui.interactive_image(
                on_mouse=self._draw,
                events=["mousedown", "mousemove", "mouseup"],
            ).classes("canvas")
            with self._image:  # an element of its own: the image is not sent again with each point
                # No need to sanitize: the strokes are numbers that were formatted here.
                self._overlay = ui.html(sanitize=False).classes("strokes")
            with ui.row().classes("w-full items-center no-wrap gap-2") as self._tools:
                ui.label("Brush").classes("note")
                self._brush = ui.slider(min=BRUSH[0], max=BRUSH[1], value=14).props(
                    "aria-label=Brush dense"
                )
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
        if self._painting and self._strokes and self._shown is not None:
            drawn = strokes_as_svg(self._strokes, self._shown.shape[:2])
        self._overlay.content = drawn

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

    def _draw(self, event: events.MouseEventArguments) -> None:
        if not self._painting or self._shown is None:
            return
        # A browser sends what it is told to: numbers outside the image, texts, none at all.
        height, width = self._shown.shape[:2]
        x, y = clamped(event.image_x, 0, width), clamped(event.image_y, 0, height)
        brush = clamped(self._brush.value, *BRUSH)
        if x is None or y is None or brush is None:
            return
        at = (x, y)
        if sum(len(stroke.points) for stroke in self._strokes) >= MAX_POINTS:
            self._pressed = False
            self._on_error(f"strokes have more than {MAX_POINTS:,} points; undo some, or clear all")
            return
        if event.type == "mousedown":
            self._strokes.append(Stroke([at], brush / 100 * width))
            self._pressed = True
        elif event.type == "mousemove" and event.buttons == 1 and self._pressed and self._strokes:
            stroke = self._strokes[-1]
            if math.dist(stroke.points[-1], at) < stroke.width / 6:
                return
            stroke.points.append(at)
        else:
            self._pressed = False
            return
        self._show_strokes()
