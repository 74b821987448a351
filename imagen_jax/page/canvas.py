"""The image that is edited: uploaded, cropped to the shape that is made, and painted over."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
from nicegui import events, run, ui

from imagen_jax.cascade import crop_to, read_image
from imagen_jax.errors import UserError
from imagen_jax.page.drawing import Stroke, data_url, mask_of, preview, strokes_as_svg
from imagen_jax.page.limits import MAX_UPLOAD

SHOWN = 512
"""Longest side, in pixels, of the image in the browser."""


class Canvas:
    """An image and the strokes over it.

    Attributes:
      image: uint8 [h, w, 3] as it was uploaded; None before.
      element: what holds it on the page.
    """

    def __init__(self, size: tuple[int, int], on_error: Callable[[str], None]):
        """Args:
        size: height and width of the images that are made; their shape is cut out.
        on_error: told what is wrong with an upload.
        """
        self.image: np.ndarray | None = None
        self._name = ""
        self._size = size
        self._painting = self._pressed = False
        self._strokes: list[Stroke] = []
        self._on_error = on_error
        self._shown: np.ndarray | None = None
        with ui.column().classes("w-full gap-2") as self.element:
            self._upload = ui.upload(
                label="Choose an image, or drop it here",
                auto_upload=True,
                max_file_size=MAX_UPLOAD,
                on_upload=self._uploaded,
                on_rejected=lambda: self._on_error(
                    f"the file is larger than {MAX_UPLOAD // 2**20} MB"
                ),
            )
            self._upload.props("flat bordered hide-upload-btn").classes("w-full upload")
            self._upload.on("failed", lambda: self._on_error("the upload failed"))
            self._note = ui.label().classes("note")
            self._image = ui.interactive_image(
                on_mouse=self._draw,
                events=["mousedown", "mousemove", "mouseup"],
                sanitize=False,  # the strokes are numbers that were formatted here
            ).classes("canvas")
            with ui.row().classes("w-full items-center no-wrap gap-2") as self._tools:
                ui.label("Brush").classes("note")
                self._brush = ui.slider(min=2, max=40, value=14).props("aria-label=Brush dense")
                ui.button("Undo", on_click=self._undo).props("flat dense no-caps")
                ui.button("Clear", on_click=self.clear).props("flat dense no-caps")
        self._show()

    @property
    def mask(self) -> np.ndarray | None:
        """bool [h, w] of what is painted over, of the size of the cropped image."""
        if self.image is None or self._shown is None or not self._strokes:
            return None
        cropped = crop_to(self.image, self._size)
        return mask_of(self._strokes, self._shown.shape[:2], cropped.shape[:2])

    def load(self, image: np.ndarray, name: str) -> None:
        """Takes an image [h, w, 3] uint8 in place of the one before."""
        self.image, self._name = image, name
        self.clear()
        self._show()

    def set_size(self, size: tuple[int, int]) -> None:
        """Cuts the image to the shape of images of another size."""
        if size != self._size:
            self._size = size
            self.clear()
            self._show()

    def set_painting(self, painting: bool) -> None:
        """Whether the brush is out."""
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
        drawn = self._painting and self._strokes
        self._image.content = strokes_as_svg(self._strokes) if drawn else ""

    async def _uploaded(self, event: events.UploadEventArguments) -> None:
        content = await event.file.read()
        self._upload.reset()
        try:
            if len(content) > MAX_UPLOAD:
                raise UserError(f"the file is larger than {MAX_UPLOAD // 2**20} MB")
            image = await run.io_bound(read_image, content)
        except (ValueError, OSError) as error:
            self._on_error(f"{event.file.name}: {error}")
            return
        assert image is not None
        self.load(image, event.file.name)

    def _show(self) -> None:
        self._tools.visible = self._painting and self.image is not None
        self._image.visible = self._note.visible = self.image is not None
        if self.image is None:
            return
        cropped = crop_to(self.image, self._size)
        self._shown = preview(cropped, SHOWN)
        self._image.set_source(data_url(self._shown))
        self._show_strokes()
        height, width = self.image.shape[:2]
        said = f"{self._name}, {width} x {height}"
        if cropped.shape != self.image.shape:
            said += f"; its middle {cropped.shape[1]} x {cropped.shape[0]} are used"
        if self._painting:
            said += ". Brush over what is to be painted anew."
        self._note.text = said

    def _draw(self, event: events.MouseEventArguments) -> None:
        if not self._painting or self._shown is None:
            return
        at = (event.image_x, event.image_y)
        if event.type == "mousedown":
            width = self._brush.value / 100 * self._shown.shape[1]
            self._strokes.append(Stroke([at], width))
            self._pressed = True
        elif event.type == "mousemove" and event.buttons & 1 and self._pressed and self._strokes:
            stroke = self._strokes[-1]
            if math.dist(stroke.points[-1], at) < stroke.width / 6:
                return
            stroke.points.append(at)
        else:
            self._pressed = False
            return
        self._show_strokes()
