"""Agreement with the schedulers of `diffusers`: stored by tests/make_diffusers_reference.py.

Tolerance per step: 2e-6 absolute on images of magnitude up to 4, that is 8 float32 roundings of
the largest value; `diffusers` computes in float32 too. Measured: 7.2e-7 at most.
"""

import math
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from imagen_jax.diffusion import (
    DDIM,
    DDPM,
    DPMpp2M,
    Heun,
    make_schedule,
    sample,
    time_grid,
    to_x0,
)
from imagen_jax.diffusion.transitions import State, Transition

REFERENCE = np.load(pathlib.Path(__file__).parents[1] / "testdata" / "diffusers_reference.npz")
CASES = {
    "ddpm_small": DDPM("small"),
    "ddpm_large": DDPM("large"),
    "ddim_eta_0": DDIM(0.0),
    "ddim_eta_0.5": DDIM(0.5),
    "ddim_eta_1": DDIM(1.0),
    "dpmpp_2m": DPMpp2M(),
    "dpmpp_2m_sde": DPMpp2M(sde=True),
    "heun": Heun(),
    "heun_churn": Heun(churn=2.0, churn_min=0.1, churn_max=10.0, noise_scale=1.007),
}
TOLERANCE = 2e-6


def stored(case, name):
    return REFERENCE[f"{case}/{name}"]


def predict_eps(x, logsnr):
    """The "network" of the reference."""
    return jnp.sqrt(jax.nn.sigmoid(-logsnr)) * x + 0.3 * jnp.sin(2.0 * x + 0.2 * logsnr)


@pytest.mark.parametrize("case", CASES)
def test_every_step_agrees(case):
    """Each step from the reference's own x, estimates of x0 and noise; the history is our own."""
    sampler = CASES[case]
    levels_t, levels_s = stored(case, "logsnr_t"), stored(case, "logsnr_s")
    x0_ahead = stored(case, "x0_ahead") if isinstance(sampler, Heun) else stored(case, "x0")
    state = State(jnp.zeros((2, 4, 4, 3)), jnp.zeros((2, 4, 4, 3)), jnp.zeros(()))
    for i in range(len(levels_t)):
        if math.isinf(levels_s[i]):
            continue

        def denoise(x, logsnr, i=i):
            ahead = jnp.abs(logsnr - levels_s[i]) < 1e-4
            return jnp.where(ahead, x0_ahead[i], stored(case, "x0")[i])

        transition = Transition(
            number=jnp.int32(i),
            t=jnp.float32(levels_t[i]),
            s=jnp.float32(levels_s[i]),
            last=jnp.bool_(False),
            steps=jnp.int32(8),
        )
        state = state._replace(x=jnp.asarray(stored(case, "x")[i]))
        state = sampler.step(denoise, state, transition, lambda i=i: stored(case, "noise")[i])
        np.testing.assert_allclose(state.x, stored(case, "next")[i], atol=TOLERANCE, rtol=0)


@pytest.mark.parametrize("case", ["ddpm_small", "ddim_eta_0", "dpmpp_2m", "dpmpp_2m_sde", "heun"])
def test_last_step_returns_x0_there_too(case):
    """Not so ddpm_large, which adds a last noise of variance beta to its result; here none does."""
    assert math.isinf(stored(case, "logsnr_s")[-1])
    np.testing.assert_allclose(stored(case, "next")[-1], stored(case, "x0")[-1], atol=TOLERANCE)


@pytest.mark.parametrize("case", ["ddim_eta_0", "dpmpp_2m", "heun"])
def test_whole_runs_agree(case):
    """From the same noise to the last image, our own estimates fed back at every step."""
    grid = np.append(stored(case, "logsnr_t"), 20.0).astype(np.float32)

    def denoise(x, logsnr):
        return to_x0("eps", predict_eps(x, logsnr), x, logsnr)

    x_t = jnp.asarray(stored(case, "x")[0])
    estimates = sample(CASES[case], denoise, x_t, grid, intermediates=True)
    np.testing.assert_allclose(estimates[-1], stored(case, "next")[-1], atol=2e-5)
    # Estimates reach 47 at the noisy end, where 1 / alpha is 150.
    np.testing.assert_allclose(estimates, stored(case, "x0"), atol=1e-4, rtol=1e-5)


@pytest.mark.parametrize("kind", ["leading", "trailing"])
@pytest.mark.parametrize("steps", [10, 7])
def test_discrete_grids_visit_the_same_times(kind, steps):
    schedule = make_schedule("linear")
    times = np.asarray(schedule.t(time_grid(schedule, steps, kind)))[:-1]
    np.testing.assert_allclose(times * 1000 - 1, stored("grids", f"{kind}_{steps}"), atol=2e-3)


def test_karras_grid_has_the_same_levels():
    grid = time_grid(make_schedule("cosine"), 10, "karras", sigma_min=0.002, sigma_max=80.0)
    np.testing.assert_allclose(np.exp(-0.5 * grid[:-1]), stored("grids", "karras_10"), rtol=1e-5)
