"""img2img, inpainting, and noise conditioning augmentation."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from imagen_jax.diffusion import (
    DDIM,
    DDPM,
    DPMpp2M,
    GaussianMixture,
    Heun,
    augment_low_res,
    augment_sweep,
    diffuse,
    format_sampler,
    initial_noise,
    keep_outside,
    make_schedule,
    resampling_path,
    sample,
    sample_aug_level,
    time_grid,
)

COSINE = make_schedule("cosine")
# Two pixels, correlation 0.9: what one says about the other is known exactly.
CORRELATED = GaussianMixture(
    np.ones(1), np.zeros((1, 2)), 0.25 * np.array([[[1.0, 0.9], [0.9, 1.0]]])
)
SECOND_PIXEL = jnp.array([False, True]).reshape(1, 1, 2, 1)
SAMPLERS = (DDPM(), DDIM(), DPMpp2M(), DPMpp2M(sde=True), Heun())


def img2img(sampler, denoise, image, noise, grid, key=None):
    """SDEdit, Meng et al. 2022."""
    return sample(sampler, denoise, diffuse(image, noise, grid[0]), grid, key)


def inpaint(sampler, denoise, image, mask, noise, grid, key, resamples=1, jump=1):
    """RePaint, Lugmayr et al. 2022."""
    path = resampling_path(len(grid) - 1, resamples, jump)
    known = keep_outside(denoise, image, mask)
    return sample(sampler, known, diffuse(image, noise, grid[0]), grid, key, path=path)


@pytest.mark.slow
@pytest.mark.parametrize("sampler", SAMPLERS, ids=format_sampler)
def test_img2img_of_data_is_data(sampler):
    """Noised and denoised by the exact denoiser, data stays distributed as data."""
    count = 4000
    image = CORRELATED.sample(jax.random.key(0), count).reshape(count, 1, 2, 1)
    noise = jax.random.normal(jax.random.key(1), image.shape)
    grid = time_grid(COSINE, 100, "uniform_t", t_start=0.6)
    run = jax.jit(lambda p, n, k: img2img(sampler, CORRELATED.denoise, p, n, grid, k))
    result = np.asarray(run(image, noise, jax.random.key(2))).reshape(count, 2)
    # 5 standard errors of a covariance, and 0.01 for ancestral sampling in 100 steps.
    error = np.abs(np.cov(result.T) - CORRELATED.covariance())
    assert error.max() < 5 * 0.25 * np.sqrt(2 / count) + 0.01


def test_img2img_keeps_more_the_later_it_starts():
    image = CORRELATED.sample(jax.random.key(0), 500).reshape(500, 1, 2, 1)
    noise = jax.random.normal(jax.random.key(1), image.shape)
    distances = []
    for t_start in (0.02, 0.2, 0.5, 1.0):
        grid = time_grid(COSINE, 10, "uniform_t", t_start=t_start)
        result = img2img(DDIM(), CORRELATED.denoise, image, noise, grid)
        distances.append(float(jnp.sqrt(jnp.mean((result - image) ** 2))))
    assert distances == sorted(distances)
    assert distances[0] < 0.05
    # From pure noise nothing of the image is left: twice its variance.
    assert distances[-1] == pytest.approx(0.5 * np.sqrt(2), rel=0.1)


@pytest.mark.slow
@pytest.mark.parametrize("sampler", SAMPLERS, ids=format_sampler)
def test_kept_pixels_are_kept_bit_for_bit(sampler):
    image = jax.random.uniform(jax.random.key(0), (2, 4, 4, 3), minval=-1.0)
    mask = jax.random.uniform(jax.random.key(1), (2, 4, 4, 1)) < 0.5
    data = GaussianMixture(np.ones(1), np.zeros((1, 48)), np.eye(48)[None] * 0.2)
    noise = initial_noise(jax.random.key(2), 2, (4, 4, 3))
    result = inpaint(
        sampler,
        data.denoise,
        image,
        mask,
        noise,
        time_grid(COSINE, 5, "karras"),
        jax.random.key(3),
        resamples=2,
        jump=2,
    )
    assert np.all(np.isfinite(result))
    kept = np.broadcast_to(~mask, image.shape)
    np.testing.assert_array_equal(np.asarray(result)[kept], np.asarray(image)[kept])
    assert np.abs(np.asarray(result - image)[~kept]).min() > 0


@pytest.mark.slow
def test_kept_pixels_are_noised_as_the_process_demands():
    """At every level the known part of what the network sees is alpha y + sigma eps: (21)."""
    seen = []
    count = 2000
    image = jnp.full((count, 1, 2, 1), 0.8)

    def denoise(x, logsnr):
        jax.debug.callback(
            lambda x, level: seen.append((float(level), np.asarray(x)[:, 0, 0, 0])),
            x,
            logsnr,
            ordered=True,
        )
        return CORRELATED.denoise(x, logsnr)

    for sampler in (DDPM(), DDIM(), DPMpp2M(), Heun()):
        inpaint(
            sampler,
            denoise,
            image,
            SECOND_PIXEL,
            initial_noise(jax.random.key(0), count, (1, 2, 1)),
            time_grid(COSINE, 6, "karras"),
            jax.random.key(1),
            resamples=2,
            jump=3,
        )
        jax.effects_barrier()
    assert len(seen) > 40
    for level, known in seen:
        sigma = (1 / (1 + np.exp(level))) ** 0.5
        mean = 0.8 * (1 / (1 + np.exp(-level))) ** 0.5
        assert known.mean() == pytest.approx(mean, abs=5 * sigma / np.sqrt(count) + 1e-6)
        assert known.std() == pytest.approx(sigma, rel=5 / np.sqrt(2 * count))


@pytest.mark.slow
def test_resampling_brings_the_new_part_to_agree_with_the_known_one():
    """One pixel is 0.5; the other should have mean 0.45 and deviation 0.218."""
    count, errors = 4000, []
    image = jnp.full((count, 1, 2, 1), 0.5)
    grid = time_grid(COSINE, 40, "uniform_t")
    noise = initial_noise(jax.random.key(0), count, (1, 2, 1))
    for resamples in (1, 3, 10):
        run = jax.jit(
            lambda key, r=resamples: inpaint(
                DDPM(),
                CORRELATED.denoise,
                image,
                SECOND_PIXEL,
                noise,
                grid,
                key,
                resamples=r,
                jump=4,
            )
        )
        new = np.asarray(run(jax.random.key(1)))[:, 0, 1, 0]
        errors.append(abs(new.mean() - 0.45))
    assert errors[0] > errors[1] > errors[2]
    assert errors[2] < 0.03
    assert new.std() == pytest.approx(0.5 * np.sqrt(1 - 0.81), rel=0.15)


def test_inpainting_without_a_known_part_is_sampling():
    noise = initial_noise(jax.random.key(0), 3, (1, 2, 1))
    grid, everything = time_grid(COSINE, 5, "karras"), jnp.ones((3, 1, 2, 1), bool)
    edited = inpaint(
        DPMpp2M(), CORRELATED.denoise, jnp.zeros_like(noise), everything, noise, grid, None
    )
    _, sigma = COSINE.alpha_sigma(COSINE.t(grid[0]))
    plain = sample(DPMpp2M(), CORRELATED.denoise, sigma * noise, grid)
    np.testing.assert_allclose(edited, plain, atol=2e-5)


@given(st.integers(1, 30), st.integers(1, 5), st.integers(1, 12))
def test_resampling_path(steps, resamples, jump):
    path = resampling_path(steps, resamples, jump)
    moves = np.diff(path)
    assert path[0] == 0
    assert path[-1] == steps
    assert np.all((moves == 1) | (moves < 0))
    # Every step of the grid is walked exactly `resamples` times.
    walked = np.bincount(path[:-1][moves == 1], minlength=steps)
    np.testing.assert_array_equal(walked, resamples)
    assert np.all(-moves[moves < 0] <= jump)
    blocks = -(-steps // jump)
    assert np.sum(moves < 0) == blocks * (resamples - 1)


@pytest.mark.usefixtures("unchecked_shapes")
def test_inpainting_errors():
    image = jnp.zeros((1, 2, 2, 3))
    with pytest.raises(ValueError, match=r"\(1, 2, 2, 1\).*\(1, 2, 2\)"):
        keep_outside(CORRELATED.denoise, image, jnp.ones((1, 2, 2), bool))
    with pytest.raises(ValueError, match=r"mask must be bool.*float32"):
        keep_outside(CORRELATED.denoise, image, jnp.ones((1, 2, 2, 1)))
    with pytest.raises(ValueError, match="resamples=0"):
        resampling_path(3, 0, 1)


def test_augmentation_levels():
    """0 leaves the image, 1 leaves noise, and in between alpha x + sigma eps at t = aug_level."""
    image = jax.random.uniform(jax.random.key(0), (3, 16, 16, 3), minval=-1.0)
    levels = jnp.array([0.0, 0.3, 1.0])
    keys = jax.random.split(jax.random.key(1), 3)
    result = augment_low_res(keys, image, levels)
    np.testing.assert_allclose(result[0], image[0], atol=5 * 4.6e-5)
    alpha, sigma = COSINE.alpha_sigma(0.3)
    residual = np.asarray(result[1] - alpha * image[1]) / sigma
    assert residual.mean() == pytest.approx(0.0, abs=5 / np.sqrt(768))
    assert residual.std() == pytest.approx(1.0, abs=5 / np.sqrt(2 * 768))
    assert abs(np.corrcoef(result[2].ravel(), image[2].ravel())[0, 1]) < 5 / np.sqrt(768)
    assert float(result[2].std()) == pytest.approx(1.0, abs=5 / np.sqrt(2 * 768))
    for i in range(3):
        alone = augment_low_res(keys[i : i + 1], image[i : i + 1], levels[i : i + 1])
        np.testing.assert_array_equal(alone[0], result[i])


def test_augmentation_preserves_variance():
    data = jax.random.normal(jax.random.key(0), (5, 64, 64, 3))
    levels = jnp.array([0.0, 0.1, 0.5, 0.9, 1.0])
    result = augment_low_res(jax.random.key(1), data, levels)
    np.testing.assert_allclose(result.std(axis=(1, 2, 3)), 1.0, atol=0.04)


def test_augmentation_noise_is_not_sampling_noise():
    key = jax.random.key(0)
    noise = initial_noise(key, 1, (32, 32, 3))
    augmentation = augment_low_res(key, jnp.zeros((1, 32, 32, 3)), jnp.ones(1))
    assert abs(np.corrcoef(noise.ravel(), augmentation.ravel())[0, 1]) < 5 / np.sqrt(3072)


def test_sweep_uses_one_noise_for_all_levels():
    image = jax.random.uniform(jax.random.key(0), (8, 8, 3), minval=-1.0)
    levels = jnp.array([0.1, 0.2, 0.6])
    sweep = augment_sweep(jax.random.key(1), image, levels)
    assert sweep.shape == (3, 8, 8, 3)
    alpha, sigma = (a[:, None, None, None] for a in COSINE.alpha_sigma(levels))
    eps = (sweep - alpha * image) / sigma
    np.testing.assert_allclose(eps[0], eps[1], atol=1e-5)
    np.testing.assert_allclose(eps[0], eps[2], atol=1e-5)


def test_training_levels_are_uniform():
    levels = np.asarray(sample_aug_level(jax.random.key(0), 10_000))
    assert levels.shape == (10_000,)
    assert np.abs(np.histogram(levels, 10, (0, 1))[0] - 1000).max() < 5 * np.sqrt(1000)
