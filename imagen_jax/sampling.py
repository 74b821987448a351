"""Sampling of one stage: guidance, thresholding and a sampler around its network.

What depends on the text or the small image alone is computed by one compiled program, `prepare`;
a second one, `step`, makes one move of the sampler and is called again and again. So the number of
steps, the noise level that an edit starts from, the weight of guidance and the level of noise
conditioning augmentation are data: none of them is compiled for. Between two steps anyone may look
at the estimate, or stop.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Float

from imagen_jax.diffusion.augment import augment_low_res, upsample_low_res
from imagen_jax.diffusion.editing import keep_known, resampling_path
from imagen_jax.diffusion.grids import time_grid
from imagen_jax.diffusion.guidance import (
    DynamicThreshold,
    guided_denoiser,
    stack_conditioning,
    stacked_denoiser,
)
from imagen_jax.diffusion.noise import initial_noise
from imagen_jax.diffusion.parametrization import diffuse
from imagen_jax.diffusion.samplers import STEP_RULES
from imagen_jax.diffusion.transitions import State, Transition, move, path_transitions, start_state
from imagen_jax.errors import UserError
from imagen_jax.sharding import on_mesh
from imagen_jax.stage import SampleConfig, Stage
from imagen_jax.typing import Conditioning, Denoiser, Image, PRNGKey, TextEmbedding

OnStep = Callable[[int, int, Image], None]
"""Called after every step with its number from 1, their number, and the estimates of the clean
images [b, h, w, 3]."""


class StageInputs(NamedTuple):
    """What a stage makes images of; every array has a row for each of b images.

    Attributes:
      text: token states of the prompts.
      keys: [b] PRNG keys; an image is a function of its own row alone.
      low_res: [b, h, w, 3] in [-1, 1], what the previous stage made; None for a base stage.
      negative: text to be guided away from, in place of no text: a row whose mask is all False.
        None for no text in all rows.
      image: [b, H, W, 3] in [-1, 1] at the size of the result, to be edited; or None.
      keep: [b, H, W, 1], 1 where the image stays as it is; None where all may change.
    """

    text: TextEmbedding
    keys: PRNGKey
    low_res: Image | None = None
    negative: TextEmbedding | None = None
    image: Image | None = None
    keep: Float[Array, "b h w 1"] | None = None


@dataclasses.dataclass(frozen=True)
class Edit:
    """How a given image is edited.

    Attributes:
      strength: in (0, 1], how much noise the image is taken back to: amplitudes sin(pi s / 2) of
        noise and cos(pi s / 2) of the image, whatever the stage's schedule; 1 keeps nothing of
        what may change. The sampler takes all of its steps from there.
      resamples, jump: of inpainting, see diffusion.inpaint.
    """

    strength: float = 1.0
    resamples: int = 1
    jump: int = 1

    def __post_init__(self) -> None:
        if not 0.0 < self.strength <= 1.0:
            raise UserError(f"strength is {self.strength}; it must be in (0, 1]")
        if min(self.resamples, self.jump) < 1:
            raise UserError(f"resamples={self.resamples} and jump={self.jump} must be at least 1")


class Prepared(NamedTuple):
    """What all steps of a sampler share.

    Attributes:
      conditioning: with text_cache; stacked for guidance unless that is off.
      keys: [b], of this stage alone.
      image, keep: as in StageInputs.
    """

    conditioning: Conditioning
    keys: PRNGKey
    image: Image | None
    keep: Float[Array, "b h w 1"] | None


def sample_stage(
    stage: Stage,
    params: Any,
    inputs: StageInputs,
    settings: SampleConfig,
    *,
    size: tuple[int, int] | None = None,
    edit: Edit | None = None,
    mesh: Mesh | None = None,
    on_step: OnStep | None = None,
) -> Image:
    """Images of one stage, each a function of its own row of the inputs alone.

    Args:
      stage: what to sample from.
      params: weights of the stage's network, usually the moving average.
      inputs: what the images are made of.
      settings: how to sample.
      size: height and width; None is the stage's resolution, square.
      edit: how inputs.image is edited; None where there is none.
      mesh: that the inputs lie on; None for one device, or arrays that are copied to all.
      on_step: see OnStep.

    Returns:
      [b, h, w, 3] in [-1, 1].

    Raises:
      UserError: inputs that do not fit the stage or the size, or a time grid that cannot be made.
    """
    size = (stage.resolution, stage.resolution) if size is None else size
    _check(stage, inputs, size, edit)
    edit = edit or Edit()
    masked = inputs.keep is not None
    # 1 is static: without guidance there is no unconditional half to compute.
    guidance = None if settings.guidance == 1 else np.float32(settings.guidance)
    prepare = prepare_program(stage, guidance is not None, size, mesh)
    step = step_program(stage, _of_step(settings), masked and edit.resamples > 1, mesh)
    moves = sampler_moves(stage, settings, edit if masked else Edit(edit.strength))
    prepared, state = prepare(params, inputs, np.float32(settings.aug_level), moves.t[0])
    count = len(moves.number)
    for i in range(count):
        state = step(params, prepared, guidance, state, Transition(*(x[i] for x in moves)))
        if on_step is not None:
            on_step(i + 1, count, jax.block_until_ready(state.x0))
    return jnp.clip(state.x, -1, 1)


def sampler_moves(stage: Stage, settings: SampleConfig, edit: Edit) -> Transition:
    """[n] moves of a sampler as NumPy arrays, so that each of them is data to the same program."""
    start = 1.0
    if edit.strength < 1.0:
        logsnr = -2.0 * math.log(math.tan(0.5 * math.pi * edit.strength))
        start = float(stage.schedule.t(logsnr))
    grid = time_grid(stage.schedule, settings.steps, settings.time_grid, t_start=start)
    path = resampling_path(settings.steps, edit.resamples, edit.jump)
    moves = path_transitions(grid, path)
    return jax.tree.map(lambda x: np.asarray(x, np.float32 if x.dtype.kind == "f" else None), moves)


def _check(stage: Stage, inputs: StageInputs, size: tuple[int, int], edit: Edit | None) -> None:
    if (inputs.low_res is None) != (stage.low_res is None):
        raise UserError(
            f"stage {stage.name!r} starts from "
            + (
                "noise alone, but an image was given"
                if stage.low_res is None
                else f"an image of {stage.low_res} pixels, but none was given"
            )
        )
    multiple = stage.network.size_multiple
    if min(size) < 1 or any(side % multiple for side in size):
        raise UserError(
            f"stage {stage.name!r} cannot make images of {size[0]} x {size[1]} pixels: height "
            f"and width must be multiples of {multiple}"
        )
    if (inputs.image is None) != (edit is None):
        raise UserError("an edit needs an image, and an image an edit; one of them is None")
    if inputs.image is None and inputs.keep is not None:
        raise UserError("what is to be kept was given, but no image to keep it of")
    for name, given in (("image", inputs.image), ("keep", inputs.keep)):
        if given is not None and given.shape[1:3] != size:
            raise UserError(f"{name} has shape {given.shape}; its images must be of {size}")


def _of_step(settings: SampleConfig) -> SampleConfig:
    """Settings with one value for all that the program of a step does not depend on."""
    percentile = settings.percentile if settings.threshold == "dynamic" else 100.0
    return dataclasses.replace(
        settings, guidance=1.0, aug_level=0.0, steps=1, time_grid="uniform_t", percentile=percentile
    )


@functools.cache
def prepare_program(
    stage: Stage, guided: bool, size: tuple[int, int], mesh: Mesh | None = None
) -> Any:
    """The jitted (params, inputs, aug_level [], logsnr []) -> (Prepared, State), done once before
    all steps: text keys and values of every layer, the noised small image, and the noise that
    the first step starts from at the given logsnr."""

    def prepare(params: Any, inputs: StageInputs, aug_level: Any, logsnr: Any) -> Any:
        # Stages of a cascade share an image's key; their noise must not repeat.
        keys = jax.vmap(jax.random.fold_in, (0, None))(inputs.keys, stage.resolution)
        conditioning = stage_conditioning(stage, inputs.text, keys, inputs.low_res, aug_level, size)
        if guided:
            conditioning = stack_conditioning(conditioning, inputs.negative)
        conditioning = stage.cache_text(params, conditioning)
        x = initial_noise(keys, inputs.text.mask.shape[0], (*size, 3))
        if inputs.image is not None:
            x = diffuse(inputs.image, x, jnp.asarray(logsnr, x.dtype))
        return Prepared(conditioning, keys, inputs.image, inputs.keep), start_state(x)

    return jax.jit(prepare if mesh is None else on_mesh(prepare, mesh))


@functools.cache
def step_program(
    stage: Stage, settings: SampleConfig, goes_back: bool = False, mesh: Mesh | None = None
) -> Any:
    """The jitted (params, Prepared, guidance [], State, Transition) -> State that makes one move.

    Args:
      settings: of which the sampler and the threshold count.
      goes_back: whether moves to a noisier level occur.
      mesh: that the arrays lie on, or None.
    """

    def step(
        params: Any, prepared: Prepared, guidance: Any, state: State, transition: Transition
    ) -> State:
        denoise = stacked_denoiser(
            functools.partial(stage.apply, params),
            prepared.conditioning,
            1.0 if guidance is None else guidance,
            stage.parametrization,
            _threshold(settings),
        )
        if prepared.keep is not None:
            assert prepared.image is not None
            denoise = keep_known(denoise, prepared.image, prepared.keep)
        rule = STEP_RULES[settings.sampler](settings.steps)
        return move(rule, denoise, state, transition, prepared.keys, goes_back)

    return jax.jit(step if mesh is None else on_mesh(step, mesh))


def stage_conditioning(
    stage: Stage,
    text: TextEmbedding,
    keys: PRNGKey,
    low_res: Image | None,
    aug_level: jax.Array | float,
    size: tuple[int, int],
) -> Conditioning:
    """Conditioning of a stage's network: text, and the enlarged small image, noised.

    Args:
      keys: [b], for the noise.
      low_res: [b, h, w, 3] in [-1, 1]; None for a base stage.
      aug_level: [] how much it is noised, in [0, 1].
      size: height and width that it is enlarged to.
    """
    if low_res is None:
        return Conditioning(text)
    levels = jnp.full((text.mask.shape[0],), aug_level)
    noised = augment_low_res(keys, upsample_low_res(low_res, size), levels)
    return Conditioning(text, noised, levels)


def stage_denoiser(
    stage: Stage,
    params: Any,
    text: TextEmbedding,
    keys: PRNGKey,
    low_res: Image | None,
    settings: SampleConfig,
    guidance: jax.Array | float | None = None,
) -> Denoiser:
    """The guided and thresholded denoiser of a stage, for any sampler or edit inside one program.

    Args:
      stage, params, settings: as for sample_stage.
      text, keys, low_res: as in StageInputs; low_res is augmented with noise of settings.aug_level.
      guidance: weight in place of settings.guidance, may be traced.

    Returns:
      (x_t [b, resolution, resolution, 3], logsnr []) -> x0.
    """
    size = (stage.resolution, stage.resolution)
    return guided_denoiser(
        functools.partial(stage.apply, params),
        stage_conditioning(stage, text, keys, low_res, settings.aug_level, size),
        settings.guidance if guidance is None else guidance,
        stage.parametrization,
        _threshold(settings),
        prepare=functools.partial(stage.cache_text, params),
    )


def _threshold(settings: SampleConfig) -> Any:
    if settings.threshold == "dynamic":
        return DynamicThreshold(settings.percentile)
    return settings.threshold


def whole_sampler(stage: Stage, settings: SampleConfig, size: tuple[int, int] | None = None) -> Any:
    """All of sample_stage in one function to be jitted, where it has to be one program.

    Returns:
      (params, inputs, guidance [] or None, aug_level []) -> [b, h, w, 3] in [-1, 1], where guidance
      is None for a weight of 1. It takes settings.steps steps.
    """
    size = (stage.resolution, stage.resolution) if size is None else size
    moves = sampler_moves(stage, settings, Edit())

    def sample(params: Any, inputs: StageInputs, guidance: Any, aug_level: Any) -> Image:
        prepare = prepare_program(stage, guidance is not None, size)
        step = step_program(stage, _of_step(settings))
        prepared, state = prepare(params, inputs, aug_level, moves.t[0])

        def body(state: State, transition: Transition) -> tuple[State, None]:
            return step(params, prepared, guidance, state, transition), None

        state, _ = jax.lax.scan(body, state, jax.tree.map(jnp.asarray, moves))
        return jnp.clip(state.x, -1, 1)

    return sample


def to_uint8(images: Float[Array, "*b h w 3"]) -> Any:
    """[-1, 1] to 0 ... 255, rounding to nearest; a NumPy array."""
    return jax.device_get(_quantised(images))


@jax.jit
def _quantised(images: jax.Array) -> jax.Array:
    return jnp.round((jnp.clip(images, -1, 1) + 1) * 127.5).astype(jnp.uint8)


def from_uint8(images: np.ndarray) -> np.ndarray:
    """0 ... 255 to float32 in [-1, 1]; to_uint8 gives the same back."""
    return np.asarray(images, np.float32) / np.float32(127.5) - np.float32(1)


def image_keys(seeds: Any) -> PRNGKey:
    """One key per image from its seed: the same seed is the same noise, wherever it stands.

    Args:
      seeds: [b] integers in [0, 2**32).
    """
    return _keys(jnp.asarray(seeds, jnp.uint32))


_keys = jax.jit(jax.vmap(jax.random.key))
