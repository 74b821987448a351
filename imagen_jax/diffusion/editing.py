"""Editing of images with any sampler and any denoiser.

img2img samples from an image that parametrization.diffuse took back to the first level of the
grid. Inpainting also replaces the denoiser by keep_outside, and may walk steps again along a
resampling_path. Both work in the pixels of the stage whose denoiser is given, so they edit a base
image as well as a super-resolved one.
"""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool

from imagen_jax.diffusion.guidance import VarianceDenoiser
from imagen_jax.errors import UserError
from imagen_jax.typing import Denoiser, Image


def resampling_path(steps: int, resamples: int, jump: int) -> np.ndarray:
    """Return the positions in a grid that RePaint visits.

    Lugmayr et al. 2022, algorithm 1 and section 4.2.

    Blocks of jump steps are each walked resamples times, going back to the start of the block in
    between. resamples = 1 is the plain grid 0, 1, ..., steps.

    Args:
      steps: steps of the grid, at least 1.
      resamples: number of walks of every block, at least 1.
      jump: length of a block in steps, at least 1.

    Returns:
      [n + 1] positions from 0 to steps.

    Raises:
      UserError: an argument below 1.
    """
    if min(steps, resamples, jump) < 1:
        raise UserError(
            "steps, resamples and jump must be at least 1, got "
            f"steps={steps}, resamples={resamples}, jump={jump}"
        )
    path = [0]
    for start in range(0, steps, jump):
        end = min(start + jump, steps)
        for again in range(resamples):
            # One move back over the whole block: by (16) the same as several.
            path += ([start] if again else []) + list(range(start + 1, end + 1))
    return np.asarray(path)


def keep_outside(denoise: Denoiser, image: Image, mask: Bool[Array, "#b h w 1"]) -> Denoiser:
    """Return the denoiser that knows an image outside of a mask: equation (21); RePaint.

    The known part of every estimate of x0 is replaced by the image. By equation (17) the known part
    of x_t is then the image with the right amount of noise, whatever the sampler. Without
    resampling, the new part does not know the old one well; every time that a block of steps is
    walked again the two agree better. The result equals the image, bit for bit, outside of the
    mask.

    Args:
      denoise: (x_t, logsnr []) -> x0.
      image: [b, h, w, c] in [-1, 1]. What it has inside of the mask matters only if the grid does
        not start at pure noise: then the new part starts from it, as in img2img.
      mask: [b or 1, h, w, 1], True where the image is repainted.

    Raises:
      UserError: a mask of another shape or type.
    """
    batch, height, width, _ = image.shape
    fits = mask.shape in ((batch, height, width, 1), (1, height, width, 1))
    if not fits or mask.dtype != bool:
        raise UserError(
            f"mask must be bool {(batch, height, width, 1)} (or 1 in place of {batch}) for images "
            f"of shape {image.shape}, got {mask.dtype} {mask.shape}"
        )

    new = jnp.asarray(mask, image.dtype)

    def inside(x0: Image) -> Image:
        return (1.0 - new) * image + new * x0

    if isinstance(denoise, VarianceDenoiser):
        return denoise.then(inside)
    return lambda x_t, logsnr: inside(denoise(x_t, logsnr))
