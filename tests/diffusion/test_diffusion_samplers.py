"""Samplers against exact denoisers: distributions, orders of convergence, and the SDE limit."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats
from jax.test_util import check_grads

from imagen_jax.diffusion import (
    DDIM,
    DDPM,
    DPMpp2M,
    GaussianMixture,
    Heun,
    make_schedule,
    sample,
    time_grid,
)
from imagen_jax.diffusion.schedule import alpha_sigma
from imagen_jax.diffusion.transitions import path_transitions, renoise, start_state, transfer

COSINE = make_schedule("cosine")
DETERMINISTIC = (DDIM(), DPMpp2M(), Heun())
MIXTURE = GaussianMixture(
    weights=np.array([0.2, 0.3, 0.5]),
    means=np.array([[-0.6, -0.3], [0.7, -0.4], [0.1, 0.6]]),
    covariances=np.array(
        [[[0.02, 0.01], [0.01, 0.03]], [[0.01, 0.0], [0.0, 0.01]], [[0.04, 0.0], [0.0, 0.005]]]
    ),
)
# Every sampler with its options, a fitting grid, and steps enough for a bias below two standard
# errors. Ancestral sampling needs most: at 256 steps it still misses variances of 0.01 by a tenth.
RUNS = {
    "ddpm small": (DDPM("small"), "uniform_t", 1000),
    "ddpm half": (DDPM(0.5), "uniform_t", 1000),
    "ddpm large": (DDPM("large"), "uniform_t", 1000),
    "ddim": (DDIM(), "uniform_t", 256),
    "ddim eta": (DDIM(eta=0.6), "uniform_t", 256),
    "dpmpp_2m": (DPMpp2M(), "uniform_logsnr", 64),
    "dpmpp_2m sde": (DPMpp2M(sde=True), "uniform_logsnr", 128),
    "heun": (Heun(), "karras", 32),
    "heun churn": (Heun(churn=10.0, churn_max=5.0), "karras", 64),
}


def draw(sampler, kind, steps, data, count, shape):
    """count samples of data [count, d]."""
    grid = time_grid(COSINE, steps, kind)
    x_t = jax.random.normal(jax.random.key(0), (count, *shape))
    run = jax.jit(lambda x, key: sample(sampler, data.denoise, x, grid, key))
    return np.asarray(run(x_t, jax.random.key(1)), np.float64).reshape(count, -1)


@pytest.mark.slow
@pytest.mark.parametrize("run", RUNS)
def test_gaussian_data(run):
    """Mean and all 78 covariances of a correlated 12-dimensional Gaussian, to 5 standard errors."""
    rng = np.random.default_rng(0)
    root = rng.normal(size=(12, 12)) / 5
    data = GaussianMixture(np.ones(1), rng.uniform(-0.5, 0.5, (1, 12)), (root @ root.T)[None])
    count = 4_000
    samples = draw(*RUNS[run], data, count, (2, 2, 3))
    covariance = data.covariance()
    variance = np.diag(covariance)
    mean_error = np.abs(samples.mean(axis=0) - data.mean()) / np.sqrt(variance / count)
    scatter = np.sqrt((np.outer(variance, variance) + covariance**2) / count)
    covariance_error = np.abs(np.cov(samples.T) - covariance) / scatter
    assert mean_error.max() < 5
    assert covariance_error.max() < 5


@pytest.mark.slow
@pytest.mark.parametrize("run", RUNS)
def test_mixture_data(run):
    """Weights, means and covariances of three components to 5 standard errors, and projections."""
    count = 10_000
    samples = draw(*RUNS[run], MIXTURE, count, (1, 2, 1))
    distance = np.stack(
        [
            np.einsum("nd,de,ne->n", samples - m, np.linalg.inv(c), samples - m)
            + np.log(np.linalg.det(c))
            for m, c in zip(MIXTURE.means, MIXTURE.covariances, strict=True)
        ]
    )
    component = np.argmin(distance, axis=0)
    for k, weight in enumerate(MIXTURE.weights):
        members = samples[component == k]
        assert len(members) / count == pytest.approx(
            weight, abs=5 * np.sqrt(weight * (1 - weight) / count)
        )
        spread = np.sqrt(np.diag(MIXTURE.covariances[k]))
        np.testing.assert_allclose(
            members.mean(axis=0), MIXTURE.means[k], atol=5 * spread.max() / np.sqrt(len(members))
        )
        outer = np.outer(spread, spread)
        error = np.abs(np.cov(members.T) - MIXTURE.covariances[k]) / outer
        # 0.02: components overlap a little.
        assert error.max() < 5 * np.sqrt(2 / len(members)) + 0.02
    data = np.asarray(MIXTURE.sample(jax.random.key(2), count))
    for angle in np.linspace(0, np.pi, 6, endpoint=False):
        direction = np.array([np.cos(angle), np.sin(angle)])
        assert scipy.stats.ks_2samp(samples @ direction, data @ direction).pvalue > 1e-4


@pytest.mark.slow
def test_orders_of_convergence():
    """Halving the steps against a fine reference in float64, from logsnr -7 to 7.

    The last level before the clean end is the same in all grids: only integration errors differ.
    """
    with jax.enable_x64(True):
        x_t = jax.random.normal(jax.random.key(0), (32, 1, 2, 1), jnp.float64)

        def run(sampler, steps):
            grid = jnp.append(jnp.linspace(-7.0, 7.0, steps + 1), 20.0)
            return jax.jit(lambda x: sample(sampler, MIXTURE.denoise, x, grid))(x_t)

        reference = run(Heun(), 2048)
        for sampler, order in ((DDIM(), 1), (DPMpp2M(), 2), (Heun(), 2)):
            results = [run(sampler, steps) for steps in (64, 128, 256)]
            errors = [float(jnp.sqrt(jnp.mean((x - reference) ** 2))) for x in results]
            np.testing.assert_allclose(
                -np.diff(np.log2(errors)), order, atol=0.12, err_msg=str(sampler)
            )


def gaussian_variance_after(steps, variance, noise):
    """Variance of samples from N(0, variance), by the recursion of equation (17) itself."""
    grid = np.append(np.linspace(-12.0, 12.0, steps + 1), 20.0)
    result = 1.0 / (1.0 + np.exp(grid[0])) + variance / (1.0 + np.exp(-grid[0]))
    for t, s in itertools.pairwise(grid[:-1]):
        alpha, sigma = alpha_sigma(t)
        gain = alpha * variance / (alpha**2 * variance + sigma**2)
        slope = transfer(1.0, gain, t, s, eta=1.0)
        fresh = transfer(0.0, 0.0, t, s, eta=1.0, noise=1.0)
        if noise == "large":
            fresh = fresh * alpha_sigma(t)[1] / alpha_sigma(s)[1]
        result = float(slope) ** 2 * result + float(fresh) ** 2
    alpha, sigma = alpha_sigma(grid[-2])
    return float((alpha * variance / (alpha**2 * variance + sigma**2)) ** 2 * result)


def test_gamma_is_the_geometric_mean_of_both_variances():
    """Of one step, with a denoiser that says 0 from x = 0: only the noise is left."""
    x, noise = jnp.zeros((1, 1, 1, 1)), jnp.ones((1, 1, 1, 1))
    state = start_state(x)
    moves = path_transitions(jnp.array([-1.0, 2.0, 20.0]))
    first = jax.tree.map(lambda leaf: leaf[0], moves)

    def fresh(variance):
        stepped = DDPM(variance).step(lambda x, logsnr: 0 * x, state, first, lambda: noise)
        return float(stepped.x[0, 0, 0, 0])

    small, large = fresh("small"), fresh("large")
    assert large > 1.5 * small
    assert fresh(0.3) == pytest.approx(small**0.7 * large**0.3, rel=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("noise", ["small", "large"])
def test_ancestral_sampling_converges_to_the_reverse_sde(noise):
    """The variance of its samples, computed exactly, converges to the data's with order 1."""
    with jax.enable_x64(True):
        target = 0.25
        error = [abs(gaussian_variance_after(n, target, noise) - target) for n in (100, 200, 400)]
    assert error[-1] < 0.02
    np.testing.assert_allclose(-np.diff(np.log2(error)), 1.0, atol=0.15)


