"""Sampling of one stage: guidance, thresholding and a sampler around its network.

One compiled program makes one move of the sampler and is called again and again, see
stage_programs. Between two moves anyone may look at the estimate, or stop.
"""

from __future__ import annotations

import collections
import dataclasses
import math
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Float

from imagen_jax.diffusion.editing import resampling_path
from imagen_jax.diffusion.grids import time_grid
from imagen_jax.diffusion.samplers import parse_sampler, sample
from imagen_jax.diffusion.transitions import Transition, path_transitions
from imagen_jax.errors import UserError
from imagen_jax.stage import Stage
from imagen_jax.stage_config import SampleConfig
from imagen_jax.stage_programs import (
    Padding,
    StageInputs,
    guidance_of,
    pad_program,
    prepare_program,
    prepared_denoiser,
    stage_keys,
    step_program,
    threshold_of,
)
from imagen_jax.typing import Image, PRNGKey


@dataclasses.dataclass(frozen=True)
class Edit:
    """Settings for editing a given image.

    Attributes:
      strength: img2img strength in (0, 1], how much noise the image is taken back to: amplitudes
        sin(pi s / 2) of noise and cos(pi s / 2) of the image, whatever the stage's schedule; 1
        keeps nothing of what may change. The sampler takes all of its steps from there.
      resamples, jump: settings of inpainting, see diffusion.editing.resampling_path.
    """

    strength: float = 1.0
    resamples: int = 1
    jump: int = 1

    def __post_init__(self) -> None:
        if not 0.0 < self.strength <= 1.0:
            raise UserError(f"strength is {self.strength}; it must be in (0, 1]")
        if min(self.resamples, self.jump) < 1:
            raise UserError(f"resamples={self.resamples} and jump={self.jump} must be at least 1")


def sample_stage(
    stage: Stage,
    params: Any,
    inputs: StageInputs,
    settings: SampleConfig,
    *,
    size: tuple[int, int] | None = None,
    edit: Edit | None = None,
    mesh: Mesh | None = None,
) -> Image:
    """Return the images of one stage, each a function of its own row of the inputs alone.

    Args: see sample_steps.

    Returns:
      [b, h, w, 3] in [-1, 1].

    Raises:
      UserError: inputs that do not fit the stage or the size, or a time grid that cannot be made.
    """
    steps = sample_steps(stage, params, inputs, settings, size=size, edit=edit, mesh=mesh)
    (x0,) = collections.deque(steps, maxlen=1)
    return jnp.clip(x0, -1, 1)


def sample_steps(
    stage: Stage,
    params: Any,
    inputs: StageInputs,
    settings: SampleConfig,
    *,
    size: tuple[int, int] | None = None,
    edit: Edit | None = None,
    mesh: Mesh | None = None,
) -> Iterator[Image]:
    """Yield the estimates of the clean images after every move of the sampler; the last are they.

    Args:
      stage: the stage to sample.
      params: weights of the stage's network, usually the EMA.
      inputs: text, keys and images to sample from.
      settings: sampling settings.
      size: height and width; None is the stage's resolution, square.
      edit: edit of inputs.image; None without an edit.
      mesh: mesh that the inputs lie on; None for one device, or arrays that are copied to all.

    Yields:
      [b, h, w, 3], not clipped; number_of_moves of them.

    Raises:
      UserError: as sample_stage, at the first move.
    """
    size = (stage.resolution, stage.resolution) if size is None else size
    _check(stage, inputs, settings, size, edit)
    edit = edit or Edit()
    grid, path = noise_levels(stage, settings, edit, masked=inputs.mask is not None)
    moves: Transition = jax.tree.map(np.asarray, path_transitions(grid, path))
    pad = Padding.of(stage, settings)
    guidance = guidance_of(settings)
    padded = pad_program(pad, mesh)(inputs) if pad.image else inputs
    prepare = prepare_program(stage, guidance is not None, pad.around(size), mesh)
    step = step_program(
        stage,
        parse_sampler(settings.sampler),
        threshold_of(settings),
        bool((np.diff(path) < 0).any()),
        mesh,
    )
    conditioning, state = prepare(params, padded, np.float32(settings.aug_level), moves.t[0])
    for i in range(len(moves.number)):
        transition = Transition(*(x[i] for x in moves))
        state = step(params, padded, conditioning, guidance, state, transition)
        yield pad.within(state.x0)


