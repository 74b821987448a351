"""Losses against the analytic error of exact denoisers, weightings, and the draw of times."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from jax.test_util import check_grads

from imagen_jax.diffusion import (
    PARAMETRIZATIONS,
    TIME_SAMPLING,
    WEIGHTINGS,
    GaussianMixture,
    alpha_sigma,
    diffusion_loss,
    loss_by_logsnr_bin,
    loss_weight,
    make_schedule,
    sample_times,
    to_eps,
    to_v,
)
from imagen_jax.errors import UserError
from imagen_jax.typing import Conditioning, TextEmbedding

VARIANCES = np.array([0.04, 0.25, 1.0, 2.25])
DATA = GaussianMixture(np.ones(1), np.array([[0.3, -0.2, 0.0, 0.5]]), np.diag(VARIANCES)[None])
NOTHING = Conditioning(TextEmbedding(jnp.zeros((1, 1, 1)), jnp.zeros((1, 1), bool)))
COSINE = make_schedule("cosine")


def exact_network(kind):
    """The best network of its kind for DATA: equation (22)."""

    def network(x_t, logsnr, conditioning):
        x0 = DATA.denoise(x_t, logsnr)
        convert = {"x0": lambda *a: x0, "eps": to_eps, "v": to_v}[kind]
        return convert("x0", x0, x_t, logsnr)

    return network


def images(count, key=0):
    """Draws of DATA as [count, 2, 2, 1]."""
    return DATA.sample(jax.random.key(key), count).reshape(count, 2, 2, 1)


def weight_on_x0(name, logsnr):
    """Equation (12), written out in float64 without logarithms."""
    snr = np.exp(np.asarray(logsnr, np.float64))
    return {
        "eps": snr,
        "v": snr + 1,
        "x0": np.ones_like(snr),
        "min_snr": np.minimum(snr, 5.0),
        "sigmoid": snr / (1 + snr * np.exp(3.0)),
        "edm": snr + 4.0,
    }[name]


def error_of_x0(logsnr):
    """Equation (23), averaged over the four pixels."""
    snr = np.exp(np.asarray(logsnr, np.float64))[..., None]
    return np.mean(VARIANCES / (1 + VARIANCES * snr), axis=-1)


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "name"), itertools.product(PARAMETRIZATIONS, WEIGHTINGS))
def test_expected_loss_of_the_exact_denoiser_is_the_analytic_one(kind, name):
    """E_t[w(logsnr) E || x0 - D ||^2] by quadrature, within 4 standard errors of the draw.

    The whole range of logsnr, -20 to 20, takes part. Per bin of logsnr the same holds for the
    unweighted error in the network's own space.
    """
    count = 2**15
    loss = jax.jit(
        lambda x0, key: diffusion_loss(
            exact_network(kind), x0, NOTHING, key, COSINE, kind, name, "stratified"
        )
    )(images(count), jax.random.key(1))
    per_example = np.asarray(loss.per_example, np.float64)
    assert np.all(np.isfinite(per_example))
    analytic = weight_on_x0(name, loss.logsnr) * error_of_x0(loss.logsnr)
    difference = per_example - analytic
    assert abs(difference.mean()) < 4 * difference.std() / np.sqrt(count)
    middle = (np.arange(200_000) + 0.5) / 200_000
    with jax.enable_x64(True):
        levels = np.asarray(COSINE.logsnr(middle))
    integral = np.mean(weight_on_x0(name, levels) * error_of_x0(levels))
    assert analytic.mean() == pytest.approx(integral, rel=2e-3)

    factor = {"x0": 1.0, "eps": np.exp, "v": lambda logsnr: 1 + np.exp(logsnr)}[kind]
    factor = factor(np.asarray(loss.logsnr, np.float64)) if callable(factor) else factor
    expected = factor * error_of_x0(loss.logsnr)
    edges = jnp.array([-20.0, -5.0, -2.0, 0.0, 2.0, 5.0, 10.0])
    mean, number = loss_by_logsnr_bin(loss.mse, loss.logsnr, edges)
    want, _ = loss_by_logsnr_bin(jnp.asarray(expected, jnp.float32), loss.logsnr, edges)
    # The squared error of one example of four pixels scatters by about its own mean.
    np.testing.assert_allclose(mean, want, rtol=6 / np.sqrt(np.min(number)))


@pytest.mark.slow
@pytest.mark.parametrize("kind", PARAMETRIZATIONS)
def test_weighted_loss_is_the_same_in_every_space(kind):
    """For the same estimate of x0, weight * error agrees with that of an x0-network: (10), (11)."""
    x0, key = images(512), jax.random.key(2)
    arguments = (x0, NOTHING, key, make_schedule("cosine", logsnr_min=-8.0, logsnr_max=8.0))
    for name in WEIGHTINGS:
        own = diffusion_loss(exact_network(kind), *arguments, kind, name, "uniform")
        other = diffusion_loss(exact_network("x0"), *arguments, "x0", name, "uniform")
        np.testing.assert_allclose(own.per_example, other.per_example, rtol=2e-3, atol=1e-5)


@pytest.mark.parametrize(("kind", "name"), itertools.product(PARAMETRIZATIONS, WEIGHTINGS))
def test_weights_over_the_whole_range(kind, name):
    logsnr = jnp.linspace(-20.0, 20.0, 1001)
    alpha, sigma = (np.asarray(a, np.float64) for a in alpha_sigma(logsnr))
    factor = {"x0": 1.0, "eps": (sigma / alpha) ** 2, "v": sigma**2}[kind]
    weight = np.asarray(loss_weight(name, logsnr, kind))
    assert np.all(np.isfinite(weight) & (weight > 0))
    np.testing.assert_allclose(weight, weight_on_x0(name, logsnr) * factor, rtol=1e-5)


def test_published_forms():
    """The special cases that papers and users know."""
    logsnr = jnp.linspace(-10.0, 10.0, 101)
    snr = np.exp(np.asarray(logsnr, np.float64))
    for kind in ("eps", "v", "x0"):
        np.testing.assert_allclose(loss_weight(kind, logsnr, kind), 1.0, rtol=1e-5)
    np.testing.assert_allclose(
        loss_weight("min_snr", logsnr, "eps"), np.minimum(5 / snr, 1), rtol=1e-5
    )
    np.testing.assert_allclose(
        loss_weight("min_snr", logsnr, "v", gamma=3.0), np.minimum(snr, 3) / (snr + 1), rtol=1e-5
    )
    np.testing.assert_allclose(
        loss_weight("sigmoid", logsnr, "eps", bias=1.0), 1 / (1 + snr / np.e), rtol=1e-5
    )
    u = snr**-0.5
    edm = (u**2 + 0.3**2) / (u * 0.3) ** 2
    np.testing.assert_allclose(loss_weight("edm", logsnr, "x0", sigma_data=0.3), edm, rtol=1e-5)


@pytest.mark.slow
def test_loss_over_logsnr_does_not_depend_on_the_schedule():
    """Equation (13): three schedules, one integral over logsnr."""
    count, results = 2**16, []
    for options in ({}, {"image_size": 128, "reference_size": 64}):
        name = "shifted_cosine" if options else "cosine"
        loss = diffusion_loss(
            exact_network("v"),
            images(count),
            NOTHING,
            jax.random.key(3),
            make_schedule(name, **options),
            "v",
            "sigmoid",
            "stratified",
            weighting_options={"bias": 0.0},
            over_logsnr=True,
        )
        results.append(np.asarray(loss.per_example, np.float64))
    levels = np.linspace(-20, 20, 100_001)
    snr = np.exp(levels)
    integral = np.trapezoid(snr / (1 + snr) * error_of_x0(levels), levels)
    for result in results:
        assert result.mean() == pytest.approx(integral, abs=5 * result.std() / np.sqrt(count))


@pytest.mark.slow
def test_gradient_of_the_loss_matches_finite_differences():
    with jax.enable_x64(True):
        x0 = images(4).astype(jnp.float64)

        def loss(parameters, kind, name):
            def network(x_t, logsnr, conditioning):
                level = jnp.tanh(logsnr / 4)[:, None, None, None]
                return jnp.tanh(parameters[0] * x_t + parameters[1] * level) + parameters[2]

            return diffusion_loss(
                network, x0, NOTHING, jax.random.key(5), COSINE, kind, name, "uniform"
            ).per_example.mean()

        parameters = jnp.array([0.7, -0.3, 0.1])
        for kind, name in itertools.product(PARAMETRIZATIONS, ("min_snr", "sigmoid")):
            check_grads(lambda p, k=kind, n=name: loss(p, k, n), (parameters,), order=1)
        levels = jnp.linspace(-15.0, 15.0, 7)
        for kind, name in itertools.product(PARAMETRIZATIONS, WEIGHTINGS):
            # Divided by its value: weights span 17 orders of magnitude.
            check_grads(lambda x, k=kind, n=name: jnp.log(loss_weight(n, x, k)), (levels,), order=1)


def test_stratified_times_lower_the_variance_of_the_mean():
    """Their mean scatters like 1 / b, not like 1 / sqrt(b); each time stays uniform by itself."""
    keys = jax.random.split(jax.random.key(6), 2000)
    draw = lambda method: jax.vmap(lambda key: sample_times(key, 64, method))(keys)  # noqa: E731
    uniform, stratified = np.asarray(draw("uniform")), np.asarray(draw("stratified"))
    assert uniform.mean(axis=1).std() == pytest.approx(1 / np.sqrt(12 * 64), rel=0.1)
    assert stratified.mean(axis=1).std() == pytest.approx(1 / np.sqrt(12) / 64, rel=0.1)
    for column in (stratified[:, 0], stratified[:, 17]):
        assert np.abs(np.histogram(column, 10, (0, 1))[0] - 200).max() < 5 * np.sqrt(200)
    gaps = np.diff(np.sort(stratified, axis=1), axis=1)
    np.testing.assert_allclose(gaps, 1 / 64, atol=1e-6)


def test_logit_normal_times():
    t = np.asarray(sample_times(jax.random.key(7), 20_000, "logit_normal", mean=0.5, scale=2.0))
    logit = np.log(t / (1 - t))
    assert logit.mean() == pytest.approx(0.5, abs=5 * 2 / np.sqrt(20_000))
    assert logit.std() == pytest.approx(2.0, rel=0.03)


@settings(max_examples=20)
@given(st.sampled_from(sorted(TIME_SAMPLING)), st.sampled_from([1, 7]), st.integers(0, 2**31 - 1))
def test_times_are_times(method, batch_size, seed):
    t = sample_times(jax.random.key(seed), batch_size, method)
    assert t.shape == (batch_size,)
    assert t.dtype == jnp.float32
    assert np.all((t >= 0) & (t <= 1))


@pytest.mark.slow
@settings(max_examples=50)
@given(
    hnp.arrays(
        np.float32,
        st.sampled_from([1, 20]),
        elements=st.floats(-20, 20, width=32, allow_subnormal=False),
    ),
    st.sampled_from([1, 2, 5]),
)
def test_bins_are_those_of_numpy(levels, bins):
    losses = np.arange(len(levels), dtype=np.float32) + 1
    edges = np.linspace(-10, 10, bins + 1).astype(np.float32)
    mean, count = loss_by_logsnr_bin(jnp.asarray(losses), jnp.asarray(levels), edges)
    np.testing.assert_array_equal(count, np.histogram(levels, edges)[0])
    np.testing.assert_allclose(
        mean * count, np.histogram(levels, edges, weights=losses)[0], rtol=1e-5
    )


@pytest.mark.slow
def test_nan_stays_within_its_example():
    x0 = images(4).at[1, 0, 0, 0].set(jnp.nan)
    loss = diffusion_loss(
        exact_network("v"), x0, NOTHING, jax.random.key(8), COSINE, "v", "eps", "uniform"
    )
    np.testing.assert_array_equal(np.isnan(loss.per_example), [False, True, False, False])


def test_errors():
    with pytest.raises(ValueError, match=r"'snr'.*min_snr"):
        loss_weight("snr", jnp.zeros(1), "eps")
    with pytest.raises(ValueError, match=r"'epsilon'.*eps"):
        loss_weight("eps", jnp.zeros(1), "epsilon")
    with pytest.raises(ValueError, match=r"'beta'.*logit_normal"):
        sample_times(jax.random.key(0), 2, "beta")
    with pytest.raises(UserError, match="'stratified' has no option 'mean'; it has none"):
        sample_times(jax.random.key(0), 2, "stratified", mean=0.5)
    with pytest.raises(UserError, match="'sigmoid' has no option 'gamma'; it has bias"):
        loss_weight("sigmoid", jnp.zeros(1), "eps", gamma=5.0)
    with pytest.raises(ValueError, match=r"over_logsnr.*'logit_normal'"):
        diffusion_loss(
            exact_network("v"),
            images(2),
            NOTHING,
            jax.random.key(0),
            COSINE,
            "v",
            "eps",
            "logit_normal",
            over_logsnr=True,
        )
