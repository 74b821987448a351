"""The denoiser of a stage in the hands of samplers and editing, for both kinds of stage."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

from imagen_jax.diffusion import img2img, initial_noise, inpaint, sample, time_grid
from imagen_jax.sampling import (
    Edit,
    StageInputs,
    image_keys,
    sample_stage,
    stage_denoiser,
    whole_sampler,
)
from imagen_jax.typing import Denoiser


class Setting:
    """A tiny stage with random weights, conditioned, and an image to edit."""

    def __init__(self, name: str):
        self.stage = tiny.stage(name, *tiny.ONE_LEVEL)
        self.params = tiny.random_params(self.stage)
        batch = tiny.batch(self.stage, 2)
        self.text = tiny.conditioning(self.stage, 2).text
        self.low_res, self.image = batch.get("low_res"), batch["image"]
        self.keys = image_keys([3, 4])
        self.settings = dataclasses.replace(
            self.stage.sample, threshold="none", guidance=2.0, steps=3
        )
        self.grid = time_grid(self.stage.schedule, 3, self.settings.time_grid)
        self.noise = jax.random.normal(jax.random.key(1), self.image.shape)

    def denoiser(self) -> Denoiser:
        return stage_denoiser(
            self.stage, self.params, self.text, self.keys, self.low_res, self.settings
        )


@pytest.fixture(scope="module", params=["base", "sr"])
def setting(request: pytest.FixtureRequest) -> Setting:
    return Setting(request.param)


def test_inpainting_keeps_the_rest_and_follows_the_stage(setting: Setting) -> None:
    keep = jnp.zeros((1, *setting.image.shape[1:3], 1)).at[:, :, ::2].set(1)
    edit = jax.jit(
        lambda image: inpaint(
            "ddim", setting.denoiser(), image, keep, setting.noise, setting.grid,
            setting.keys, resamples=2, jump=2,
        ).x0
    )  # fmt: skip
    edited = edit(setting.image)
    kept = np.broadcast_to(np.asarray(keep, bool), edited.shape)
    np.testing.assert_array_equal(np.asarray(edited)[kept], np.asarray(setting.image)[kept])
    # The new part depends on the kept one: the network sees both.
    other = edit(-setting.image)
    assert np.abs(np.asarray(edited - other)[~kept]).max() > 1e-3


def test_img2img_samples_from_the_noised_image(setting: Setting) -> None:
    @jax.jit
    def edit(image: jax.Array, grid: jax.Array) -> jax.Array:
        return img2img("ddim", setting.denoiser(), image, setting.noise, grid).x0

    @jax.jit
    def resume(x_t: jax.Array, grid: jax.Array) -> jax.Array:
        return sample("ddim", setting.denoiser(), x_t, grid).x0

    # At pure noise the image is forgotten.
    sampled = resume(setting.noise, setting.grid)
    np.testing.assert_allclose(edit(setting.image, setting.grid), sampled, atol=1e-3)
    # Later it is not.
    late = time_grid(setting.stage.schedule, 3, "uniform_t", t_start=0.5)
    alpha, sigma = setting.stage.schedule.alpha_sigma(0.5)
    noised = alpha * setting.image + sigma * setting.noise
    np.testing.assert_allclose(edit(setting.image, late), resume(noised, late), atol=1e-4)
    assert np.abs(edit(setting.image, late) - edit(-setting.image, late)).max() > 1e-3


@pytest.mark.parametrize("sampler", ["dpmpp_2m", "heun"])
def test_step_by_step_is_the_same_as_in_one_program(setting: Setting, sampler: str) -> None:
    settings = dataclasses.replace(setting.settings, sampler=sampler)
    inputs = StageInputs(setting.text, setting.keys, setting.low_res)
    seen: list[tuple[int, int]] = []
    made = sample_stage(
        setting.stage, setting.params, inputs, settings, on_step=lambda i, n, x: seen.append((i, n))
    )
    assert seen == [(1, 3), (2, 3), (3, 3)]
    whole = jax.jit(whole_sampler(setting.stage, settings))
    in_one = whole(setting.params, inputs, settings.guidance, settings.aug_level)
    np.testing.assert_allclose(made, in_one, atol=2e-4)


def test_edits_are_those_of_the_diffusion_core(setting: Setting) -> None:
    """Whose functions know no stages."""
    stage, settings = setting.stage, dataclasses.replace(setting.settings, sampler="ddpm")
    keys = jax.vmap(jax.random.fold_in, (0, None))(setting.keys, stage.resolution)
    noise = initial_noise(keys, 2, setting.image.shape[1:])
    start = float(stage.schedule.t(-2 * np.log(np.tan(0.3 * np.pi))))  # sigma / alpha of 0.6
    grid = time_grid(stage.schedule, settings.steps, settings.time_grid, t_start=start)
    keep = jnp.zeros((2, *setting.image.shape[1:3], 1)).at[:, ::2].set(1)

    @jax.jit
    def expected(image: jax.Array) -> tuple[jax.Array, jax.Array]:
        denoise = stage_denoiser(
            stage, setting.params, setting.text, keys, setting.low_res, settings
        )
        changed = img2img("ddpm", denoise, image, noise, grid, keys).x0
        filled = inpaint("ddpm", denoise, image, keep, noise, grid, keys, resamples=2, jump=2).x0
        return jnp.clip(changed, -1, 1), jnp.clip(filled, -1, 1)

    changed, filled = expected(setting.image)
    inputs = StageInputs(setting.text, setting.keys, setting.low_res, image=setting.image)
    made = sample_stage(stage, setting.params, inputs, settings, edit=Edit(0.6))
    np.testing.assert_allclose(made, changed, atol=2e-4)
    made = sample_stage(
        stage, setting.params, inputs._replace(keep=keep), settings, edit=Edit(0.6, 2, 2)
    )
    np.testing.assert_allclose(made, filled, atol=2e-4)


def test_low_res_must_be_given_to_the_stage_that_starts_from_it(setting: Setting) -> None:
    wrong = None if setting.low_res is not None else jnp.zeros((2, 4, 4, 3))
    inputs = StageInputs(setting.text, setting.keys, wrong)
    with pytest.raises(ValueError, match=r"none was given|an image was given"):
        sample_stage(setting.stage, setting.params, inputs, setting.settings)
