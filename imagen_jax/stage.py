"""Stage: one stage of the cascade, as a config describes it.

A stage joins a network, a diffusion process, the view of the data that it trains on, and the
defaults it is sampled with. Training and sampling both start from here, so that they cannot
disagree.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from imagen_jax.config import build
from imagen_jax.diffusion.schedule import SCHEDULES, NoiseSchedule
from imagen_jax.errors import UserError
from imagen_jax.models.efficient_unet import EfficientUNet
from imagen_jax.models.layers import TEXT_CACHE
from imagen_jax.models.unet import UNet
from imagen_jax.stage_config import (
    DiffusionConfig,
    MeshConfig,
    SampleConfig,
    StageConfig,
    TextConfig,
    TrainConfig,
)
from imagen_jax.typing import Conditioning, TextEmbedding

NETWORKS: dict[str, type[nn.Module]] = {"unet": UNet, "efficient_unet": EfficientUNet}


@dataclasses.dataclass(frozen=True)
class Stage:
    """A cascade stage, ready to be initialised, trained or sampled.

    Attributes:
      name: key in config.stages and the directory under the work directory.
      resolution: pixels per side of what the stage makes.
      low_res: pixels per side of the image that it starts from; None for the base stage.
      crop: pixels per side of the random crops that it is trained on; None for whole images.
      network: (x_t, logsnr, conditioning, train) -> prediction.
      schedule: noise schedule of training, and of noise conditioning augmentation.
      parametrization: what the network predicts, one of diffusion.PARAMETRIZATIONS.
    """

    name: str
    resolution: int
    low_res: int | None
    crop: int | None
    text: TextConfig
    network: nn.Module
    schedule: NoiseSchedule
    parametrization: str
    diffusion: DiffusionConfig
    train: TrainConfig
    sample: SampleConfig
    mesh: MeshConfig

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

    def init(self, key: jax.Array) -> Any:
        """Fresh parameters, boxed with the names of their logical axes."""
        return self.network.init(key, *self.dummy_inputs(1))["params"]

    def apply(
        self,
        params: Any,
        x: jax.Array,
        logsnr: jax.Array,
        conditioning: Conditioning,
        train: bool = False,
        dropout_key: jax.Array | None = None,
    ) -> jax.Array:
        """Prediction [b, h, w, 3] of the network for x [b, h, w, 3] at logsnr [b]."""
        rngs = None if dropout_key is None else {"dropout": dropout_key}
        variables = {"params": params}
        if conditioning.text_cache is not None:
            variables[TEXT_CACHE] = conditioning.text_cache
        output: Any = self.network.apply(variables, x, logsnr, conditioning, train, rngs=rngs)
        return output

    def cache_text(self, params: Any, conditioning: Conditioning) -> Conditioning:
        """Conditioning with all that the network computes of the text alone: its keys and values in
        every attention layer, and its pooled vector.

        To be called under jit, where what the network computes of the zeros given as images here
        is never run.
        """
        x, logsnr, dummy = self.dummy_inputs(conditioning.text.mask.shape[0])
        given = dummy._replace(text=conditioning.text)
        _, cache = self.network.apply({"params": params}, x, logsnr, given, mutable=[TEXT_CACHE])
        return conditioning._replace(text_cache=cache[TEXT_CACHE])

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


def with_dtype(stage: Stage, dtype: str) -> Stage:
    """The stage with activations of another dtype, "float32" or "bfloat16"."""
    return dataclasses.replace(stage, network=stage.network.clone(dtype=dtype))


def upsample_low_res(low_res: jax.Array, size: tuple[int, int]) -> jax.Array:
    """Bilinear upsampling of low-resolution images [b, h, w, 3] to the size of the stage's.

    Training and sampling both go through here.

    Args:
      size: height and width of the result.

    Raises:
      UserError: the size is not the same whole multiple of height and width.
    """
    b, h, w, c = low_res.shape
    if size[0] % h or size[0] // h * w != size[1]:
        raise UserError(
            f"a low-resolution image of {h} x {w} cannot condition one of {size[0]} x {size[1]} "
            "pixels"
        )
    return jax.image.resize(low_res, (b, *size, c), "bilinear")


def _pop_kind(section: dict[str, Any], classes: Mapping[str, type], where: str) -> type:
    """The class that a section's "kind" names; the section keeps the fields of that class."""
    kind = section.pop("kind", None)
    if kind not in classes:
        raise UserError(f"{where}.kind is {kind!r}; choices: {', '.join(classes)}")
    return classes[kind]


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
    section = build(StageConfig, config.stages[name], where)
    network = dict(section.network)
    network_class = _pop_kind(network, NETWORKS, f"{where}.network")
    schedule = dict(section.schedule)
    schedule_class = _pop_kind(schedule, SCHEDULES, f"{where}.schedule")
    if "has_low_res" in network:
        raise UserError(f"{where}.network.has_low_res follows from low_res; leave it out")
    low_res = section.low_res or None
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
    network["has_low_res"] = low_res is not None
    return Stage(
        name=name,
        resolution=section.resolution,
        low_res=low_res,
        crop=section.crop or None,
        text=build(TextConfig, config.text, "text"),
        network=build(network_class, network, f"{where}.network"),
        schedule=build(schedule_class, schedule, f"{where}.schedule"),
        parametrization=section.diffusion.parametrization,
        diffusion=section.diffusion,
        train=section.train,
        sample=section.sample,
        mesh=section.mesh,
    )
