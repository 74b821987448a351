"""Samples: what a cascade returns, to look at, index and save."""

from __future__ import annotations

import base64
import dataclasses
import html
import io
from collections.abc import Iterator
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
    """

    request: Request
    images: np.ndarray
    stages: dict[str, np.ndarray]
    intermediates: dict[str, np.ndarray]

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
            folder.write(0, Finished(last, np.arange(len(self)), self.images, self.request))
            folder.save_captions()
            return [folder.save_grid(), *folder.paths]

    def _repr_png_(self) -> bytes:
        return _png(self.grid())

    def _repr_html_(self) -> str:
        def figure(image: Image.Image, label: str, seed: int) -> str:
            data = base64.b64encode(_png(image)).decode()
            width = max(image.width, 160)
            return (
                f'<figure style="display:inline-block;margin:6px;width:{width}px;'
                'vertical-align:top">'
                f'<img src="data:image/png;base64,{data}" style="width:{width}px;'
                'image-rendering:pixelated">'
                f'<figcaption style="font-size:12px">{html.escape(label)}, seed {seed}</figcaption>'
                "</figure>"
            )

        asked = self.request
        return "".join(
            figure(image, str(prompt), seed)
            for image, prompt, seed in zip(self, asked.prompts, asked.seeds, strict=True)
        )


def _png(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "png")
    return buffer.getvalue()
