"""Noise schedules: endpoints, inverses, precision, and the discrete process of Ho et al."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from jax.test_util import check_grads

from imagen_jax.diffusion import alpha_sigma, make_schedule
from imagen_jax.diffusion.schedule import SCHEDULES
from imagen_jax.errors import UserError

ROUNDOFF = 2.0**-24
ALL = [
    make_schedule("cosine"),
    make_schedule("cosine", logsnr_min=-15.0, logsnr_max=12.0),
    make_schedule("linear"),
    make_schedule("shifted_cosine", image_size=256, reference_size=64),
    make_schedule("shifted_cosine", image_size=1024, reference_size=32),
    make_schedule("discrete_cosine"),
]
BETA = 1.0 - np.divide(*(np.cos(0.5 * np.pi * ((np.arange(1000) + i) / 1000 + 0.008) / 1.008) ** 2
                         for i in (1, 0)))  # fmt: skip
BAR = np.cumprod(1.0 - np.minimum(BETA, 0.999))
DISCRETE = np.log(BAR) - np.log1p(-BAR)
"""logsnr of the 1000 steps of Nichol and Dhariwal 2021."""
times = st.floats(0.0, 1.0, width=32)
schedules = st.sampled_from(ALL)


def test_every_schedule_is_covered():
    assert {type(schedule) for schedule in ALL} == set(SCHEDULES.values())


@pytest.mark.parametrize("schedule", ALL, ids=repr)
def test_endpoints_are_the_documented_ones(schedule):
    assert schedule.logsnr(0.0) == pytest.approx(schedule.logsnr_max, abs=2e-6)
    ends = {"linear": -np.log(np.expm1(10.05)), "discrete_cosine": DISCRETE[-1]}
    end = {SCHEDULES[name]: x for name, x in ends.items()}.get(type(schedule), schedule.logsnr_min)
    assert schedule.logsnr(1.0) == pytest.approx(end, abs=2e-6)
    assert schedule.logsnr(-0.5) == schedule.logsnr(0.0)
    assert schedule.logsnr(1.5) == schedule.logsnr(1.0)


@pytest.mark.parametrize("schedule", ALL, ids=repr)
def test_float32_follows_float64(schedule):
    """Error at most 16 roundings of (1 + |logsnr|), although tan goes from 5e-5 to 2e4."""
    t = jnp.linspace(0.0, 1.0, 20001)
    single = np.asarray(schedule.logsnr(t), np.float64)
    with jax.enable_x64(True):
        double = np.asarray(schedule.logsnr(np.asarray(t, np.float64)))
    bound = 16 * ROUNDOFF * (1 + np.abs(double))
    if type(schedule) is SCHEDULES["discrete_cosine"]:  # its table is of rounded times
        bound += 2 * ROUNDOFF * schedule.rate(t)
    assert np.all(np.abs(single - double) <= bound)
    assert np.all(np.diff(single) < 0)


@pytest.mark.parametrize("schedule", ALL, ids=repr)
def test_inverse_in_float64(schedule):
    with jax.enable_x64(True):
        t = jnp.linspace(0.0, 1.0, 2001)
        np.testing.assert_allclose(schedule.t(schedule.logsnr(t)), t, atol=1e-14)
        logsnr = jnp.linspace(schedule.logsnr(1.0), schedule.logsnr(0.0), 2001)
        np.testing.assert_allclose(schedule.logsnr(schedule.t(logsnr)), logsnr, atol=1e-10)


@given(schedules, times)
def test_time_round_trip_in_float32(schedule, t):
    """t -> logsnr -> t is well-conditioned: 8 roundings of 1."""
    assert abs(schedule.t(schedule.logsnr(t)) - np.float32(t)) <= 8 * ROUNDOFF


@given(schedules, st.floats(0.0, 1.0))
def test_logsnr_round_trip_in_float32(schedule, fraction):
    """logsnr -> t -> logsnr: roundings of logsnr and, times the slope, of t."""
    low, high = schedule.logsnr(1.0), schedule.logsnr(0.0)
    logsnr = jnp.float32(low + fraction * (high - low))
    t = schedule.t(logsnr)
    bound = 16 * ROUNDOFF * (1 + abs(logsnr) + schedule.rate(t) * t)
    assert abs(schedule.logsnr(t) - logsnr) <= bound


@given(schedules, times)
def test_amplitudes_are_finite_and_variance_preserving(schedule, t):
    alpha, sigma = schedule.alpha_sigma(t)
    assert 0 < alpha < 1.0000001
    assert 0 < sigma < 1.0000001
    assert np.isfinite(1 / alpha)
    assert np.isfinite(1 / sigma)
    assert alpha**2 + sigma**2 == pytest.approx(1.0, abs=4e-7)


def test_amplitudes_have_full_relative_precision_in_both_tails():
    logsnr = jnp.linspace(-20.0, 20.0, 4001)
    exact = np.asarray(logsnr, np.float64)
    alpha, sigma = alpha_sigma(logsnr)
    np.testing.assert_allclose(alpha, (1 + np.exp(-exact)) ** -0.5, rtol=5e-7)
    np.testing.assert_allclose(sigma, (1 + np.exp(exact)) ** -0.5, rtol=5e-7)


def test_cosine_is_the_cosine():
    """The truncation at -20 and 20 moves the angle by at most 4.6e-5."""
    t = np.linspace(0.0, 1.0, 101)
    alpha, sigma = make_schedule("cosine").alpha_sigma(t)
    np.testing.assert_allclose(alpha, np.cos(0.5 * np.pi * t), atol=5e-5)
    np.testing.assert_allclose(sigma, np.sin(0.5 * np.pi * t), atol=5e-5)


def test_linear_follows_the_discrete_process_of_1000_steps():
    bars = np.cumprod(1.0 - np.linspace(1e-4, 0.02, 1000))
    discrete = np.log(bars / (1.0 - bars))
    continuous = np.asarray(make_schedule("linear").logsnr(np.arange(1, 1001) / 1000))
    assert np.abs(continuous - discrete)[9:].max() < 0.07
    assert np.abs(continuous - discrete).max() < 0.1


def test_discrete_cosine_is_the_discrete_process() -> None:
    schedule = make_schedule("discrete_cosine")
    steps = np.arange(1, 1001, dtype=np.float32) / 1000
    np.testing.assert_allclose(schedule.logsnr(steps), DISCRETE, rtol=1e-7, atol=3e-7)
    known = [10.10, 1.70, -12.93, -19.84]
    np.testing.assert_allclose(DISCRETE[[0, 250, 998, 999]], known, atol=0.01)
    for logsnr_min, logsnr_max in ((-19.0, 12.0), (-20.0, 10.0)):
        with pytest.raises(UserError, match=r"from -19\.8\d+ to 10\.0\d+"):
            make_schedule("discrete_cosine", logsnr_min=logsnr_min, logsnr_max=logsnr_max)
    with pytest.raises(UserError, match="max_beta in"):
        make_schedule("discrete_cosine", max_beta=1.0)


def test_shift_is_the_log_ratio_of_the_sizes():
    """Averaging k x k pixels divides the noise's variance by k^2. Both are truncated at -20."""
    t = jnp.linspace(0.05, 0.95, 19)
    shifted = make_schedule("shifted_cosine", image_size=256, reference_size=64)
    expected = make_schedule("cosine").logsnr(t) - 2 * np.log(4)
    np.testing.assert_allclose(shifted.logsnr(t), expected, atol=4e-3)


