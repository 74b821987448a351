"""The sections of a config that describe the stages of a cascade.

Frozen dataclasses: their fields say which keys there must be, and their checks which values.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Mapping
from typing import Any

from imagen_jax.diffusion.grids import TIME_GRIDS
from imagen_jax.diffusion.guidance import THRESHOLDS
from imagen_jax.diffusion.loss import TIME_SAMPLING, WEIGHTINGS
from imagen_jax.diffusion.parametrization import PARAMETRIZATIONS
from imagen_jax.diffusion.samplers import parse_sampler
from imagen_jax.errors import UserError

VALIDATION_LOSS = "validation_loss"
FRECHET = "frechet_mobilenet_v2"
KERNEL = "kernel_mobilenet_v2"
ALL_CORRECT = "all_correct"

BETTER = {VALIDATION_LOSS: -1, FRECHET: -1, KERNEL: -1, ALL_CORRECT: 1}
"""Measurement by which checkpoints are ranked -> 1 where higher is better, -1 where lower is."""

CHANGEABLE = (
    "log_every", "sample_every", "checkpoint_every", "keep_checkpoints", "keep_every_hours",
    "keep_best", "best_metric", "validation_batches", "evaluate_every", "evaluate_images",
    "max_bad_steps", "max_damaged",
)  # fmt: skip
"""Fields of TrainConfig that decide no weight: a resumed run may change them."""


def _check_choice(config: Any, field: str, choices: Iterable[str]) -> None:
    value = getattr(config, field)
    if value not in choices:
        raise UserError(f"{field} is {value!r}; choices: {', '.join(choices)}")


def _check_range(config: Any, field: str, low: float, high: float = float("inf")) -> None:
    value = getattr(config, field)
    if not low <= value <= high or math.isinf(value):
        end = "inf)" if math.isinf(high) else f"{high:.10g}]"
        raise UserError(f"{field} is {value}; it must be in [{low:g}, {end}")


@dataclasses.dataclass(frozen=True)
class TextConfig:
    """The frozen text encoder whose token states condition every stage.

    Attributes:
      encoder: name of the encoder; the embeddings' manifest must agree.
      width: channels of a token state.
      max_length: tokens a caption may have; longer ones are an error.
    """

    encoder: str
    width: int
    max_length: int


@dataclasses.dataclass(frozen=True)
class DiffusionConfig:
    """Prediction and loss; the choices are the keys of imagen_jax.diffusion's tables.

    Raises:
      UserError: another choice, as the classes below for values out of range.
    """

    parametrization: str
    weighting: str
    time_sampling: str

    def __post_init__(self) -> None:
        _check_choice(self, "parametrization", PARAMETRIZATIONS)
        _check_choice(self, "weighting", WEIGHTINGS)
        _check_choice(self, "time_sampling", TIME_SAMPLING)


@dataclasses.dataclass(frozen=True)
class SampleConfig:
    """Defaults that the stage is sampled with.

    Attributes:
      sampler: key of diffusion.samplers.SAMPLERS, with options as in "ddim(eta=0.5)".
      steps: steps of the sampler; heun calls the network twice in each but the last.
      time_grid: spacing of the steps, a kind of diffusion.grids.time_grid.
      guidance: classifier-free guidance scale; 1 is off.
      threshold: "dynamic", "static" or "none".
      percentile: percentile of dynamic thresholding, in (0, 100].
      aug_level: noise conditioning augmentation of the low-resolution image, in [0, 1].
      guidance_min_logsnr: noisier levels than this are not guided; None is no bound.
      guidance_max_logsnr: cleaner levels than this are not guided; None is no bound.
      threshold_cap: most that dynamic thresholding divides by, at least 1 (diffusers calls it
        sample_max_value); None is no bound.
      end_logsnr: noise level of the last call of the network, see diffusion.grids.time_grid; None
        follows from the number of steps.
      pad: low-resolution pixels that the edges of the low-resolution image are continued by while
        the stage samples; what is made of them is cut off. A base stage has none.
    """

    sampler: str
    steps: int
    time_grid: str
    guidance: float
    threshold: str
    percentile: float
    aug_level: float
    guidance_min_logsnr: float | None = None
    guidance_max_logsnr: float | None = None
    threshold_cap: float | None = None
    end_logsnr: float | None = None
    pad: int = 0

    def __post_init__(self) -> None:
        parse_sampler(self.sampler)
        _check_choice(self, "time_grid", TIME_GRIDS)
        _check_choice(self, "threshold", THRESHOLDS)
        _check_range(self, "steps", 1, 1000)
        _check_range(self, "guidance", 0, 1000)
        _check_range(self, "percentile", 1e-3, 100)
        _check_range(self, "aug_level", 0, 1)
        _check_range(self, "pad", 0, 64)
        for field in ("guidance_min_logsnr", "guidance_max_logsnr", "end_logsnr"):
            if getattr(self, field) is not None:
                _check_range(self, field, -20, 20)
        if self.threshold_cap is not None:
            _check_range(self, "threshold_cap", 1)
        low, high = self.guidance_min_logsnr, self.guidance_max_logsnr
        if low is not None and high is not None and low >= high:
            raise UserError(
                f"guidance_min_logsnr is {low}; it must be below guidance_max_logsnr, {high}"
            )


@dataclasses.dataclass(frozen=True)
class TrainConfig:
    """Training of a stage.

    Attributes:
      batch_size: examples per step, over all hosts.
      accumulation: number of parts that the batch is divided into; their gradients are averaged,
        so that the step is the same with less memory for activations.
      steps: optimiser steps.
      optimizer: key of train.optimizer.OPTIMIZERS.
      learning_rate: peak; linear warmup over `warmup_steps`, then cosine decay to zero at `steps`.
      clip_norm: global norm that gradients are clipped to.
      ema_decay: decay of the weights' moving average, which is what is sampled from.
      text_dropout: share of examples trained without text, for classifier-free guidance.
      max_aug_level: aug_level is uniform on [0, max_aug_level] in training; 1 in the paper.
      max_damaged: largest share of damaged records that a host may read; they are reported and
        skipped.
      seed: seed of initialisation, noise, dropout and data order.
      log_every, checkpoint_every: steps between the respective events.
      sample_every: steps between grids of samples; the last step has one, too; 0 disables.
      keep_checkpoints: number of newest checkpoints to keep.
      keep_every_hours: keep one older checkpoint every N hours; 0 disables.
      keep_best: number of best checkpoints by `best_metric` to keep as well.
      best_metric: key of BETTER; it must be measured.
      validation_batches: batches of the split "validation" on which the EMA weights' loss is
        measured at every checkpoint; 0 disables.
      evaluate_every: steps between evaluations of sampled images, a multiple of checkpoint_every;
        0 disables. See train.evaluation.
      evaluate_images: images to sample for each evaluation; the split "validation" needs twice this
        number.
      extra_ema_decays: decays of further averages, which can be sampled from in place of the first.
      freeze: patterns of names of parameters that are not trained, such as "conv_in/*".
      lora_rank: rank of the change of weights that is trained in place of them, see train.lora; 0
        trains the weights.
      lora_layers: patterns of names of the kernels that it changes.
      max_bad_steps: steps with NaN or infinity are skipped; this many in a row end training.
    """

    batch_size: int
    steps: int
    optimizer: str
    learning_rate: float
    warmup_steps: int
    clip_norm: float
    ema_decay: float
    text_dropout: float
    max_aug_level: float
    seed: int
    log_every: int
    sample_every: int
    checkpoint_every: int
    keep_checkpoints: int
    accumulation: int = 1
    keep_every_hours: float = 0.0
    keep_best: int = 0
    best_metric: str = VALIDATION_LOSS
    validation_batches: int = 0
    evaluate_every: int = 0
    evaluate_images: int = 64
    extra_ema_decays: tuple[float, ...] = ()
    freeze: tuple[str, ...] = ()
    lora_rank: int = 0
    lora_layers: tuple[str, ...] = ("*attention*",)
    max_bad_steps: int = 10
    max_damaged: float = 0.0

    def __post_init__(self) -> None:
        for field in ("batch_size", "accumulation", "steps", "log_every", "checkpoint_every",
                      "keep_checkpoints", "max_bad_steps"):  # fmt: skip
            _check_range(self, field, 1)
        for field in ("ema_decay", "text_dropout", "max_aug_level", "max_damaged"):
            _check_range(self, field, 0, 1)
        for field in ("learning_rate", "keep_every_hours", "keep_best", "sample_every",
                      "validation_batches", "evaluate_every", "lora_rank"):  # fmt: skip
            _check_range(self, field, 0)
        if self.lora_rank and (self.freeze or self.ema_decay or self.extra_ema_decays):
            raise UserError(
                "lora_rank trains a change of the weights in lora_layers alone, without averages; "
                "set ema_decay to 0, and extra_ema_decays and freeze to ()"
            )
        _check_range(self, "clip_norm", 1e-9)  # gradients of norm 0 would teach nothing
        _check_range(self, "evaluate_images", 2)
        if self.evaluate_every % self.checkpoint_every:
            raise UserError(
                f"evaluate_every is {self.evaluate_every}; it must be a multiple of "
                f"checkpoint_every, {self.checkpoint_every}, so that what was measured is kept"
            )
        _check_choice(self, "best_metric", BETTER)
        by_loss = self.best_metric == VALIDATION_LOSS
        measured = self.validation_batches if by_loss else self.evaluate_every
        if self.keep_best and not measured:
            needed = "validation_batches" if by_loss else "evaluate_every"
            raise UserError(
                f"keep_best is {self.keep_best}, but {needed} is 0: the best checkpoints are those "
                f"with the best {self.best_metric} (best_metric), which is not measured"
            )
        decays = (self.ema_decay, *self.extra_ema_decays)
        if len({*decays}) < len(decays) or not all(0 <= decay <= 1 for decay in decays):
            raise UserError(
                f"extra_ema_decays is {self.extra_ema_decays}; it must have values in [0, 1] that "
                f"differ from one another and from ema_decay, {self.ema_decay}"
            )
        _check_range(self, "seed", 0, 2**31 - 2)
        if self.batch_size % self.accumulation:
            raise UserError(
                f"batch_size {self.batch_size} cannot be taken in {self.accumulation} parts "
                "(accumulation)"
            )
        if not 0 <= self.warmup_steps < self.steps:
            raise UserError(
                f"warmup_steps is {self.warmup_steps}; it must be in [0, steps) with steps = "
                f"{self.steps}; for a short run, set it to 0"
            )


@dataclasses.dataclass(frozen=True)
class MeshConfig:
    """Sizes of the axes of the device mesh that the stage trains on; one may be -1, which takes all
    remaining devices, and slice = 1 is as many slices as there are. See sharding.MESH_AXES for what
    each divides."""

    slice: int = 1
    data: int = 1
    fsdp: int = 1
    spatial: int = 1
    tensor: int = 1

    def axes(self) -> dict[str, int]:
        """Sizes by axis, for sharding.make_mesh."""
        return dataclasses.asdict(self)


MAX_RESOLUTION = 2**16
"""Pixels per side of images."""


@dataclasses.dataclass(frozen=True)
class StageConfig:
    """One entry of config.stages, before its network and schedule are made.

    Attributes:
      resolution: pixels per side of what the stage makes.
      low_res: pixels per side of the image that it starts from; None for the base stage.
      network: "kind", a key of models.networks.NETWORKS or "module:Class", and the fields of that
        class.
      schedule: "kind", a key of diffusion.schedule.SCHEDULES, and the fields of that class.
      mesh: devices that it trains on; may change when training resumes.
      crop: pixels per side of the random crops that it is trained on; None for whole images.
      align_corners: see diffusion.augment.upsample_low_res; False in all stages of our own.
    """

    resolution: int
    network: Mapping[str, Any]
    schedule: Mapping[str, Any]
    diffusion: DiffusionConfig
    train: TrainConfig
    sample: SampleConfig
    mesh: MeshConfig = MeshConfig(data=-1)
    low_res: int | None = None
    crop: int | None = None
    align_corners: bool = False

    def __post_init__(self) -> None:
        for field in ("low_res", "crop"):
            value = getattr(self, field)
            if value is not None and value < 1:
                raise UserError(f"{field} is {value}; it must be at least 1, or left out for none")
        if not 1 <= self.resolution <= MAX_RESOLUTION:
            raise UserError(
                f"resolution is {self.resolution}; it must be from 1 to {MAX_RESOLUTION:,}"
            )