def number_of_moves(settings: SampleConfig, edit: Edit | None, masked: bool) -> int:
    """Return how many moves a sampler makes."""
    edit = edit if edit is not None and masked else Edit()
    return len(resampling_path(settings.steps, edit.resamples, edit.jump)) - 1


def noise_levels(
    stage: Stage, settings: SampleConfig, edit: Edit, masked: bool = False
) -> tuple[Float[Array, " points"], np.ndarray]:
    """Return the time grid of a stage, and the path [n + 1] through it."""
    start = 1.0
    if edit.strength < 1.0:
        logsnr = -2.0 * math.log(math.tan(0.5 * math.pi * edit.strength))
        start = float(stage.schedule.t(logsnr))
    grid = time_grid(stage.schedule, settings.steps, settings.time_grid, start, settings.end_logsnr)
    walks = edit if masked else Edit()
    return grid, resampling_path(settings.steps, walks.resamples, walks.jump)


def _check(
    stage: Stage,
    inputs: StageInputs,
    settings: SampleConfig,
    size: tuple[int, int],
    edit: Edit | None,
) -> None:
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
    padded = Padding.of(stage, settings).around(size)
    if min(size) < 1 or any(side % multiple for side in padded):
        with_pad = f", which pad={settings.pad} makes {padded[0]} x {padded[1]}" * (padded != size)
        raise UserError(
            f"stage {stage.name!r} cannot make images of {size[0]} x {size[1]} pixels{with_pad}: "
            f"height and width must be multiples of {multiple}"
        )
    if (inputs.image is None) != (edit is None):
        raise UserError("an edit needs an image, and an image an edit; one of them is None")
    if inputs.image is None and inputs.mask is not None:
        raise UserError("a mask was given, but no image to edit")
    for name, given in (("image", inputs.image), ("mask", inputs.mask)):
        if given is not None and given.shape[1:3] != size:
            raise UserError(f"{name} has shape {given.shape}; its images must be of {size}")


def whole_sampler(
    stage: Stage, settings: SampleConfig, size: tuple[int, int] | None = None
) -> Callable[[Any, StageInputs, Any, jax.Array], Image]:
    """Return all of sample_stage as one function to be jitted, where it has to be one program.

    Returns:
      (params, inputs, guidance [] or None, aug_level []) -> [b, h, w, 3] in [-1, 1], where guidance
      is the scale, and None for a scale of 1. It takes settings.steps steps.
    """
    size = (stage.resolution, stage.resolution) if size is None else size
    grid, _ = noise_levels(stage, settings, Edit())
    pad = Padding.of(stage, settings)
    sampler, threshold = parse_sampler(settings.sampler), threshold_of(settings)

    def sample_all(params: Any, inputs: StageInputs, guidance: Any, aug_level: Any) -> Image:
        inputs = pad.pad(inputs)
        guidance = None if guidance is None else guidance_of(settings, guidance)
        prepare = prepare_program(stage, guidance is not None, pad.around(size))
        conditioning, state = prepare(params, inputs, aug_level, grid[0])
        denoise = prepared_denoiser(stage, params, inputs, conditioning, guidance, threshold)
        x0 = sample(sampler, denoise, state.x, grid, stage_keys(stage, inputs))
        return jnp.clip(pad.within(x0), -1, 1)

    return sample_all


def to_uint8(images: Float[Array, "*b h w 3"]) -> Any:
    """Return images in [-1, 1] as 0 ... 255, rounded to nearest, in a NumPy array."""
    return jax.device_get(_quantised(images))


@jax.jit
def _quantised(images: jax.Array) -> jax.Array:
    return jnp.round((jnp.clip(images, -1, 1) + 1) * 127.5).astype(jnp.uint8)


def from_uint8(images: np.ndarray) -> np.ndarray:
    """Return 0 ... 255 as float32 in [-1, 1]; to_uint8 gives the same back."""
    return np.asarray(images, np.float32) / np.float32(127.5) - np.float32(1)


def image_keys(seeds: Any) -> PRNGKey:
    """Return one key per image: the same seed is the same noise, wherever it stands.

    Args:
      seeds: [b] whole numbers in [0, 2**32).
    """
    return _keys(jnp.asarray(seeds, jnp.uint32))


_keys = jax.jit(jax.vmap(jax.random.key))