@pytest.mark.parametrize("schedule", ALL, ids=repr)
def test_rate_is_the_slope(schedule):
    with jax.enable_x64(True):
        t = jnp.linspace(0.00137, 0.9989, 101)  # between the kinks of a table
        width = 1e-7
        slope = (schedule.logsnr(t + width) - schedule.logsnr(t - width)) / (2 * width)
        np.testing.assert_allclose(schedule.rate(t), -slope, rtol=1e-5)
    assert np.all(np.isfinite(schedule.rate(jnp.array([0.0, 0.5, 1.0]))))


@pytest.mark.slow
@pytest.mark.parametrize("schedule", ALL, ids=repr)
def test_gradients(schedule):
    with jax.enable_x64(True):
        t = jnp.array([0.0504, 0.3004, 0.4904, 0.5104, 0.9004])  # between the kinks of a table
        check_grads(schedule.logsnr, (t,), order=1)
        check_grads(schedule.t, (jnp.array([-9.0, -0.5, 0.5, 9.0]),), order=1)
        check_grads(alpha_sigma, (jnp.array([-9.0, 0.0, 9.0]),), order=1)
    assert np.all(np.isfinite(jax.vmap(jax.grad(schedule.logsnr))(jnp.array([0.0, 0.5, 1.0]))))


def test_schedules_are_static_arguments():
    traces = []

    @jax.jit
    def inner(t):
        traces.append(1)
        return t

    run = jax.jit(lambda schedule, t: schedule.logsnr(inner(t)), static_argnums=0)
    run(make_schedule("cosine"), 0.5)
    run(make_schedule("cosine"), 0.6)
    assert len(traces) == 1
    assert make_schedule("cosine") == make_schedule("cosine")
    assert make_schedule("cosine") != make_schedule("cosine", logsnr_max=10.0)
    with pytest.raises(dataclasses.FrozenInstanceError):
        make_schedule("cosine").logsnr_min = 0.0


@pytest.mark.usefixtures("unchecked_shapes")
@pytest.mark.parametrize(
    ("name", "options", "words"),
    [
        ("cosin", {}, ["'cosin'", "cosine", "linear", "shifted_cosine"]),
        ("cosine", {"beta_min": 1.0}, ["beta_min", "logsnr_min"]),
        ("cosine", {"logsnr_min": 5.0, "logsnr_max": 5.0}, ["logsnr_min=5.0"]),
        ("cosine", {"logsnr_max": float("nan")}, ["nan"]),
        ("shifted_cosine", {}, ["image_size", "reference_size"]),
        ("shifted_cosine", {"image_size": 0, "reference_size": 64}, ["image_size=0"]),
        ("linear", {"beta_max": 2.0}, ["beta_max=2.0"]),
        ("linear", {"logsnr_max": -11.0}, ["logsnr_max=-11.0"]),
    ],
)
def test_errors_name_the_thing_the_value_and_the_choices(name, options, words):
    with pytest.raises(ValueError, match=r"schedule|logsnr|image_size|beta") as error:
        make_schedule(name, **options)
    for word in words:
        assert word in str(error.value)
