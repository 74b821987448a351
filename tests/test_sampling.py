"""The denoiser of a stage in the hands of samplers and editing, for both kinds of stage."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

from imagen_jax.diffusion import img2img, inpaint, sample, time_grid
from imagen_jax.sampling import (
    StageInputs,
    picture_keys,
    sample_stage,
    stage_denoiser,
)
from imagen_jax.typing import Denoiser


class Setting:
    """A tiny stage with random weights, conditioned, and a picture to edit."""

    def __init__(self, name: str):
        self.stage = tiny.stage(name, *tiny.ONE_LEVEL)
        self.params = tiny.random_params(self.stage)
        batch = tiny.batch(self.stage, 2)
        self.text = tiny.conditioning(self.stage, 2).text
        self.low_res, self.picture = batch.get("low_res"), batch["image"]
        self.keys = picture_keys([3, 4])
        self.settings = dataclasses.replace(
            self.stage.sample, threshold="none", guidance=2.0, steps=3
        )
        self.grid = time_grid(self.stage.schedule, 3, self.settings.time_grid)
        self.noise = jax.random.normal(jax.random.key(1), self.picture.shape)

    def denoiser(self) -> Denoiser:
        return stage_denoiser(
            self.stage, self.params, self.text, self.keys, self.low_res, self.settings
        )


@pytest.fixture(scope="module", params=["base", "sr"])
def setting(request: pytest.FixtureRequest) -> Setting:
    return Setting(request.param)


def test_inpainting_keeps_the_rest_and_follows_the_stage(setting: Setting) -> None:
    keep = jnp.zeros((1, *setting.picture.shape[1:3], 1)).at[:, :, ::2].set(1)
    edit = jax.jit(
        lambda picture: inpaint(
            "ddim", setting.denoiser(), picture, keep, setting.noise, setting.grid,
            setting.keys, resamples=2, jump=2,
        ).x0
    )  # fmt: skip
    edited = edit(setting.picture)
    kept = np.broadcast_to(np.asarray(keep, bool), edited.shape)
    np.testing.assert_array_equal(np.asarray(edited)[kept], np.asarray(setting.picture)[kept])
    # The new part depends on the kept one: the network sees both.
    other = edit(-setting.picture)
    assert np.abs(np.asarray(edited - other)[~kept]).max() > 1e-3


def test_img2img_samples_from_the_noised_picture(setting: Setting) -> None:
    @jax.jit
    def edit(picture: jax.Array, grid: jax.Array) -> jax.Array:
        return img2img("ddim", setting.denoiser(), picture, setting.noise, grid).x0

    @jax.jit
    def resume(x_t: jax.Array, grid: jax.Array) -> jax.Array:
        return sample("ddim", setting.denoiser(), x_t, grid).x0

    # At pure noise the picture is forgotten.
    sampled = resume(setting.noise, setting.grid)
    np.testing.assert_allclose(edit(setting.picture, setting.grid), sampled, atol=1e-3)
    # Later it is not.
    late = time_grid(setting.stage.schedule, 3, "uniform_t", t_start=0.5)
    alpha, sigma = setting.stage.schedule.alpha_sigma(0.5)
    noised = alpha * setting.picture + sigma * setting.noise
    np.testing.assert_allclose(edit(setting.picture, late), resume(noised, late), atol=1e-4)
    assert np.abs(edit(setting.picture, late) - edit(-setting.picture, late)).max() > 1e-3


def test_low_res_must_be_given_to_the_stage_that_starts_from_it(setting: Setting) -> None:
    wrong = None if setting.low_res is not None else jnp.zeros((2, 4, 4, 3))
    inputs = StageInputs(setting.text, setting.keys, wrong)
    with pytest.raises(ValueError, match=r"none was given|a picture was given"):
        sample_stage(setting.stage, setting.params, inputs, setting.settings)
