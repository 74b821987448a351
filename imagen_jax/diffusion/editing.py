"""Editing of images with any sampler and any denoiser: img2img and inpainting.

Both work in the pixels of the stage whose denoiser is given, so they edit a base image as well as
a super-resolved one.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from imagen_jax.diffusion.parametrization import diffuse
from imagen_jax.diffusion.samplers import STEP_RULES, check_sampler, sample
from imagen_jax.diffusion.transitions import (
    Progress,
    Samples,
    check_grid,
    path_transitions,
    run_transitions,
)
from imagen_jax.errors import UserError
from imagen_jax.typing import Denoiser, Image, LogSNR, PRNGKey


def img2img(
    name: str,
    denoise: Denoiser,
    image: Image,
    noise: Image,
    grid: Float[Array, "steps+1"],
    key: PRNGKey | None = None,
    *,
    progress: Progress | None = None,
    intermediates: bool = False,
    **options: Any,
) -> Samples:
    """Samples from a noised image: Meng et al. 2022 (SDEdit); equation (1).

    How much may change is set by where the grid starts: time_grid(..., t_start=0.6), for example.

    Args:
      name: one of SAMPLERS.
      denoise: (x_t, logsnr []) -> x0.
      image: [b, h, w, c] in [-1, 1].
      noise: [b, h, w, c] standard normal.
      grid: [steps + 1] increasing logsnr.
      key: see samplers.
      progress: see samplers.
      intermediates: see samplers.
      **options: of the sampler.

    Raises:
      UserError: what sample raises.
    """
    x_t = diffuse(image, noise, jnp.asarray(grid[0], image.dtype))
    return sample(
        name,
        denoise,
        x_t,
        grid,
        key,
        progress=progress,
        intermediates=intermediates,
        **options,
    )


def resampling_path(steps: int, resamples: int, jump: int) -> np.ndarray:
    """Positions in a grid that RePaint visits: Lugmayr et al. 2022, algorithm 1 and section 4.2.

    Blocks of jump steps are each walked resamples times, going back to the start of the block in
    between. resamples = 1 is the plain grid 0, 1, ..., steps.

    Args:
      steps: of the grid, at least 1.
      resamples: how often every block is walked, at least 1.
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


def inpaint(
    name: str,
    denoise: Denoiser,
    image: Image,
    keep: Float[Array, "b h w 1"],
    noise: Image,
    grid: Float[Array, "steps+1"],
    key: PRNGKey,
    *,
    resamples: int = 1,
    jump: int = 1,
    progress: Progress | None = None,
    intermediates: bool = False,
    **options: Any,
) -> Samples:
    """Samples what is not kept of an image: RePaint, Lugmayr et al. 2022; equation (21).

    The kept part of every estimate of x0 is replaced by the image. By equation (17) the kept part
    of x_t is then the image with the right amount of noise, whatever the sampler. Without
    resampling, the new part does not know the old one well; every time that a block of steps is
    walked again the two agree better. The result equals the image, bit for bit, where keep is 1.

    Args:
      name: one of SAMPLERS.
      denoise: (x_t, logsnr []) -> x0.
      image: [b, h, w, c] in [-1, 1]. What it has where keep is 0 matters only if the grid does
        not start at pure noise: then the new part starts from it, as in img2img.
      keep: [b or 1, h, w, 1] in [0, 1], 1 where the image stays as it is; or bool.
      noise: [b, h, w, c] standard normal.
      grid: [steps + 1] increasing logsnr.
      key: one key or [b] keys; only needed if resamples > 1 or if the sampler draws noise.
      resamples: how often every block of steps is walked, at least 1.
      jump: length of a block in steps, at least 1.
      progress: called with the number of each move, of len(resampling_path(...)) - 1.
      intermediates: also return the estimates of x0 of all moves.
      **options: of the sampler.

    Raises:
      UserError: unknown sampler, keep of another shape, resamples or jump below 1, or what the
        sampler raises.
    """
    check_sampler(name)
    check_grid(grid)
    steps = grid.shape[0] - 1
    return run_transitions(
        STEP_RULES[name](steps, **options),
        keep_known(denoise, image, keep),
        diffuse(image, noise, jnp.asarray(grid[0], image.dtype)),
        path_transitions(grid, resampling_path(steps, resamples, jump)),
        key,
        progress,
        intermediates,
        goes_back=resamples > 1,
    )


def keep_known(denoise: Denoiser, image: Image, keep: Float[Array, "b h w 1"]) -> Denoiser:
    """The denoiser that knows a part of the image: equation (21).

    Args:
      denoise: (x_t, logsnr []) -> x0.
      image, keep: as for inpaint.

    Raises:
      UserError: keep of another shape.
    """
    batch, height, width, channels = image.shape
    fits = keep.ndim == 4 and keep.shape[1:3] == (height, width)
    if not (fits and keep.shape[0] in (1, batch) and keep.shape[3] in (1, channels)):
        raise UserError(
            f"keep must have shape {(batch, height, width, 1)} (or 1 in place of {batch}) for "
            f"images of shape {image.shape}, got {keep.shape}"
        )
    keep = jnp.asarray(keep, image.dtype)

    def denoise_unknown(x_t: Image, logsnr: LogSNR) -> jax.Array:
        return keep * image + (1.0 - keep) * denoise(x_t, logsnr)

    return denoise_unknown
