"""How samplers behave as programs: grids, keys, batches, compilation, progress, errors."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from imagen_jax.diffusion import (
    SAMPLERS,
    TIME_GRIDS,
    GaussianMixture,
    initial_noise,
    make_schedule,
    per_example_keys,
    sample,
    time_grid,
    to_eps,
    to_x0,
)

SCHEDULES = [
    make_schedule("cosine"),
    make_schedule("linear"),
    make_schedule("shifted_cosine", image_size=256, reference_size=64),
]
DATA = GaussianMixture(
    np.array([0.5, 0.5]), np.array([[-0.5] * 12, [0.4] * 12]), np.stack([np.eye(12) * 0.02] * 2)
)
SHAPE = (2, 2, 3)
STOCHASTIC = {
    "ddpm": {},
    "ddim": {"eta": 0.5},
    "dpmpp_2m": {},
    "dpmpp_2m_sde": {},
    "heun": {"churn": 3.0},
}


@settings(deadline=None, max_examples=60)
@given(
    st.sampled_from(SCHEDULES),
    st.sampled_from(sorted(TIME_GRIDS)),
    st.sampled_from([1, 2, 7, 50]),
    st.sampled_from([1.0, 0.5, 0.2]),
)
def test_grids(schedule, kind, steps, t_start):
    grid = np.asarray(time_grid(schedule, steps, kind, t_start))
    assert grid.shape == (steps + 1,)
    assert np.all(np.diff(grid) > 0)
    assert grid[-1] == float(schedule.logsnr(0.0))
    start = float(schedule.logsnr(t_start))
    if kind in ("uniform_t", "uniform_logsnr"):
        assert grid[0] == pytest.approx(start, abs=2e-6)
    elif kind == "karras":
        assert grid[0] == pytest.approx(max(start, -2 * np.log(80.0)), rel=1e-5, abs=1e-5)
        if steps > 1:
            assert grid[-2] == pytest.approx(-2 * np.log(0.002), rel=1e-5)
    elif kind == "trailing":
        assert grid[0] == pytest.approx(start, abs=2e-3)
    else:
        assert grid[-2] == pytest.approx(float(schedule.logsnr(0.001)), abs=1e-4)


def test_grid_spacings():
    schedule = SCHEDULES[0]
    times = schedule.t(time_grid(schedule, 8, "uniform_t", 0.8))
    np.testing.assert_allclose(times, np.linspace(0.8, 0.0, 9), atol=1e-6)
    levels = time_grid(schedule, 8, "uniform_logsnr")
    np.testing.assert_allclose(np.diff(levels), 5.0, rtol=1e-5)
    sigma = np.exp(-0.5 * np.asarray(time_grid(schedule, 8, "karras", rho=3.0), np.float64))[:-1]
    np.testing.assert_allclose(np.diff(sigma ** (1 / 3), 2), 0.0, atol=2e-6)


def test_grids_are_known_and_checked_inside_jit():
    inside = jax.jit(lambda: time_grid(SCHEDULES[0], 5, "karras"))()
    np.testing.assert_array_equal(inside, time_grid(SCHEDULES[0], 5, "karras"))
    with pytest.raises(ValueError, match=r"karras.*not increasing"):
        jax.jit(lambda: time_grid(SCHEDULES[0], 5, "karras", t_start=1e-4))()


@pytest.mark.parametrize(
    ("steps", "kind", "options", "words"),
    [
        (5, "quadratic", {}, r"'quadratic'.*karras.*uniform_t"),
        (0, "uniform_t", {}, "steps.*0"),
        (5, "uniform_t", {"t_start": 0.0}, r"t_start.*0\.0"),
        (5, "uniform_t", {"t_start": 1.5}, r"t_start.*1\.5"),
        (5, "karras", {"sigma_min": 2.0, "sigma_max": 1.0}, r"sigma_min=2\.0"),
        (5, "karras", {"sigma_min": 1e-6}, "not increasing"),
        (2000, "trailing", {}, "steps=2000.*1000"),
        (600, "leading", {"t_start": 0.5}, "steps=600.*500"),
    ],
)
def test_grid_errors(steps, kind, options, words):
    with pytest.raises(ValueError, match=words):
        time_grid(SCHEDULES[0], steps, kind, **options)


@pytest.mark.parametrize("name", SAMPLERS)
def test_results_do_not_depend_on_the_batch(name):
    """Each example from its own key: in another order and among others, the noise bit for bit.

    Results to 2e-6: a compiler may round a sum differently in a batch of another size.
    """
    grid = time_grid(SCHEDULES[0], 6, "karras")
    keys = jax.random.split(jax.random.key(0), 5)

    def run(keys):
        noise = initial_noise(keys, len(keys), SHAPE)
        return noise, sample(name, DATA.denoise, noise, grid, keys, **STOCHASTIC[name]).x0

    noise, together = run(keys)
    choice = np.array([4, 1])
    noise_chosen, chosen = run(keys[choice])
    np.testing.assert_array_equal(noise_chosen, noise[choice])
    np.testing.assert_allclose(chosen, together[choice], atol=2e-6)


def test_keys():
    key = jax.random.key(5)
    keys = per_example_keys(key, 4)
    assert keys.shape == (4,)
    np.testing.assert_array_equal(
        jax.random.key_data(per_example_keys(key, 2)), jax.random.key_data(keys[:2])
    )
    raw = per_example_keys(jax.random.PRNGKey(5), 4)
    np.testing.assert_array_equal(jax.random.key_data(raw), jax.random.key_data(keys))
    raw = per_example_keys(jax.random.key_data(keys), 4)
    np.testing.assert_array_equal(jax.random.key_data(raw), jax.random.key_data(keys))
    noise = initial_noise(key, 4, (64, 64, 3))
    assert np.abs(np.corrcoef(noise.reshape(4, -1)) - np.eye(4)).max() < 5 / np.sqrt(64 * 64 * 3)
    with pytest.raises(ValueError, match=r"3 keys.*\(4,\)"):
        per_example_keys(keys, 3)


def test_initial_noise_is_not_the_noise_of_any_step():
    """Else a sampler given the same key would undo or double its starting noise."""
    key, drawn = jax.random.key(0), []
    x_t = initial_noise(key, 1, (32, 32, 3))
    grid = time_grid(SCHEDULES[0], 10, "uniform_t")

    def denoise(x, logsnr):
        jax.debug.callback(lambda x: drawn.append(np.asarray(x)), x, ordered=True)
        return jnp.zeros_like(x)

    sample("ddpm", denoise, x_t, grid, key)
    jax.effects_barrier()
    # At the second level the sampler's own noise is all but all of x.
    correlation = np.corrcoef(drawn[0].ravel(), drawn[1].ravel())[0, 1]
    assert abs(correlation) < 5 / np.sqrt(32 * 32 * 3)
    for later in range(2, 10):
        assert np.abs(drawn[later]).max() < 10


@pytest.mark.parametrize("name", SAMPLERS)
def test_finite_on_every_schedule_and_grid(name):
    """Float32 from logsnr -20 to 20, also where 1 / alpha is 2e4, in one to nine steps."""

    def denoise(x, logsnr):
        # By way of eps, as an eps-network would do it, and thresholded as it must be.
        x0 = DATA.denoise(x, logsnr)
        return jnp.clip(to_x0("eps", to_eps("x0", x0, x, logsnr), x, logsnr), -3, 3)

    x_t = initial_noise(jax.random.key(0), 2, SHAPE)
    run = jax.jit(
        lambda grid: sample(name, denoise, x_t, grid, jax.random.key(1), **STOCHASTIC[name]).x0
    )
    for schedule in SCHEDULES:
        for kind in TIME_GRIDS:
            assert np.all(np.isfinite(run(time_grid(schedule, 9, kind))))
    one = sample(name, denoise, x_t, time_grid(SCHEDULES[0], 1, "uniform_t"), jax.random.key(1))
    np.testing.assert_allclose(one.x0, np.tile(DATA.mean(), 2).reshape(2, *SHAPE), atol=1e-2)


@pytest.mark.parametrize("name", SAMPLERS)
def test_one_scan_one_compilation_per_shape_and_intermediates(name):
    traces = []

    def denoise(x, logsnr):
        assert logsnr.shape == ()
        traces.append(x.shape)
        return DATA.denoise(x, logsnr)

    def plain(x, grid, key):
        return sample(name, denoise, x, grid, key, intermediates=True, **STOCHASTIC[name])

    run = jax.jit(plain)
    first = run(
        initial_noise(jax.random.key(0), 2, SHAPE),
        time_grid(SCHEDULES[0], 5, "karras"),
        jax.random.key(1),
    )
    count = len(traces)
    run(
        initial_noise(jax.random.key(2), 2, SHAPE),
        time_grid(SCHEDULES[1], 5, "uniform_t"),
        jax.random.key(3),
    )
    assert len(traces) == count
    assert first.intermediates.shape == (5, 2, *SHAPE)
    np.testing.assert_array_equal(first.intermediates[-1], first.x0)
    jaxpr = jax.make_jaxpr(plain)(
        jnp.zeros((2, *SHAPE)), time_grid(SCHEDULES[0], 5, "karras"), jax.random.key(1)
    )
    assert [e.primitive.name for e in jaxpr.eqns].count("scan") == 1


def test_heun_calls_the_network_twice_per_step_but_once_in_the_last():
    calls = []

    def denoise(x, logsnr):
        jax.debug.callback(lambda level: calls.append(float(level)), logsnr, ordered=True)
        return DATA.denoise(x, logsnr)

    grid = time_grid(SCHEDULES[0], 4, "karras")
    sample("heun", denoise, initial_noise(jax.random.key(0), 1, SHAPE), grid)
    jax.effects_barrier()
    np.testing.assert_allclose(calls, np.asarray(grid)[[0, 1, 1, 2, 2, 3, 3]], rtol=1e-6)


@pytest.mark.parametrize("name", SAMPLERS)
def test_progress(name):
    seen = []
    run = jax.jit(
        lambda x: (
            sample(
                name,
                DATA.denoise,
                x,
                time_grid(SCHEDULES[0], 6, "karras"),
                jax.random.key(0),
                progress=lambda number: seen.append(int(number)),
            ).x0
        )
    )
    run(initial_noise(jax.random.key(0), 2, SHAPE)).block_until_ready()
    jax.effects_barrier()
    assert sorted(seen) == list(range(6))


def test_not_a_number_stays_within_its_example():
    x_t = initial_noise(jax.random.key(0), 3, SHAPE).at[1, 0, 0, 0].set(jnp.nan)
    for name in ("dpmpp_2m", "heun"):
        grid = time_grid(SCHEDULES[0], 3, "karras")
        x0 = sample(name, DATA.denoise, x_t, grid, jax.random.key(0)).x0
        np.testing.assert_array_equal(np.isnan(x0).any(axis=(1, 2, 3)), [False, True, False])


@pytest.mark.parametrize(
    ("name", "options", "words"),
    [
        ("euler", {}, r"'euler'.*ddim.*dpmpp_2m.*heun"),
        ("ddim", {"eta": 1.5}, r"eta.*1\.5"),
        ("ddim", {"eta": 0.5}, "key"),
        ("ddpm", {}, "key"),
        ("dpmpp_2m_sde", {}, "key"),
        ("ddpm", {"variance": "learned"}, r"'learned'.*small.*large"),
        ("heun", {"churn": -1.0}, r"churn=-1\.0"),
        ("heun", {"churn": 1.0}, "key"),
    ],
)
def test_errors(name, options, words):
    x_t = jnp.zeros((1, *SHAPE))
    with pytest.raises(ValueError, match=words):
        sample(name, DATA.denoise, x_t, time_grid(SCHEDULES[0], 2, "karras"), **options)


@pytest.mark.parametrize("grid", [[1.0], [[0.0, 1.0]], [1.0, 0.0], [0.0, np.nan], [0.0, 0.0, 1.0]])
def test_bad_grids(grid):
    with pytest.raises(ValueError, match="grid"):
        sample("ddim", DATA.denoise, jnp.zeros((1, *SHAPE)), np.asarray(grid, np.float32))
