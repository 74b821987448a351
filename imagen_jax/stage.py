"""Stage: one stage of the cascade, made from the sections of a config (stage_config.py).

A stage joins a network, a diffusion process, the view of the data that it trains on, and the
defaults it is sampled with. Training and sampling both start from here, so that they cannot
disagree.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from imagen_jax.config import build
from imagen_jax.diffusion.schedule import SCHEDULES, NoiseSchedule
from imagen_jax.errors import UserError
from imagen_jax.models.base import TEXT_CACHE, BaseNetwork
from imagen_jax.models.networks import check_size, network_class
from imagen_jax.stage_config import (
    DiffusionConfig,
    MeshConfig,
    SampleConfig,
    StageConfig,
    TextConfig,
    TrainConfig,
)
from imagen_jax.typing import Conditioning, TextEmbedding

MAX_STAGES = 32
"""Stages of a cascade."""


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
        if multiple < 1:
            raise UserError(
                f"the network of stage {self.name!r} takes images of multiples of {multiple} "
                "pixels; numbers in its section `network`, such as patch, must be at least 1"
            )
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
          UserError: the network has other variables than parameters, or a size of 0.
        """
        try:
            variables = dict(self.network.init(key, *self.dummy_inputs(1)))
        except ZeroDivisionError as error:
            raise UserError(
                f"network {type(self.network).__name__} of stage {self.name!r} cannot be made: one "
                "of its sizes is below 1"
            ) from error
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


def check_stage_names(names: Sequence[Any]) -> None:
    """Check the names of the stages of a cascade, which are parts of paths.

    Raises:
      UserError: one is no plain name, one comes twice, or they are more than MAX_STAGES.
    """
    for name in names[: MAX_STAGES + 1]:
        if not isinstance(name, str) or not re.fullmatch(r"[A-Za-z0-9_-]+", name):
            raise UserError(f"a stage is called {name!r}; names are of letters, digits, _ and -")
    if len(names) > MAX_STAGES:
        raise UserError(f"the cascade has {len(names):,} stages; at most {MAX_STAGES} are read")
    if len(set(names)) < len(names):
        raise UserError(f"a stage comes twice in the cascade: {', '.join(names)}")


def make_stage(config: ConfigDict, name: str | None) -> Stage:
    """The stage called `name` of a config; None for its only one.

    Raises:
      UserError: an unknown stage, a misspelt or missing key, or values that do not fit together;
        the message names the key and the choices.
    """
    if name is None:
        if len(config.stages) > 1:
            raise UserError(f"which stage? Choices: {', '.join(sorted(config.stages))}")
        (name,) = config.stages
    if name not in config.stages:
        raise UserError(f"unknown stage {name!r}; choices: {', '.join(sorted(config.stages))}")
    where = f"stages.{name}"
    check_stage_names(tuple(config.stages))
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
    made = build(network_type, network, f"{where}.network")
    check_size(made, f"{where}.network")
    return Stage(
        name=name,
        resolution=section.resolution,
        low_res=low_res,
        crop=section.crop,
        align_corners=section.align_corners,
        text=build(TextConfig, config.text, "text"),
        network=made,
        schedule=build(SCHEDULES[schedule_kind], schedule, f"{where}.schedule"),
        diffusion=section.diffusion,
        train=section.train,
        sample=section.sample,
        mesh=section.mesh,
    )
