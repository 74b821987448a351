"""Samples: what a cascade returns, to look at, index and save."""

from __future__ import annotations

import base64
import dataclasses
import html
import io
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import overload

import numpy as np
from PIL import Image

from imagen_jax.cascade.folder import Folder
from imagen_jax.cascade.request import Request
from imagen_jax.cascade.run import Finished
from imagen_jax.grid import labelled_grid


@dataclasses.dataclass(frozen=True, eq=False)
class Samples:
    """Images, and everything that is needed to make them again.

    `samples[0]` is an image to look at, `samples[2:5]` are some of the samples, `samples.images` is
    the array of all. A notebook shows them with their prompts.

    Attributes:
      request: the request, with the prompt, the seed and the record of every image.
      images: [n, h, w, 3] uint8 of the last stage.
      stages: stage name -> [n, h, w, 3] uint8 images of that stage.
      intermediates: stage name -> [steps, n, h, w, 3] uint8 estimates of the clean image at every
        step; empty unless asked for.
      black: for each image, why the safety checker made it black ("nsfw", "watermark"); "" where it
        did not, or where the cascade has none.
    """

    request: Request
    images: np.ndarray
    stages: dict[str, np.ndarray]
    intermediates: dict[str, np.ndarray]
    black: list[str]

    def __len__(self) -> int:
        return len(self.images)

    @overload
    def __getitem__(self, index: int) -> Image.Image: ...

    @overload
    def __getitem__(self, index: slice) -> Samples: ...

    def __getitem__(self, index: int | slice) -> Image.Image | Samples:
        if not isinstance(index, slice):
            return Image.fromarray(self.images[index])
        start, stop, step = index.indices(len(self))
        if step != 1:
            raise IndexError(f"samples are sliced in steps of 1, got {step}")
        return Samples(
            self.request.rows(start, max(start, stop)),
            self.images[index],
            {name: images[index] for name, images in self.stages.items()},
            {name: images[:, index] for name, images in self.intermediates.items()},
            self.black[index],
        )

    def __iter__(self) -> Iterator[Image.Image]:
        return (self[i] for i in range(len(self)))

    def grid(self, columns: int = 4) -> Image.Image:
        """Return all images in rows, labelled with their prompts."""
        labels = [str(prompt) for prompt in self.request.prompts]
        scale = max(1, 192 // self.images.shape[1])
        return labelled_grid(self.images, labels, columns=min(len(self), columns), scale=scale)

    def save(self, directory: str | Path, file_format: str = "png") -> list[Path]:
        """Write one file for each image, with its record in its metadata; grid.png of them all;
        and metadata.csv of their prompts, by which the directory is a corpus.

        Args:
          directory: made if it is not there; nothing in it is overwritten.
          file_format: one of FORMATS.

        Returns:
          Paths of the images, the grid first.

        Raises:
          UserError: the directory holds other images, or another process writes there.
        """
        with Folder(directory, [self.request], file_format) as folder:
            last = self.request.stages[-1].name
            rows = np.arange(len(self))
            folder.write(0, Finished(last, rows, self.images, self.request, self.black))
            folder.save_captions()
            return [folder.save_grid(), *folder.paths]

    def _repr_png_(self) -> bytes:
        return _png(self.grid())

    def _repr_html_(self) -> str:
        def figure(image: Image.Image, label: str, seed: int, black: str) -> str:
            data = base64.b64encode(_png(image)).decode()
            width = max(image.width, 160)
            return (
                f'<figure style="display:inline-block;margin:6px;width:{width}px;'
                'vertical-align:top">'
                f'<img src="data:image/png;base64,{data}" style="width:{width}px;'
                'image-rendering:pixelated">'
                f'<figcaption style="font-size:12px">{html.escape(label)}, seed {seed}'
                f"{f', black: {black}' * bool(black)}</figcaption>"
                "</figure>"
            )

        asked = self.request
        return "".join(
            figure(image, str(prompt), seed, black)
            for image, prompt, seed, black in zip(
                self, asked.prompts, asked.seeds, self.black, strict=True
            )
        )


def _png(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "png")
    return buffer.getvalue()


def count_black(black: Sequence[str]) -> str:
    """Return a sentence such as "2 of 16 images were made black by the safety checker (2 nsfw)"."""
    found = [reason for reason in black if reason]
    reasons = ", ".join(f"{found.count(reason)} {reason}" for reason in dict.fromkeys(found))
    were = "image was" if len(black) == 1 else "images were"
    return f"{len(found)} of {len(black)} {were} made black by the safety checker ({reasons})"