@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0])
def test_a_small_step_is_a_step_of_the_reverse_sde(eta):
    """Drift and variance of (17) over dt tend to those of equation (20), with error of order dt."""
    with jax.enable_x64(True):
        t, x, x0 = 0.4, 0.7, -0.2
        logsnr = COSINE.logsnr(t)
        alpha, sigma = alpha_sigma(logsnr)
        g2 = sigma**2 * COSINE.rate(t)
        f = jax.grad(lambda time: jnp.log(COSINE.alpha_sigma(time)[0]))(t)
        score = (alpha * x0 - x) / sigma**2
        drift = f * x - 0.5 * (1 + eta**2) * g2 * score
        for dt, tolerance in ((1e-4, 3e-3), (1e-6, 3e-5)):
            s = COSINE.logsnr(t - dt)
            mean = transfer(x, x0, logsnr, s, eta)
            noise = transfer(0.0, 0.0, logsnr, s, eta, noise=1.0)
            assert float((mean - x) / -dt) == pytest.approx(float(drift), rel=tolerance)
            assert float(noise**2 / dt) == pytest.approx(
                float(eta**2 * g2), rel=tolerance, abs=1e-12
            )


@pytest.mark.parametrize("eta", [0.0, 0.3, 1.0])
@pytest.mark.parametrize(("t", "s"), [(-20.0, 20.0), (-20.0, -19.99), (-1.0, 2.0), (19.5, 20.0)])
def test_a_step_from_the_true_x0_has_the_marginals_of_the_process(t, s, eta):
    """x_t = alpha_t x0 + sigma_t eps is taken to mean alpha_s x0 and variance sigma_s^2: (1)."""
    (alpha_t, sigma_t), (alpha_s, sigma_s) = alpha_sigma(t), alpha_sigma(s)
    x0 = jnp.float32(0.8)
    mean = transfer(alpha_t * x0, x0, jnp.float32(t), jnp.float32(s), eta)
    from_eps = transfer(sigma_t, jnp.float32(0), jnp.float32(t), jnp.float32(s), eta)
    fresh = transfer(0.0, 0.0, jnp.float32(t), jnp.float32(s), eta, noise=1.0)
    np.testing.assert_allclose(mean, alpha_s * x0, rtol=1e-6)
    np.testing.assert_allclose(jnp.hypot(from_eps, fresh), sigma_s, rtol=2e-5)
    # And back.
    back = renoise(alpha_s * x0, jnp.float32(s), jnp.float32(t), 0.0)
    np.testing.assert_allclose(back, alpha_t * x0, rtol=1e-6)
    added = renoise(0.0, jnp.float32(s), jnp.float32(t), 1.0)
    kept = renoise(sigma_s, jnp.float32(s), jnp.float32(t), 0.0)
    np.testing.assert_allclose(jnp.hypot(kept, added), sigma_t, rtol=2e-6)


