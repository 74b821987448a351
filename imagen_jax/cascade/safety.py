"""Safety checker and watermark of DeepFloyd IF, applied to images that are done.

Checker: CLIP's features z of an image and two scores, w z + b each. Where the one for nsfw or the
one for watermarks is above THRESHOLD, the image becomes black. Watermark: a small image, pasted
on black ones, too. First one and then the other, as in diffusers' IF pipelines.
"""

from __future__ import annotations

import functools
import math
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from PIL import Image

from imagen_jax.checkpoints.safety import Safety
from imagen_jax.errors import UserError
from imagen_jax.eval.features.clip import Sizes, encode_images, preprocess
from imagen_jax.eval.features.clip_weights import read_image_tower
from imagen_jax.eval.features.layers import PRECISE
from imagen_jax.tensor_files import read_safetensors

THRESHOLD = 0.5
REASONS = {"p_head": "nsfw", "w_head": "watermark"}
"""Heads of the checker -> what they are about."""
MARK_SIDE, MARK_MARGIN, MARK_IMAGE = 62, 14, 1024
"""Pixels: of the watermark, beside it, and of the side of an image for which both hold."""


class SafetyFilter:
    """Makes images black that a checker finds fault with, and puts a watermark on all."""

    def __init__(self, safety: Safety):
        """Args:
        safety: the files; they are read when they are needed.
        """
        self._safety = safety
        self._params: Any = None

    def load(self) -> None:
        """Load the checker's weights, if it has one and they are not in memory.

        Raises:
          UserError: they are damaged.
        """
        if self._params is None and self._safety.checker is not None:
            self._params = jax.device_put(read_checker(self._safety.checker))

    def free(self) -> None:
        """Free the checker's weights."""
        self._params = None

    def __call__(self, images: np.ndarray) -> tuple[np.ndarray, list[str]]:
        """Return images with all applied, and for each why it is black, "" where it is not.

        Args:
          images: [n, h, w, 3] uint8.
        """
        self.load()
        images = images.copy()
        reasons = [""] * len(images)
        sizes = Sizes(self._safety.heads, 0, self._safety.activation)
        for i, image in enumerate(images if self._params is not None else ()):
            # One at a time: there are few, and one program is compiled.
            found = np.asarray(scores(self._params, clip_input(self._params, image), sizes))[0]
            names = [name for name, x in zip(REASONS.values(), found, strict=True) if x > THRESHOLD]
            if names:
                reasons[i] = " and ".join(names)
                images[i] = 0
        if self._mark is not None:
            images = np.stack([add_watermark(image, self._mark) for image in images])
        return images, reasons

    @functools.cached_property
    def _mark(self) -> Image.Image | None:
        path = self._safety.watermark
        if path is None:
            return None
        try:
            with path.open("rb") as file:
                mark = Image.open(file, formats=["PNG"]).convert("RGBA")
        except (OSError, SyntaxError, ValueError) as error:
            raise UserError(f"{path} is damaged, or no PNG: {error}") from error
        if mark.size != (MARK_SIDE, MARK_SIDE):
            raise UserError(f"{path} is {mark.size}; a watermark has {MARK_SIDE} pixels per side")
        return mark


def read_checker(path: Path) -> Any:
    """Params of `scores`, as NumPy arrays.

    Raises:
      UserError: a tensor is missing, or the file is damaged.
    """
    tensors = read_safetensors(path)
    tower = {name.removeprefix("vision_model."): x for name, x in tensors.items()}
    params = dict(read_image_tower(tower, path))
    for part in ("weight", "bias"):
        if missing := [f"{head}.{part}" for head in REASONS if f"{head}.{part}" not in tensors]:
            raise UserError(f"{path} has no tensor {missing[0]!r}")
        stacked = np.concatenate([tensors[f"{head}.{part}"] for head in REASONS])
        params[part] = stacked.astype(np.float32)
    return params


@functools.partial(jax.jit, static_argnums=2)
def scores(params: Any, x: jax.Array, sizes: Sizes) -> jax.Array:
    """Scores [b, 2] for nsfw and watermarks of images [b, s, s, 3] as clip_input makes them."""
    features = encode_images(params, x, sizes)
    return jnp.matmul(features, params["weight"].T, precision=PRECISE) + params["bias"]


def clip_input(params: Any, image: np.ndarray) -> jax.Array:
    """An image [h, w, 3] uint8 as the checker takes it, [1, s, s, 3]: the shorter side resized to s
    by PIL's bicubic filter, the middle square, mean and deviation of CLIP."""
    tower = params["vision"]
    side = tower["patch"].shape[0] * math.isqrt(len(tower["position"]) - 1)
    height, width = image.shape[:2]
    shorter = min(height, width)
    new = (int(side * width / shorter), int(side * height / shorter))
    resized = np.asarray(Image.fromarray(image).resize(new, Image.Resampling.BICUBIC))
    top, left = ((n - side) // 2 for n in resized.shape[:2])
    square = resized[top : top + side, left : left + side]
    return preprocess(jnp.asarray(square[None], jnp.float32))


def add_watermark(image: np.ndarray, mark: Image.Image) -> np.ndarray:
    """An image [h, w, 3] uint8 with a watermark in its lower right corner.

    Sizes are in proportion to the square root of its area; below 17 x 17 pixels nothing is left.
    """
    height, width = image.shape[:2]
    scale = math.sqrt(height * width) / MARK_IMAGE
    side, margin = int(scale * MARK_SIDE), int(scale * MARK_MARGIN)
    if not side:
        return image
    scaled = mark.resize((side, side), Image.Resampling.BICUBIC)
    marked = Image.fromarray(image)
    marked.paste(scaled, (width - margin - side, height - margin - side), scaled.getchannel("A"))
    return np.asarray(marked)
