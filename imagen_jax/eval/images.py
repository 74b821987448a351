"""Images that are measured: those of files or in memory, and real ones of built-in scenes."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from PIL import Image

from imagen_jax.cascade.folder import GRID
from imagen_jax.data.images import open_image, read_file
from imagen_jax.data.scenes.render import render
from imagen_jax.data.scenes.scene import Scene
from imagen_jax.errors import UnusableError, UserError
from imagen_jax.files import fingerprint
from imagen_jax.paths import as_path, version_of

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp")
FITS = ("exact", "crop")
"""Treatments of images of another size: refused, or cropped to the middle and resized."""
CHUNK = 64


class Images(Protocol):
    """Images of one size, read a part at a time.

    Attributes:
      name: description for people.
      side: pixels per side.
      made: way that they were brought to that size; "as they are" if unchanged.
    """

    name: str
    side: int
    made: str

    def __len__(self) -> int: ...

    def read(self, start: int, end: int) -> np.ndarray:
        """Images start ... end - 1 as uint8 [k, side, side, 3]."""
        ...

    def fingerprint(self) -> str:
        """Hash of where they come from, which costs less than reading them."""
        ...


class Files:
    """Images of files, or of what a folder holds in the order of their paths.

    Args:
      name: description for people.
      paths: files, or encoded images.
      side: pixels per side.
      fit: "exact" takes images of that size only; "crop" takes the middle square of others and
        resizes it with PIL's bicubic filter, which does not alias.

    Raises:
      UserError: an unknown fit.
    """

    def __init__(self, name: str, paths: Sequence[Path | bytes], side: int, fit: str = "exact"):
        if fit not in FITS:
            raise UserError(f"unknown fit {fit!r}; choices: {', '.join(FITS)}")
        self.name, self.side, self._paths, self._fit = name, side, list(paths), fit
        self.made = "as they are" if fit == "exact" else f"middle square, bicubic to {side}"

    def __len__(self) -> int:
        return len(self._paths)

    def read(self, start: int, end: int) -> np.ndarray:
        """See Images."""
        with ThreadPoolExecutor() as threads:  # PIL decodes without Python's lock
            paths = self._paths[start:end]
            return np.stack([*threads.map(lambda p: read_image(p, self.side, self._fit), paths)])

    def fingerprint(self) -> str:
        """Of names, sizes and times of files, or of encoded images themselves."""

        def fact(p: Path | bytes) -> Any:
            if isinstance(p, bytes):
                return hashlib.sha256(p).hexdigest()
            return [str(p), *version_of(p)]

        with ThreadPoolExecutor() as threads:
            return fingerprint([[*threads.map(fact, self._paths)], self.side, self._fit])


class RenderedScenes:
    """Real images of built-in scenes."""

    made = "as they are"

    def __init__(self, name: str, scenes: Sequence[Scene], side: int):
        self.name, self.side, self._scenes = name, side, list(scenes)

    def __len__(self) -> int:
        return len(self._scenes)

    def read(self, start: int, end: int) -> np.ndarray:
        """See Images."""
        return np.stack([render(scene, self.side) for scene in self._scenes[start:end]])

    def fingerprint(self) -> str:
        """Of what the scenes say."""
        return fingerprint([[repr(scene) for scene in self._scenes], self.side])


class Arrays:
    """Images in memory, uint8 [n, side, side, 3]."""

    made = "as they are"

    def __init__(self, name: str, images: np.ndarray):
        self.name, self.side, self._images = name, images.shape[1], images

    def __len__(self) -> int:
        return len(self._images)

    def read(self, start: int, end: int) -> np.ndarray:
        """See Images."""
        return self._images[start:end]

    def fingerprint(self) -> str:
        """Of their pixels."""
        return hashlib.sha256(np.ascontiguousarray(self._images).data).hexdigest()


def chunks(images: Images) -> Iterator[np.ndarray]:
    """All images, CHUNK at a time; the next are read while these are looked at."""
    with ThreadPoolExecutor(1) as thread:
        ahead = thread.submit(images.read, 0, min(CHUNK, len(images)))
        for start in range(0, len(images), CHUNK):
            part = ahead.result()
            following = start + CHUNK
            if following < len(images):
                end = min(following + CHUNK, len(images))
                ahead = thread.submit(images.read, following, end)
            yield part


def list_images(folder: str | Path) -> list[Path]:
    """Files of images in a folder and those below it, by path, without contact sheets (grid.png).

    Raises:
      UserError: no such folder, or no image in it.
    """
    folder = as_path(folder)
    found = sorted(p for p in folder.rglob("*") if p.suffix.lower() in SUFFIXES and p.name != GRID)
    if not found:
        raise UserError(f"no images ({', '.join(SUFFIXES)}) in {folder}")
    return found


def side_of(path: Path) -> int:
    """Shorter side of an image in pixels."""
    return min(_open(path).size)


def read_image(source: Path | bytes, side: int, fit: str) -> np.ndarray:
    """One image as uint8 [side, side, 3], upright, in sRGB, on white where it is transparent.

    Raises:
      UserError: it cannot be read, or is of another size and fit is "exact".
    """
    image = _open(source)
    if image.size != (side, side):
        if fit == "exact":
            raise UserError(
                f"{_name(source)} has {image.width} x {image.height} pixels, not {side} x {side}"
            )
        square = min(image.size)
        left, top = (image.width - square) // 2, (image.height - square) // 2
        # Cropped first: with `box`, the filter would reach beyond the square.
        image = image.crop((left, top, left + square, top + square))
        image = image.resize((side, side), Image.Resampling.BICUBIC)
    return np.asarray(image)


def _open(source: Path | bytes) -> Image.Image:
    try:
        return open_image(source if isinstance(source, bytes) else read_file(source)).image
    except (OSError, UnusableError) as error:
        raise UserError(f"{_name(source)} cannot be read: {error}") from error


def _name(source: Path | bytes) -> str:
    return str(source) if isinstance(source, Path) else f"encoded image of {len(source)} bytes"
