"""The denoiser of a stage in the hands of samplers and editing, for both kinds of stage."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

from imagen_jax.diffusion import (
    DDIM,
    DDPM,
    diffuse,
    initial_noise,
    keep_outside,
    resampling_path,
    sample,
    time_grid,
)
from imagen_jax.errors import UserError
from imagen_jax.sampling import Edit, image_keys, sample_stage, sample_steps, whole_sampler
from imagen_jax.stage_programs import Padding, StageInputs, guidance_of, stage_denoiser
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


def left_half(setting: Setting, rows: int = 1) -> jax.Array:
    """A mask that paints every other column."""
    mask = jnp.ones((rows, *setting.image.shape[1:3], 1), bool)
    return mask.at[:, :, ::2].set(False)


@pytest.mark.slow
def test_inpainting_keeps_the_rest_and_follows_the_stage(setting: Setting) -> None:
    mask = left_half(setting)
    path = resampling_path(len(setting.grid) - 1, 2, 2)

    @jax.jit
    def edit(image: jax.Array) -> jax.Array:
        x_t = diffuse(image, setting.noise, setting.grid[0])
        denoise = keep_outside(setting.denoiser(), image, mask)
        return sample(DDIM(), denoise, x_t, setting.grid, setting.keys, path=path)

    edited = edit(setting.image)
    kept = np.broadcast_to(~np.asarray(mask), edited.shape)
    np.testing.assert_array_equal(np.asarray(edited)[kept], np.asarray(setting.image)[kept])
    # The new part depends on the kept one: the network sees both.
    other = edit(-setting.image)
    assert np.abs(np.asarray(edited - other)[~kept]).max() > 1e-3


@pytest.mark.slow
def test_img2img_samples_from_the_noised_image(setting: Setting) -> None:
    stage, settings = setting.stage, setting.settings
    inputs = StageInputs(setting.text, setting.keys, setting.low_res)

    def edited(image: jax.Array, strength: float) -> jax.Array:
        given = inputs._replace(image=image)
        return sample_stage(stage, setting.params, given, settings, edit=Edit(strength))

    # At pure noise the image is forgotten.
    sampled = sample_stage(stage, setting.params, inputs, settings)
    np.testing.assert_allclose(edited(setting.image, 1.0), sampled, atol=1e-3)
    # Later it is not.
    assert np.abs(edited(setting.image, 0.5) - edited(-setting.image, 0.5)).max() > 1e-3


@pytest.mark.slow
@pytest.mark.parametrize("sampler", ["dpmpp_2m", "heun"])
def test_step_by_step_is_the_same_as_in_one_program(setting: Setting, sampler: str) -> None:
    settings = dataclasses.replace(setting.settings, sampler=sampler)
    inputs = StageInputs(setting.text, setting.keys, setting.low_res)
    made = list(sample_steps(setting.stage, setting.params, inputs, settings))
    assert len(made) == 3
    whole = jax.jit(whole_sampler(setting.stage, settings))
    in_one = whole(setting.params, inputs, settings.guidance, settings.aug_level)
    np.testing.assert_allclose(jnp.clip(made[-1], -1, 1), in_one, atol=2e-4)


@pytest.mark.slow
def test_edits_are_those_of_the_diffusion_core(setting: Setting) -> None:
    """Whose functions know no stages."""
    stage, settings = setting.stage, dataclasses.replace(setting.settings, sampler="ddpm")
    keys = jax.vmap(jax.random.fold_in, (0, None))(setting.keys, stage.resolution)
    noise = initial_noise(keys, 2, setting.image.shape[1:])
    start = float(stage.schedule.t(-2 * np.log(np.tan(0.3 * np.pi))))  # sigma / alpha of 0.6
    grid = time_grid(stage.schedule, settings.steps, settings.time_grid, t_start=start)
    mask = left_half(setting, rows=2)

    @jax.jit
    def expected(image: jax.Array) -> tuple[jax.Array, jax.Array]:
        denoise = stage_denoiser(
            stage, setting.params, setting.text, keys, setting.low_res, settings
        )
        x_t = diffuse(image, noise, grid[0])
        changed = sample(DDPM(), denoise, x_t, grid, keys)
        known = keep_outside(denoise, image, mask)
        path = resampling_path(settings.steps, 2, 2)
        filled = sample(DDPM(), known, x_t, grid, keys, path=path)
        return jnp.clip(changed, -1, 1), jnp.clip(filled, -1, 1)

    changed, filled = expected(setting.image)
    inputs = StageInputs(setting.text, setting.keys, setting.low_res, image=setting.image)
    made = sample_stage(stage, setting.params, inputs, settings, edit=Edit(0.6))
    np.testing.assert_allclose(made, changed, atol=2e-4)
    made = sample_stage(
        stage, setting.params, inputs._replace(mask=mask), settings, edit=Edit(0.6, 2, 2)
    )
    np.testing.assert_allclose(made, filled, atol=2e-4)


@pytest.mark.slow
def test_guidance_interval(setting: Setting) -> None:
    """All levels inside is guidance, none is no guidance, the bounds are data."""
    inputs = StageInputs(setting.text, setting.keys, setting.low_res)

    def made(**changes: float) -> jax.Array:
        settings = dataclasses.replace(setting.settings, **{"guidance": 3.0} | changes)
        return sample_stage(setting.stage, setting.params, inputs, settings)

    guided, unguided = made(), made(guidance=1.0)
    np.testing.assert_allclose(made(guidance_max_logsnr=20.0), guided, atol=2e-4)
    np.testing.assert_allclose(made(guidance_min_logsnr=20.0), unguided, atol=2e-4)
    # The last of three levels is not guided: the image is the plain estimate there.
    last = float(setting.grid[-2])
    mixed = made(guidance_max_logsnr=last - 0.1)
    assert np.abs(mixed - guided).max() > 1e-3
    assert np.abs(mixed - unguided).max() > 1e-3
    of = dataclasses.replace(setting.settings, guidance=3.0, guidance_max_logsnr=last - 0.1)
    scale = guidance_of(of)(setting.grid[:-1])
    np.testing.assert_array_equal(scale, [3.0, 3.0, 1.0])


@pytest.mark.slow
def test_threshold_cap(setting: Setting) -> None:
    """A cap of 1 is the static threshold; one that is never reached changes nothing."""
    inputs = StageInputs(setting.text, setting.keys, setting.low_res)

    def made(**changes: object) -> jax.Array:
        settings = dataclasses.replace(setting.settings, **{"threshold": "dynamic"} | changes)
        return sample_stage(setting.stage, setting.params, inputs, settings)

    np.testing.assert_allclose(made(threshold_cap=1.0), made(threshold="static"), atol=2e-4)
    np.testing.assert_allclose(made(threshold_cap=1e9), made(), atol=2e-4)
    assert np.abs(made(threshold_cap=1.0) - made()).max() > 1e-3


def test_end_logsnr_is_the_level_of_the_last_estimate(setting: Setting) -> None:
    """From the state that the step before left, the image is D(x, end)."""
    inputs = StageInputs(setting.text, setting.keys, setting.low_res)
    settings = dataclasses.replace(setting.settings, end_logsnr=-1.0, sampler="ddim")
    *_, before, last = sample_steps(setting.stage, setting.params, inputs, settings)
    grid = time_grid(setting.stage.schedule, 3, settings.time_grid, end_logsnr=-1.0)
    assert float(grid[-2]) == pytest.approx(-1.0, abs=1e-3)
    plain = dataclasses.replace(settings, end_logsnr=20.0)
    beyond = sample_stage(setting.stage, setting.params, inputs, plain)
    without = dataclasses.replace(settings, end_logsnr=None)
    np.testing.assert_array_equal(
        beyond, sample_stage(setting.stage, setting.params, inputs, without)
    )
    assert np.abs(last - beyond).max() > 1e-3
    assert np.abs(last - before).max() > 1e-3


@pytest.mark.slow
def test_pad_is_sampling_the_continued_image_and_cutting_it() -> None:
    setting = Setting("sr")
    stage, by = setting.stage, 2
    assert setting.low_res is not None
    low_res = setting.low_res
    inputs = StageInputs(setting.text, setting.keys, low_res)
    settings = dataclasses.replace(setting.settings, pad=by)
    made = sample_stage(stage, setting.params, inputs, settings)
    assert made.shape == setting.image.shape
    wide = jnp.pad(low_res, ((0, 0), (by, by), (by, by), (0, 0)), "edge")
    plain = dataclasses.replace(settings, pad=0)
    side = stage.resolution + 4 * by
    whole = sample_stage(
        stage, setting.params, inputs._replace(low_res=wide), plain, size=(side, side)
    )
    np.testing.assert_array_equal(made, whole[:, 2 * by : -2 * by, 2 * by : -2 * by])
    in_one = jax.jit(whole_sampler(stage, settings))
    np.testing.assert_allclose(
        made, in_one(setting.params, inputs, settings.guidance, settings.aug_level), atol=2e-4
    )
    # What is kept of an edited image is kept, whatever is around it.
    mask = left_half(setting, rows=2)
    edited = inputs._replace(image=setting.image, mask=mask)
    filled = sample_stage(stage, setting.params, edited, settings, edit=Edit())
    kept = np.broadcast_to(~np.asarray(mask), filled.shape)
    np.testing.assert_array_equal(np.asarray(filled)[kept], np.asarray(setting.image)[kept])
    # A base stage has no image to continue.
    base = Setting("base").stage
    assert Padding.of(base, settings) == (0, 0)


def test_low_res_must_be_given_to_the_stage_that_starts_from_it(setting: Setting) -> None:
    wrong = None if setting.low_res is not None else jnp.zeros((2, 4, 4, 3))
    inputs = StageInputs(setting.text, setting.keys, wrong)
    with pytest.raises(ValueError, match=r"none was given|an image was given"):
        sample_stage(setting.stage, setting.params, inputs, setting.settings)


def test_edits_that_do_not_fit(setting: Setting) -> None:
    inputs = StageInputs(setting.text, setting.keys, setting.low_res)
    image = jnp.zeros((2, 3, 3, 3))
    for given, options, message in (
        ({}, {"edit": Edit()}, "an edit needs an image, and an image an edit; one of them is None"),
        ({"image": image}, {}, "an edit needs an image, and an image an edit; one of them is None"),
        ({"mask": jnp.ones((2, 3, 3, 1), bool)}, {}, "a mask was given, but no image to edit"),
        ({"image": image}, {"edit": Edit()}, r"image has shape \(2, 3, 3, 3\); its images must be"),
        ({}, {"size": (0, 4)}, "cannot make images of 0 x 4 pixels: height and width must be mult"),
    ):
        with pytest.raises(UserError, match=message):
            sample_stage(setting.stage, setting.params, inputs._replace(**given),
                         setting.settings, **options)  # fmt: skip
    with pytest.raises(UserError, match="resamples=1 and jump=0 must be at least 1"):
        Edit(jump=0)