@pytest.mark.slow
def test_samplers_reduce_to_each_other():
    """ddpm is ddim with eta 1; dpmpp_2m begins like ddim."""
    x_t = jax.random.normal(jax.random.key(0), (4, 1, 2, 1))
    grid, key = time_grid(COSINE, 10, "uniform_t"), jax.random.key(1)
    ancestral = sample(DDPM(), MIXTURE.denoise, x_t, grid, key)
    np.testing.assert_array_equal(ancestral, sample(DDIM(eta=1.0), MIXTURE.denoise, x_t, grid, key))
    ends = [sample(DDPM(v), MIXTURE.denoise, x_t, grid, key) for v in ("small", 0.0, "large", 1.0)]
    np.testing.assert_array_equal(ends[0], ends[1])
    np.testing.assert_array_equal(ends[2], ends[3])
    assert (ends[0] != ends[2]).any()
    two = time_grid(COSINE, 2, "uniform_t")
    results = [sample(rule, MIXTURE.denoise, x_t, two) for rule in (DDIM(), DPMpp2M())]
    np.testing.assert_array_equal(*results)


def test_a_constant_denoiser_is_returned_exactly():
    """If the network always says the same x0, so does every sampler."""
    x_t = jax.random.normal(jax.random.key(0), (2, 4, 4, 3))
    x0 = jax.random.uniform(jax.random.key(1), x_t.shape, minval=-1.0)
    for sampler, _, _ in RUNS.values():
        grid = time_grid(COSINE, 7, "karras")
        result = sample(sampler, lambda *a: x0, x_t, grid, jax.random.key(2))
        np.testing.assert_array_equal(result, x0)


@pytest.mark.slow
@pytest.mark.parametrize("sampler", DETERMINISTIC)
def test_gradients_through_a_whole_run_match_finite_differences(sampler):
    with jax.enable_x64(True):
        x_t = jax.random.normal(jax.random.key(0), (2, 1, 2, 1), jnp.float64)
        grid = time_grid(COSINE, 6, "karras").astype(jnp.float64)
        check_grads(
            lambda x: sample(sampler, MIXTURE.denoise, x, grid), (x_t,), order=1, modes=["rev"]
        )
