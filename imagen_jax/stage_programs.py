"""The programs that a stage is sampled by: `prepare`, once, and `step`, for every move.

What depends on the text or the low-resolution image alone is computed by `prepare`. The number of
steps, the noise levels, the strength of an edit, the guidance scale and its interval and the level
of noise conditioning augmentation are data to both: none of them is compiled for.
"""

from __future__ import annotations

import functools
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Bool, Float

from imagen_jax.diffusion.augment import augment_low_res, upsample_low_res
from imagen_jax.diffusion.editing import keep_outside
from imagen_jax.diffusion.guidance import (
    DynamicThreshold,
    IntervalGuidance,
    guided_denoiser,
    stack_conditioning,
    stacked_denoiser,
)
from imagen_jax.diffusion.noise import initial_noise
from imagen_jax.diffusion.parametrization import diffuse
from imagen_jax.diffusion.transitions import Sampler, State, Transition, move, start_state
from imagen_jax.sharding import on_mesh
from imagen_jax.stage import Stage
from imagen_jax.stage_config import SampleConfig
from imagen_jax.typing import Conditioning, Denoiser, Image, PRNGKey, TextEmbedding

Threshold = str | DynamicThreshold


class StageInputs(NamedTuple):
    """Inputs of a stage for b images; every array has a row for each.

    Attributes:
      text: token states of the prompts.
      keys: [b] PRNG keys; an image is a function of its own row alone.
      low_res: [b, h, w, 3] in [-1, 1], what the previous stage made; None for a base stage.
      negative: text to be guided away from, in place of no text: a row whose mask is all False.
        None for no text in all rows.
      image: [b, H, W, 3] in [-1, 1] at the size of the result, to be edited; or None.
      mask: [b, H, W, 1], True where the image is repainted; None for everywhere.
    """

    text: TextEmbedding
    keys: PRNGKey
    low_res: Float[Array, "b h w 3"] | None = None
    negative: TextEmbedding | None = None
    image: Float[Array, "b H W 3"] | None = None
    mask: Bool[Array, "b H W 1"] | None = None


