"""Uploads of all tabs: read one at a time, and reduced to what is used before they are kept."""

from __future__ import annotations

import asyncio
import secrets
import weakref
from collections.abc import Awaitable, Callable, Iterable
from urllib.parse import unquote

import numpy as np
from nicegui import background_tasks, run, ui
from PIL import Image
from starlette.requests import ClientDisconnect, Request
from starlette.responses import PlainTextResponse, Response

from imagen_jax.cascade import crop_to, read_image
from imagen_jax.errors import UserError
from imagen_jax.page.limits import (
    MAX_PIXELS,
    MAX_READING,
    MAX_RECEIVED,
    MAX_UPLOAD,
)

PATH = "/upload/{key}"
"""Of uploads on the page."""


class UploadField(ui.element):
    """A field for one file, which the browser sends as the whole of a request.

    It is no `ui.upload`: that has a route of its own for each tab, which FastAPI never forgets, and
    a form around the file, which is taken apart piece by piece between all other requests.
    """

    def __init__(
        self,
        label: str,
        key: str,
        on_upload: Callable[[bytes, str], Awaitable[None]],
        on_error: Callable[[str], None],
    ):
        """Args:
        label: what it asks for.
        key: last part of the path that it sends to; see Uploads.add.
        on_upload: called with the content of a file and its name.
        on_error: told why there is none.
        """
        super().__init__("q-uploader")
        self.on_upload = on_upload
        self.receiving = False
        self.props["label"], self.props["url"] = label, PATH.format(key=key)
        self.props["max-file-size"] = MAX_UPLOAD
        self.props("auto-upload send-raw flat bordered hide-upload-btn")
        self.props[":headers"] = "f => [{name: 'x-name', value: encodeURIComponent(f[0].name)}]"
        large = f"the file is larger than {MAX_UPLOAD // 2**20} MB"
        self.on("rejected", lambda: on_error(large), args=[])
        self.on("failed", lambda: on_error("the upload failed"), args=[])


class Uploads:
    """Reads uploads of all tabs."""

    def __init__(self, sizes: Iterable[tuple[int, int]]):
        """Args:
        sizes: height and width of images that are made of them.
        """
        self._sizes = tuple(sizes)
        self._fields: weakref.WeakValueDictionary[str, UploadField] = weakref.WeakValueDictionary()
        self._received = 0  # bytes, of requests that are being received
        self._decoder = asyncio.Lock()
        self._waiting = 0

    def add(
        self,
        label: str,
        on_upload: Callable[[bytes, str], Awaitable[None]],
        on_error: Callable[[str], None],
    ) -> UploadField:
        """Return a new field, whose uploads are taken as long as it is there; see UploadField."""
        key = secrets.token_urlsafe(16)
        field = self._fields[key] = UploadField(label, key, on_upload, on_error)
        return field

    async def take(self, request: Request) -> Response:
        """Answer a request to PATH, whose body is the file: of a length that guard.py has checked.

        What has come of all that are under way is limited; connections.py limits their time.
        """
        field = self._fields.get(request.path_params["key"])
        if field is None or field.is_deleted:
            return PlainTextResponse("there is no such page", status_code=404)
        if field.receiving:
            return PlainTextResponse("one file at a time", status_code=429)
        name = unquote(request.headers.get("x-name", ""))[:100]
        field.receiving = True
        try:
            content = await self._receive(request)
        except ClientDisconnect:
            return PlainTextResponse("the file did not come to its end", status_code=408)
        except UserError as error:
            return PlainTextResponse(str(error), status_code=503)
        finally:
            field.receiving = False
        if not field.is_deleted:
            with field:
                background_tasks.create(field.on_upload(content, name))
        return Response(status_code=204)

    async def _receive(self, request: Request) -> bytes:
        pieces, size = [], 0
        try:
            async for piece in request.stream():
                self._received += len(piece)
                size += len(piece)
                if self._received > MAX_RECEIVED:
                    raise UserError("too many files are being received; try again in a moment")
                pieces.append(piece)
            return b"".join(pieces)
        finally:
            self._received -= size

    async def read(self, content: bytes) -> tuple[np.ndarray, tuple[int, int]]:
        """Return an uploaded image as it is kept, uint8 [h, w, 3], and its own height and width.

        Raises:
          UserError: it has too many pixels, is no image, or damaged, or too many are being read.
        """
        if self._waiting >= MAX_READING:
            raise UserError("too many images are being read; try again in a moment")
        self._waiting += 1
        try:
            async with self._decoder:
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
