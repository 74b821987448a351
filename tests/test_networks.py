"""The contract of a network: what a class of the user's own gets, and what it must keep."""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from ml_collections import ConfigDict

from imagen_jax.config import to_plain
from imagen_jax.errors import UserError
from imagen_jax.models.base import BaseNetwork
from imagen_jax.stage import Stage, make_stage


class Foreign(BaseNetwork):
    """Plain flax layers that know nothing of this package."""

    width: int

    @nn.compact
    def __call__(self, x: Any, logsnr: Any, conditioning: Any, train: bool = False) -> Any:
        states, mask = conditioning.text
        text = jnp.where(mask[..., None], states, 0).sum(1) / 8
        vector = nn.Dense(self.width)(jnp.concatenate([text, logsnr[:, None] / 20], axis=-1))
        inputs = [x] if conditioning.low_res is None else [x, conditioning.low_res]
        y = nn.Conv(self.width, (3, 3))(jnp.concatenate(inputs, axis=-1))
        y = nn.silu(y + nn.silu(vector)[:, None, None])
        y = nn.Dropout(0.1, deterministic=not train)(y)
        return nn.Conv(x.shape[-1], (3, 3))(y)


class WithState(Foreign):
    @nn.compact
    def __call__(self, x: Any, logsnr: Any, conditioning: Any, train: bool = False) -> Any:
        return nn.BatchNorm(use_running_average=not train)(x)


class WithoutColours(Foreign):
    @nn.compact
    def __call__(self, x: Any, logsnr: Any, conditioning: Any, train: bool = False) -> Any:
        return nn.Conv(self.width, (3, 3))(x)


def config_of(kind: str, *overrides: str, **fields: Any) -> ConfigDict:
    """The tiny config with this network in both stages."""
    config = to_plain(tiny.config(*overrides))
    for section in config["stages"].values():
        section["network"] = {"kind": kind, **fields}
    return ConfigDict(config)


def foreign(name: str, kind: str = f"{__name__}:Foreign") -> Stage:
    return make_stage(config_of(kind, width=8), name)


@pytest.mark.parametrize("name", ["base", "sr"])
def test_a_foreign_network_is_a_stages(name: str) -> None:
    stage = foreign(name)
    params = jax.jit(stage.init)(jax.random.key(0))
    given = tiny.conditioning(stage, 2)
    x = jnp.ones((2, stage.resolution, stage.resolution, 3))
    plain = jax.jit(stage.apply)(params, x, jnp.zeros(2), given)
    assert plain.shape == x.shape
    cached = stage.cache_text(params, given)  # has no cache of text, and needs none
    np.testing.assert_allclose(stage.apply(params, x, jnp.zeros(2), cached), plain, atol=1e-6)


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("unett", r"kind is 'unett'; choices: unet, efficient_unet.* or 'module:Class'"),
        ("no_such_module:Pixels", r"no module 'no_such_module'; .* PYTHONPATH"),
        (f"{__name__}:Foreing", f"but {__name__} has no 'Foreing'"),
        ("flax.linen:Dense", "no subclass of imagen_jax.models.base.BaseNetwork"),
        (f"{__name__}:foreign", "no subclass of imagen_jax.models.base.BaseNetwork"),
    ],
)
def test_kind_that_names_no_network(kind: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        foreign("base", kind)


def test_fields_of_a_foreign_network_are_checked() -> None:
    with pytest.raises(UserError, match=r"unknown key 'stages\.base\.network\.widht'.*'width'"):
        make_stage(config_of(f"{__name__}:Foreign", widht=8), "base")
    with pytest.raises(UserError, match=r"stages\.base\.network lacks the key 'width'"):
        make_stage(config_of(f"{__name__}:Foreign"), "base")


def test_dtype_and_remat_that_a_network_does_not_have() -> None:
    network = foreign("base").network
    assert network.with_dtype("float32") is network
    assert network.with_remat("none") is network
    with pytest.raises(UserError, match=r"Foreign has no field 'dtype'.*'bfloat16'"):
        network.with_dtype("bfloat16")
    with pytest.raises(UserError, match=r"Foreign has no field 'remat'.*'blocks'"):
        network.with_remat("blocks")


def test_networks_that_break_the_contract() -> None:
    stage = foreign("base", f"{__name__}:WithState")
    with pytest.raises(UserError, match=r"WithState has variables in \['batch_stats'\]"):
        jax.eval_shape(stage.init, jax.random.key(0))
    stage = foreign("base", f"{__name__}:WithoutColours")
    params = jax.eval_shape(stage.init, jax.random.key(0))
    x = jnp.zeros((1, stage.resolution, stage.resolution, 3))
    with pytest.raises(UserError, match=r"returns float32\(1, 4, 4, 8\).*float32 of the same"):
        jax.eval_shape(stage.apply, params, x, jnp.zeros(1), tiny.conditioning(stage, 1))
