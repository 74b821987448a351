"""Uploads of all tabs: read one at a time, and reduced to what is used before they are kept."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable

import numpy as np
from nicegui import events, run, ui
from PIL import Image

from imagen_jax.cascade import crop_to, read_image
from imagen_jax.errors import UserError
from imagen_jax.page.limits import MAX_PIXELS, MAX_READING, MAX_UPLOAD


class OneUpload(ui.upload):
    """An upload of one file a request; a request with more is not answered by any handler."""

    async def handle_uploads(self, files: list[ui.upload.FileUpload]) -> None:
        """Hands on one file, unless the page was closed meanwhile."""
        if len(files) == 1 and not self.is_deleted:
            await super().handle_uploads(files)

    def _handle_delete(self) -> None:
        """Lets go of the image that was uploaded: FastAPI remembers routes of tabs long closed."""
        super()._handle_delete()
        self._upload_handlers.clear()


class Uploads:
    """Reads uploads of all tabs."""

    def __init__(self, sizes: Iterable[tuple[int, int]]):
        """Args:
        sizes: height and width of images that are made of them.
        """
        self._sizes = tuple(sizes)
        self._decoder = asyncio.Lock()
        self._waiting = 0

    async def read(self, event: events.UploadEventArguments) -> tuple[np.ndarray, tuple[int, int]]:
        """Return an uploaded image as it is kept, uint8 [h, w, 3], and its own height and width.

        Raises:
          UserError: it is too large, no image, or damaged, or too many are being read.
        """
        if self._waiting >= MAX_READING:
            raise UserError("too many images are being read; try again in a moment")
        if event.file.size() > MAX_UPLOAD:
            raise UserError(f"the file is larger than {MAX_UPLOAD // 2**20} MB")
        self._waiting += 1
        try:
            async with self._decoder:
                content = await event.file.read()
                read = await run.io_bound(self._read, content)
        finally:
            self._waiting -= 1
        if read is None:
            raise UserError("the page is being closed")
        return read

    def _read(self, content: bytes) -> tuple[np.ndarray, tuple[int, int]]:
        image = read_image(content, MAX_PIXELS)
        height, width = image.shape[:2]
        return what_is_used(image, self._sizes), (height, width)


def what_is_used(image: np.ndarray, sizes: Iterable[tuple[int, int]]) -> np.ndarray:
    """Return the part of an image that crops of some sizes are taken from, reduced.

    It is reduced by a whole factor, by which areas are averaged, and not below any of the sizes.

    Args:
      image: uint8 [h, w, 3].
      sizes: height and width of what is made of it.
    """
    crops = [(crop_to(image, size).shape[:2], size) for size in sizes]
    height, width = (max(crop[axis] for crop, _ in crops) for axis in (0, 1))
    top, left = (image.shape[0] - height) // 2, (image.shape[1] - width) // 2
    part = image[top : top + height, left : left + width]
    factor = min(crop[axis] // size[axis] for crop, size in crops for axis in (0, 1))
    if factor > 1:
        return np.asarray(Image.fromarray(part).reduce(factor))
    return part.copy()  # not a view, which would keep the whole
