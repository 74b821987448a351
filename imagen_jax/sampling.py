"""Sampling of one stage: guidance, thresholding and a sampler around its network, compiled once."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from imagen_jax.diffusion.augment import augment_low_res
from imagen_jax.diffusion.guidance import DynamicThreshold, guided_denoiser
from imagen_jax.diffusion.noise import initial_noise
from imagen_jax.diffusion.samplers import Samples, sample, time_grid
from imagen_jax.stage import Stage, upsample_low_res
from imagen_jax.stage_config import SampleConfig
from imagen_jax.typing import Conditioning, Denoiser, Image, PRNGKey, TextEmbedding

Progress = Callable[[Any], None]


def sample_stage(
    stage: Stage,
    params: Any,
    text: TextEmbedding,
    keys: PRNGKey,
    low_res: Image | None,
    settings: SampleConfig,
    progress: Progress | None = None,
    intermediates: bool = False,
) -> Samples:
    """Pictures of one stage, each a function of its own key alone.

    Args:
      stage: what to sample from.
      params: weights of the stage's network, usually the moving average.
      text: [b, l, d] token states of the prompts.
      keys: [b] PRNG keys, one per picture.
      low_res: [b, h, w, 3] in [-1, 1], the previous stage's pictures; None for a base stage.
      settings: how to sample.
      progress: called with the index of every step.
      intermediates: also return the estimate of x0 at every step.

    Returns:
      x0 [b, resolution, resolution, 3] in [-1, 1] and, if asked for, [steps, b, ...] estimates.

    Raises:
      ValueError: a low-resolution picture is missing, or is given to a base stage.
    """
    if (low_res is None) != (stage.low_res is None):
        raise ValueError(
            f"stage {stage.name!r} starts from "
            + (
                "noise alone, but a picture was given"
                if stage.low_res is None
                else f"a picture of {stage.low_res} pixels, but none was given"
            )
        )
    # The weight is traced, so that a sweep over it compiles once; 1 is static and skips the
    # unconditional half of every network call.
    static = dataclasses.replace(settings, guidance=1.0)
    guidance = None if settings.guidance == 1 else np.float32(settings.guidance)
    sampler = compiled_sampler(stage, static, progress, intermediates)
    return sampler(params, text, keys, low_res, guidance)


def stage_denoiser(
    stage: Stage,
    params: Any,
    text: TextEmbedding,
    keys: PRNGKey,
    low_res: Image | None,
    settings: SampleConfig,
    guidance: jax.Array | float | None = None,
) -> Denoiser:
    """The guided and thresholded denoiser of a stage, for any sampler, img2img or inpainting.

    Args:
      stage, params, text, keys, low_res, settings: as for sample_stage; low_res is augmented with
        noise of settings.aug_level here.
      guidance: weight in place of settings.guidance, may be traced.

    Returns:
      (x_t [b, resolution, resolution, 3], logsnr []) -> x0.
    """
    conditioning = Conditioning(text)
    if low_res is not None:
        aug_level = jnp.full((text.mask.shape[0],), settings.aug_level)
        picture = upsample_low_res(low_res, stage.resolution)
        noised = augment_low_res(keys, picture, aug_level, stage.schedule)
        conditioning = Conditioning(text, noised, aug_level)
    threshold: Any = settings.threshold
    if threshold == "dynamic":
        threshold = DynamicThreshold(settings.percentile)
    return guided_denoiser(
        functools.partial(stage.apply, params),
        conditioning,
        settings.guidance if guidance is None else guidance,
        stage.parametrization,
        threshold,
        prepare=functools.partial(stage.cache_text, params),
    )


@functools.cache
def compiled_sampler(
    stage: Stage,
    settings: SampleConfig,
    progress: Progress | None = None,
    intermediates: bool = False,
) -> Any:
    """The jitted function behind sample_stage: (params, text, keys, low_res, guidance) -> Samples,
    where guidance is None for a weight of 1."""

    @jax.jit
    def run(
        params: Any,
        text: TextEmbedding,
        keys: PRNGKey,
        low_res: Image | None,
        guidance: jax.Array | None,
    ) -> Samples:
        b = text.mask.shape[0]
        # Stages of a cascade share a picture's key; their noise must not repeat.
        keys = jax.vmap(jax.random.fold_in, (0, None))(keys, stage.resolution)
        denoise = stage_denoiser(stage, params, text, keys, low_res, settings, guidance)
        noise = initial_noise(keys, b, (stage.resolution, stage.resolution, 3))
        grid = time_grid(stage.schedule, settings.steps, settings.time_grid)
        samples = sample(
            settings.sampler,
            denoise,
            noise,
            grid,
            keys,
            progress=progress,
            intermediates=intermediates,
        )
        return samples._replace(x0=jnp.clip(samples.x0, -1, 1))

    return run


def to_uint8(images: Float[Array, "*b h w 3"]) -> Any:
    """[-1, 1] to 0 ... 255, rounding to nearest; a NumPy array."""
    scaled = jnp.round((jnp.clip(images, -1, 1) + 1) * 127.5)
    return jax.device_get(scaled.astype(jnp.uint8))


def picture_keys(seeds: Any) -> PRNGKey:
    """One key per picture from its seed: the same seed is the same noise, wherever it stands.

    Args:
      seeds: [b] integers in [0, 2**32).
    """
    return jax.vmap(jax.random.key)(jnp.asarray(seeds, jnp.uint32))