class Padding(NamedTuple):
    """Pixels that are added on every side, and cut off what is made.

    Attributes:
      low_res: pixels of the low-resolution image.
      image: pixels of the stage's own images.
    """

    low_res: int
    image: int

    @classmethod
    def of(cls, stage: Stage, settings: SampleConfig) -> Padding:
        """Return the padding of settings.pad low-resolution pixels; none for a base stage."""
        if stage.low_res is None:
            return cls(0, 0)
        return cls(settings.pad, settings.pad * (stage.resolution // stage.low_res))

    def around(self, size: tuple[int, int]) -> tuple[int, int]:
        """Return the height and width of padded images."""
        return size[0] + 2 * self.image, size[1] + 2 * self.image

    def within(self, x: Image) -> Float[Array, "b h2 w2 c"]:
        """Return images without what was added."""
        by = self.image
        return x[:, by:-by, by:-by] if by else x

    def pad(self, inputs: StageInputs) -> StageInputs:
        """Return inputs whose images and masks are continued by their edges."""

        def edges(x: Any, by: int) -> Any:
            wide = ((0, 0), (by, by), (by, by), (0, 0))
            return x if x is None or not by else jnp.pad(x, wide, "edge")

        return inputs._replace(
            low_res=edges(inputs.low_res, self.low_res),
            image=edges(inputs.image, self.image),
            mask=edges(inputs.mask, self.image),
        )


@functools.cache
def pad_program(padding: Padding, mesh: Mesh | None = None) -> Any:
    """Return the jitted Padding.pad."""
    return jax.jit(padding.pad if mesh is None else on_mesh(padding.pad, mesh))


def guidance_of(settings: SampleConfig, scale: Any = None) -> Any:
    """Return the guidance of settings as data of the step.

    Args:
      scale: [] scale in place of that of the settings, may be traced.

    Returns:
      None where guidance is off, a scale, or an IntervalGuidance.
    """
    if scale is None:
        # 1 is static: without guidance there is no unconditional half to compute.
        if settings.guidance == 1:
            return None
        scale = np.float32(settings.guidance)
    low, high = settings.guidance_min_logsnr, settings.guidance_max_logsnr
    if low is None and high is None:
        return scale
    bounds = -math.inf if low is None else low, math.inf if high is None else high
    return IntervalGuidance(scale, *map(np.float32, bounds))


def threshold_of(settings: SampleConfig) -> Threshold:
    """Return the threshold of settings as guided_denoiser takes it."""
    if settings.threshold == "dynamic":
        return DynamicThreshold(settings.percentile, settings.threshold_cap)
    return settings.threshold


@functools.cache
def prepare_program(
    stage: Stage, guided: bool, size: tuple[int, int], mesh: Mesh | None = None
) -> Any:
    """Return the jitted (params, inputs, aug_level [], logsnr []) -> (Conditioning, State), done
    once before all steps: text keys and values of every layer, the noised low-resolution image, and
    the noise that the first step starts from at the given logsnr."""

    def prepare(params: Any, inputs: StageInputs, aug_level: Any, logsnr: Any) -> Any:
        keys = stage_keys(stage, inputs)
        conditioning = stage_conditioning(stage, inputs.text, keys, inputs.low_res, aug_level, size)
        if guided:
            conditioning = stack_conditioning(conditioning, inputs.negative)
        conditioning = stage.cache_text(params, conditioning)
        x = initial_noise(keys, inputs.text.mask.shape[0], (*size, 3))
        if inputs.image is not None:
            x = diffuse(inputs.image, x, jnp.asarray(logsnr, x.dtype))
        return conditioning, start_state(x)

    return jax.jit(prepare if mesh is None else on_mesh(prepare, mesh))


@functools.cache
def step_program(
    stage: Stage,
    sampler: Sampler,
    threshold: Threshold,
    goes_back: bool = False,
    mesh: Mesh | None = None,
) -> Any:
    """Return the jitted (params, inputs, conditioning, guidance, State, Transition) -> State that
    makes one move; conditioning is what prepare returns, guidance what guidance_of does.

    Args:
      goes_back: True if there are moves to a noisier level.
      mesh: mesh that the arrays lie on, or None.
    """

    def step(
        params: Any,
        inputs: StageInputs,
        conditioning: Conditioning,
        guidance: Any,
        state: State,
        transition: Transition,
    ) -> State:
        denoise = prepared_denoiser(stage, params, inputs, conditioning, guidance, threshold)
        return move(sampler, denoise, state, transition, stage_keys(stage, inputs), goes_back)

    return jax.jit(step if mesh is None else on_mesh(step, mesh))


def forget_programs() -> None:
    """Free the memory of all compiled programs; each is compiled again when it is next needed."""
    for made in (pad_program, prepare_program, step_program):
        made.cache_clear()
    jax.clear_caches()


def stage_keys(stage: Stage, inputs: StageInputs) -> PRNGKey:
    """Return the keys [b] of a stage's noise: stages share an image's key, but not its noise."""
    return jax.vmap(jax.random.fold_in, (0, None))(inputs.keys, stage.resolution)


def prepared_denoiser(
    stage: Stage,
    params: Any,
    inputs: StageInputs,
    conditioning: Conditioning,
    guidance: Any,
    threshold: Threshold,
) -> Denoiser:
    """Return the denoiser of all moves; arguments are those of the step program."""
    denoise = stacked_denoiser(
        functools.partial(stage.apply, params),
        conditioning,
        1.0 if guidance is None else guidance,
        stage.parametrization,
        threshold,
    )
    if inputs.mask is None:
        return denoise
    assert inputs.image is not None
    return keep_outside(denoise, inputs.image, inputs.mask)


def stage_conditioning(
    stage: Stage,
    text: TextEmbedding,
    keys: PRNGKey,
    low_res: Image | None,
    aug_level: jax.Array | float,
    size: tuple[int, int],
) -> Conditioning:
    """Return the conditioning of a network: text, and the enlarged low-resolution image, noised.

    Args:
      keys: [b] keys of the noise.
      low_res: [b, h, w, 3] in [-1, 1]; None for a base stage.
      aug_level: [] amount of noise, in [0, 1].
      size: height and width after enlarging.
    """
    if low_res is None:
        return Conditioning(text)
    levels = jnp.full((text.mask.shape[0],), aug_level)
    enlarged = upsample_low_res(low_res, size, stage.align_corners)
    noised = augment_low_res(keys, enlarged, levels)
    return Conditioning(text, noised, levels)


def stage_denoiser(
    stage: Stage,
    params: Any,
    text: TextEmbedding,
    keys: PRNGKey,
    low_res: Image | None,
    settings: SampleConfig,
) -> Denoiser:
    """Return the guided and thresholded denoiser of a stage, for any sampler inside one program.

    Args:
      stage, params, settings: as for sample_steps.
      text, keys, low_res: as in StageInputs; low_res is augmented with noise of settings.aug_level.

    Returns:
      (x_t [b, resolution, resolution, 3], logsnr []) -> x0.
    """
    size = (stage.resolution, stage.resolution)
    guidance = guidance_of(settings)
    return guided_denoiser(
        functools.partial(stage.apply, params),
        stage_conditioning(stage, text, keys, low_res, settings.aug_level, size),
        1.0 if guidance is None else guidance,
        stage.parametrization,
        threshold_of(settings),
        prepare=functools.partial(stage.cache_text, params),
    )
