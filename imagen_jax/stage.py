"""Stage: one stage of the cascade, and the sections of a config that describe it.

A stage joins a network, a diffusion process, the view of the data that it trains on, and the
defaults it is sampled with. Training and sampling both start from here, so that they cannot
disagree. The sections are frozen dataclasses whose fields say which keys there must be.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from imagen_jax.config import build
from imagen_jax.diffusion.grids import TIME_GRIDS
from imagen_jax.diffusion.guidance import THRESHOLDS
from imagen_jax.diffusion.loss import TIME_SAMPLING, WEIGHTINGS
from imagen_jax.diffusion.parametrization import PARAMETRIZATIONS
from imagen_jax.diffusion.samplers import parse_sampler
from imagen_jax.diffusion.schedule import SCHEDULES, NoiseSchedule
from imagen_jax.errors import UserError
from imagen_jax.models.base import TEXT_CACHE, BaseNetwork
from imagen_jax.models.networks import network_class
from imagen_jax.typing import Conditioning, TextEmbedding

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
    if not low <= value <= high:
        raise UserError(f"{field} is {value}; it must be in [{low:g}, {high:g}]")


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
    max_bad_steps: int = 10
    max_damaged: float = 0.0

    def __post_init__(self) -> None:
        for field in ("batch_size", "accumulation", "steps", "log_every", "checkpoint_every",
                      "keep_checkpoints", "max_bad_steps"):  # fmt: skip
            _check_range(self, field, 1)
        for field in ("ema_decay", "text_dropout", "max_aug_level", "max_damaged"):
            _check_range(self, field, 0, 1)
        for field in ("learning_rate", "clip_norm", "keep_every_hours", "keep_best",
                      "sample_every", "validation_batches", "evaluate_every"):  # fmt: skip
            _check_range(self, field, 0)
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
                f"{self.steps}"
            )


@dataclasses.dataclass(frozen=True)
class MeshConfig:
    """Sizes of the axes of the device mesh that the stage trains on; one may be -1, which takes all
    remaining devices. See sharding.MESH_AXES for what each divides."""

    slice: int = 1
    data: int = 1
    fsdp: int = 1
    spatial: int = 1
    tensor: int = 1

    def axes(self) -> dict[str, int]:
        """Sizes by axis, for sharding.make_mesh."""
        return dataclasses.asdict(self)


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


@dataclasses.dataclass(frozen=True)
class Stage:
    """A cascade stage, ready to be initialised, trained or sampled.

    Example:
      >>> from imagen_jax import load_config
      >>> from imagen_jax.stage import make_stage
      >>> stage = make_stage(load_config("quickstart"), "sr")
      >>> stage.low_res, stage.resolution
      (32, 64)

    Attributes:
      name: key in config.stages and the directory under the work directory.
      resolution: pixels per side of what the stage makes.
      low_res: pixels per side of the image that it starts from; None for the base stage.
      crop: pixels per side of the random crops that it is trained on; None for whole images.
      align_corners: see diffusion.augment.upsample_low_res.
      network: see models.base.
      schedule: noise schedule of training.
    """

    name: str
    resolution: int
    low_res: int | None
    crop: int | None
    align_corners: bool
    text: TextConfig
    network: BaseNetwork
    schedule: NoiseSchedule
    diffusion: DiffusionConfig
    train: TrainConfig
    sample: SampleConfig
    mesh: MeshConfig

    def __post_init__(self) -> None:
        multiple = self.network.size_multiple
        for size in (self.resolution, self.train_resolution):
            if size % multiple:
                raise UserError(
                    f"stage {self.name!r} has images of {size} x {size} pixels; its network needs "
                    f"multiples of {multiple}"
                )

    @property
    def parametrization(self) -> str:
        """Prediction of the network, one of diffusion.PARAMETRIZATIONS."""
        return self.diffusion.parametrization

    @property
    def train_resolution(self) -> int:
        """Pixels per side of the images that it is trained on."""
        return self.crop or self.resolution

    @property
    def train_low_res(self) -> int | None:
        """Pixels per side of the low-resolution images that it is trained on."""
        if self.low_res is None:
            return None
        return self.train_resolution * self.low_res // self.resolution

    @property
    def batch_names(self) -> tuple[str, ...]:
        """Entries of a training batch."""
        names = ("image", "text_emb", "text_mask")
        return names if self.low_res is None else (*names, "low_res")

    def with_network(self, network: BaseNetwork) -> Stage:
        """The stage with another network, such as stage.network.with_dtype("bfloat16")."""
        return dataclasses.replace(self, network=network)

    def init(self, key: jax.Array) -> Any:
        """Fresh parameters, boxed with the names of their logical axes where they have them.

        Raises:
          UserError: the network has other variables than parameters.
        """
        variables = dict(self.network.init(key, *self.dummy_inputs(1)))
        params = variables.pop("params", {})
        if variables:
            raise UserError(
                f"network {type(self.network).__name__} has variables in {sorted(variables)}; a "
                "stage keeps 'params' alone (no batch norm, no other state)"
            )
        return params

    def apply(
        self,
        params: Any,
        x: jax.Array,
        logsnr: jax.Array,
        conditioning: Conditioning,
        train: bool = False,
        dropout_key: jax.Array | None = None,
    ) -> jax.Array:
        """Output of the network for x [b, h, w, 3] at logsnr [b]: its prediction [b, h, w, 3], or
        [b, h, w, 6] with BaseNetwork.predicts_variance.

        Raises:
          UserError: the network returns another shape or dtype.
          ValueError: low_res and aug_level are missing in a super-resolution stage, or given in a
            base stage.
        """
        for name in ("low_res", "aug_level"):
            if (getattr(conditioning, name) is None) != (self.low_res is None):
                needs = "takes no" if self.low_res is None else "needs"
                raise ValueError(f"stage {self.name!r} {needs} conditioning.{name}")
        rngs = None if dropout_key is None else {"dropout": dropout_key}
        variables = {"params": params}
        if conditioning.text_cache is not None:
            variables[TEXT_CACHE] = conditioning.text_cache
        output: Any = self.network.apply(variables, x, logsnr, conditioning, train, rngs=rngs)
        channels = x.shape[-1] * (2 if self.network.predicts_variance else 1)
        wanted = (*x.shape[:-1], channels)
        if output.shape != wanted or output.dtype != jnp.float32:
            raise UserError(
                f"network {type(self.network).__name__} returns {output.dtype}{output.shape} for "
                f"images of shape {x.shape}; it must return float32{wanted}"
            )
        return output

    def cache_text(self, params: Any, conditioning: Conditioning) -> Conditioning:
        """Conditioning with all that the network computes from the text alone, such as keys and
        values of attention to text: all that it wraps in `cached`.

        To be called under jit, where what the network computes from the zero images given here is
        never run.
        """
        x, logsnr, dummy = self.dummy_inputs(conditioning.text.mask.shape[0])
        given = dummy._replace(text=conditioning.text)
        _, cache = self.network.apply({"params": params}, x, logsnr, given, mutable=[TEXT_CACHE])
        return conditioning._replace(text_cache=cache.get(TEXT_CACHE))

    def dummy_inputs(self, batch_size: int) -> tuple[Any, ...]:
        """Inputs of the right shapes for training, all zero."""
        image = jnp.zeros((batch_size, self.train_resolution, self.train_resolution, 3))
        scalars = jnp.zeros(batch_size)
        text = TextEmbedding(
            jnp.zeros((batch_size, self.text.max_length, self.text.width)),
            jnp.zeros((batch_size, self.text.max_length), bool),
        )
        if self.low_res is None:
            return image, scalars, Conditioning(text)
        return image, scalars, Conditioning(text, image, scalars)


def check_stage_name(name: Any) -> None:
    """Check the name of a stage, which is a part of paths.

    Raises:
      UserError: it is no plain name.
    """
    if not isinstance(name, str) or not re.fullmatch(r"[A-Za-z0-9_-]+", name):
        raise UserError(f"a stage is called {name!r}; names are of letters, digits, _ and -")


def make_stage(config: ConfigDict, name: str | None) -> Stage:
    """The stage called `name` of a config; None for its only one.

    Raises:
      UserError: an unknown stage, a misspelt or missing key, or values that do not fit together;
        the message names the key and the choices.
    """
    if name is None:
        if len(config.stages) > 1:
            raise UserError(f"which stage? This config has {', '.join(sorted(config.stages))}")
        (name,) = config.stages
    if name not in config.stages:
        raise UserError(f"unknown stage {name!r}; this config has {sorted(config.stages)}")
    where = f"stages.{name}"
    for of in config.stages:
        check_stage_name(of)
    # All of them: a misspelt key is an error now, not when its stage's turn comes.
    sections = {of: build(StageConfig, config.stages[of], f"stages.{of}") for of in config.stages}
    section = sections[name]
    network = dict(section.network)
    network_type = network_class(network.pop("kind", None), f"{where}.network")
    schedule = dict(section.schedule)
    schedule_kind = schedule.pop("kind", None)
    if schedule_kind not in SCHEDULES:
        raise UserError(
            f"{where}.schedule.kind is {schedule_kind!r}; choices: {', '.join(SCHEDULES)}"
        )
    low_res = section.low_res
    if low_res is not None and section.resolution % low_res:
        raise UserError(
            f"{where}: resolution {section.resolution} is not a multiple of low_res {low_res}"
        )
    if section.crop and low_res and section.crop * low_res % section.resolution:
        raise UserError(
            f"{where}: a crop of {section.crop} of {section.resolution} pixels is no whole number "
            f"of the {low_res} pixels of low resolution"
        )
    if schedule.get("image_size", section.resolution) != section.resolution:
        raise UserError(
            f"{where}.schedule.image_size is {schedule['image_size']}, but the stage's resolution "
            f"is {section.resolution}; they must be equal"
        )
    return Stage(
        name=name,
        resolution=section.resolution,
        low_res=low_res,
        crop=section.crop,
        align_corners=section.align_corners,
        text=build(TextConfig, config.text, "text"),
        network=build(network_type, network, f"{where}.network"),
        schedule=build(SCHEDULES[schedule_kind], schedule, f"{where}.schedule"),
        diffusion=section.diffusion,
        train=section.train,
        sample=section.sample,
        mesh=section.mesh,
    )
