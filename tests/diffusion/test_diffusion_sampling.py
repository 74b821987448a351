"""Samplers as programs: grids, keys, batches, compilation, progress, errors."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from imagen_jax.diffusion import (
    DDIM,
    DDPM,
    SAMPLERS,
    TIME_GRIDS,
    DPMpp2M,
    GaussianMixture,
    Heun,
    format_sampler,
    initial_noise,
    make_schedule,
    parse_sampler,
    per_example_keys,
    sample,
    time_grid,
    to_eps,
    to_x0,
)
from imagen_jax.diffusion.respacing import RESPACINGS

SCHEDULES = [
    make_schedule("cosine"),
    make_schedule("linear"),
    make_schedule("shifted_cosine", image_size=256, reference_size=64),
]
DATA = GaussianMixture(
    np.array([0.5, 0.5]), np.array([[-0.5] * 12, [0.4] * 12]), np.stack([np.eye(12) * 0.02] * 2)
)
SHAPE = (2, 2, 3)
ANY_STEPS = sorted(set(TIME_GRIDS) - set(RESPACINGS))
STOCHASTIC = (DDPM(), DDIM(eta=0.5), DPMpp2M(), DPMpp2M(sde=True), Heun(churn=3.0))


@pytest.mark.slow
@settings(max_examples=60)
@given(
    st.sampled_from(SCHEDULES),
    st.sampled_from(ANY_STEPS),
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
        (5, "uniform_t", {"rho": 7.0}, "'uniform_t' has no option 'rho'; it has none"),
        (5, "karras", {"train_steps": 10}, "'karras' has no option 'train_steps'; it has rho"),
    ],
)
def test_grid_errors(steps, kind, options, words):
    with pytest.raises(ValueError, match=words):
        time_grid(SCHEDULES[0], steps, kind, **options)


@pytest.mark.slow
@pytest.mark.parametrize("sampler", STOCHASTIC, ids=format_sampler)
def test_results_do_not_depend_on_the_batch(sampler):
    """Each example from its own key: in another order and among others, the noise bit for bit.

    Results to 2e-6: a compiler may round a sum differently in a batch of another size.
    """
    grid = time_grid(SCHEDULES[0], 6, "karras")
    keys = jax.random.split(jax.random.key(0), 5)

    def run(keys):
        noise = initial_noise(keys, len(keys), SHAPE)
        return noise, sample(sampler, DATA.denoise, noise, grid, keys)

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


@pytest.mark.slow
@pytest.mark.parametrize("sampler", STOCHASTIC, ids=format_sampler)
def test_finite_on_every_schedule_and_grid(sampler):
    """Float32 from logsnr -20 to 20, also where 1 / alpha is 2e4, in one to nine steps."""

    def denoise(x, logsnr):
        # By way of eps, as an eps-network would do it, and thresholded as it must be.
        x0 = DATA.denoise(x, logsnr)
        return jnp.clip(to_x0("eps", to_eps("x0", x0, x, logsnr), x, logsnr), -3, 3)

    x_t = initial_noise(jax.random.key(0), 2, SHAPE)
    run = jax.jit(lambda grid: sample(sampler, denoise, x_t, grid, jax.random.key(1)))
    for schedule in SCHEDULES:
        for kind in ANY_STEPS:
            assert np.all(np.isfinite(run(time_grid(schedule, 9, kind))))
    one = sample(sampler, denoise, x_t, time_grid(SCHEDULES[0], 1, "uniform_t"), jax.random.key(1))
    np.testing.assert_allclose(one, np.tile(DATA.mean(), 2).reshape(2, *SHAPE), atol=1e-2)


@pytest.mark.slow
@pytest.mark.parametrize("sampler", STOCHASTIC, ids=format_sampler)
def test_one_scan_one_compilation_per_shape_and_intermediates(sampler):
    traces = []

    def denoise(x, logsnr):
        assert logsnr.shape == ()
        traces.append(x.shape)
        return DATA.denoise(x, logsnr)

    def plain(x, grid, key):
        return sample(sampler, denoise, x, grid, key, intermediates=True)

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
    assert first.shape == (5, 2, *SHAPE)
    without = sample(
        sampler,
        DATA.denoise,
        initial_noise(jax.random.key(0), 2, SHAPE),
        time_grid(SCHEDULES[0], 5, "karras"),
        jax.random.key(1),
    )
    np.testing.assert_allclose(first[-1], without, atol=1e-4)
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


def test_nan_stays_within_its_example():
    x_t = initial_noise(jax.random.key(0), 3, SHAPE).at[1, 0, 0, 0].set(jnp.nan)
    for name in ("dpmpp_2m", "heun"):
        grid = time_grid(SCHEDULES[0], 3, "karras")
        x0 = sample(name, DATA.denoise, x_t, grid, jax.random.key(0))
        np.testing.assert_array_equal(np.isnan(x0).any(axis=(1, 2, 3)), [False, True, False])


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("euler", r"'euler'.*ddpm\(variance=small\), ddim\(eta=0.0\), dpmpp_2m\(sde=false\), heun"),
        ("ddim(eta=1.5)", r"eta.*1\.5"),
        ("ddim(eta=half)", r"sampler ddim.eta must be of type float, got 'half'"),
        ("ddim(etta=0.5)", r"did you mean 'eta'"),
        ("ddim(0.5)", r"not of the form ddim\(eta=0\.0\)"),
        ("ddim(eta=0.5", r"not of the form ddim\(eta=0\.0\)"),
        ("ddim(eta=0.5)) + (1", r"not of the form ddim"),
        ("ddim(eta=__import__('os'))", r"not of the form ddim"),
        ("dpmpp_2m(sde=1)", "sde must be of type bool"),
        ("ddpm(variance=learned)", r"variance is learned.*small, large"),
        ("ddpm(variance=1.1)", r"variance is 1\.1"),
        ("ddpm(variance=true)", r"ddpm.variance must be of type .*, got True"),
        ("heun(churn=-1)", r"churn=-1\.0"),
        ("ddim(eta=0.5)", "key"),
        ("ddpm", "key"),
        ("dpmpp_2m(sde=true)", "key"),
        ("heun(churn=1)", "key"),
    ],
)
def test_errors(text, words):
    x_t = jnp.zeros((1, *SHAPE))
    with pytest.raises(ValueError, match=words):
        sample(text, DATA.denoise, x_t, time_grid(SCHEDULES[0], 2, "karras"))


@pytest.mark.parametrize(
    ("text", "sampler"),
    [
        ("ddim", DDIM()),
        ("ddim(eta=0.5)", DDIM(0.5)),
        (" ddim ( eta = 1 ) ", DDIM(1.0)),
        ("ddpm(variance=large)", DDPM("large")),
        ("ddpm(variance=0.3)", DDPM(0.3)),
        ("dpmpp_2m(sde=true)", DPMpp2M(sde=True)),
        ("heun(churn=10, churn_max=5.5)", Heun(10.0, churn_max=5.5)),
        ("heun(churn_max=inf)", Heun()),
        ("heun()", Heun()),
    ],
)
def test_samplers_are_read_from_text_and_written(text, sampler):
    assert parse_sampler(text) == sampler
    assert type(parse_sampler(text)) is SAMPLERS[text.partition("(")[0].strip()]
    assert parse_sampler(format_sampler(sampler)) == sampler


def test_a_sampler_that_has_no_name_has_no_text():
    with pytest.raises(ValueError, match="3 is not of a class in SAMPLERS: ddpm, ddim, dpmpp_2m"):
        format_sampler(3)


def test_churn_is_divided_by_the_steps_that_are_made():
    """Each of 8 steps adds an eighth of the noise, whatever was compiled for."""

    def levels(steps, churn):
        seen = []

        def denoise(x, logsnr):
            jax.debug.callback(lambda level: seen.append(float(level)), logsnr, ordered=True)
            return jnp.zeros_like(x)

        grid = jnp.append(jnp.linspace(-4.0, 4.0, steps), 20.0)
        sample(Heun(churn), denoise, jnp.zeros((1, *SHAPE)), grid, jax.random.key(0))
        jax.effects_barrier()
        return np.array(seen[::2]), np.asarray(grid[:-1])

    for steps in (4, 8):
        churned, grid = levels(steps, 1.0)
        np.testing.assert_allclose(np.exp(0.5 * (grid - churned)), 1 + 1 / steps, rtol=1e-5)


@pytest.mark.parametrize("kind", ["uniform_t", "uniform_logsnr", "karras"])
@pytest.mark.parametrize("steps", [2, 8, 100])
@pytest.mark.parametrize("end", [-4.0, 3.5])
def test_end_of_a_grid_is_the_level_of_the_last_call(kind, steps, end):
    for schedule in SCHEDULES[:1] + SCHEDULES[2:]:
        grid = np.asarray(time_grid(schedule, steps, kind, end_logsnr=end))
        assert grid[-2] == pytest.approx(end, abs=1e-3)
        assert grid[-1] == float(schedule.logsnr(0.0))
        assert grid[0] == np.asarray(time_grid(schedule, steps, kind))[0]
        assert len(grid) == steps + 1
        # Beyond the schedule's end, and before an edit starts, it is as if there were none.
        for start, beyond in ((1.0, 20.0), (float(schedule.t(end + 1)), end)):
            without = time_grid(schedule, 2, kind, start)
            np.testing.assert_array_equal(time_grid(schedule, 2, kind, start, beyond), without)


def test_end_of_a_grid_must_be_within_the_schedule():
    with pytest.raises(ValueError, match=r"end_logsnr is -20.*must be above -20"):
        time_grid(SCHEDULES[0], 5, "uniform_t", end_logsnr=-20.0)
    with pytest.raises(ValueError, match="choose uniform_t, uniform_logsnr or karras"):
        time_grid(SCHEDULES[0], 5, "trailing", end_logsnr=2.0)


@pytest.mark.usefixtures("unchecked_shapes")
@pytest.mark.parametrize("grid", [[1.0], [[0.0, 1.0]], [1.0, 0.0], [0.0, np.nan], [0.0, 0.0, 1.0]])
def test_bad_grids(grid):
    with pytest.raises(ValueError, match="grid"):
        sample("ddim", DATA.denoise, jnp.zeros((1, *SHAPE)), np.asarray(grid, np.float32))
