"""DeepFloyd IF's diffusion against diffusers' scheduler (tests/make_deepfloyd_reference.py)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import deepfloyd_files as files
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from imagen_jax.diffusion.augment import SCHEDULE, upsample_low_res
from imagen_jax.diffusion.editing import keep_outside
from imagen_jax.diffusion.grids import time_grid
from imagen_jax.diffusion.guidance import DynamicThreshold, guided_denoiser, static_threshold
from imagen_jax.diffusion.parametrization import diffuse
from imagen_jax.diffusion.respacing import RESPACINGS, respaced
from imagen_jax.diffusion.samplers import DDPM
from imagen_jax.diffusion.schedule import DiscreteCosineSchedule
from imagen_jax.diffusion.transitions import Transition, move, path_transitions, start_state
from imagen_jax.errors import UserError
from imagen_jax.models.deepfloyd_unet import aug_step
from imagen_jax.typing import Conditioning, TextEmbedding

REFERENCE = np.load(Path(__file__).parent / "testdata" / "deepfloyd_diffusion.npz")
SCHEDULE_OF_IF = DiscreteCosineSchedule()
LOGSNRS = np.asarray(SCHEDULE_OF_IF.logsnr(np.arange(1, 1001, dtype=np.float32) / 1000))
TEXT = TextEmbedding(jnp.zeros((2, 1, 1)), jnp.ones((2, 1), bool))


def network(x: Any, logsnr: Any, conditioning: Conditioning) -> Any:
    """deepfloyd_files.predict in place of a network; without text, other eps and other v."""
    step = jnp.argmin(jnp.abs(LOGSNRS - logsnr[:, None]), axis=1)[:, None, None, None]
    eps = 0.6 * x + 0.3 * jnp.sin(2.0 * x + 0.01 * step)
    v = jnp.sin(3.0 * x - 0.005 * step)
    there = conditioning.text.mask.any(axis=1)[:, None, None, None]
    return jnp.concatenate([jnp.where(there, eps, x), jnp.where(there, v, -1.0)], axis=-1)


def test_levels_are_those_of_the_scheduler() -> None:
    alpha2 = jax.nn.sigmoid(jnp.asarray(LOGSNRS))
    np.testing.assert_allclose(alpha2, REFERENCE["alphas_cumprod"], rtol=2e-4, atol=1e-9)


@pytest.mark.parametrize("name", RESPACINGS)
def test_respacings_are_the_lists_of_diffusers(name: str) -> None:
    taken = respaced(RESPACINGS[name])
    assert taken == REFERENCE[f"respacing/{name}"].tolist()
    grid = time_grid(SCHEDULE_OF_IF, len(taken), name)
    np.testing.assert_array_equal(grid[:-1], LOGSNRS[taken])
    later = time_grid(SCHEDULE_OF_IF, len(taken), name, t_start=0.5)
    assert later[0] == pytest.approx(float(SCHEDULE_OF_IF.logsnr(0.5)))
    with pytest.raises(UserError, match=f"'{name}' has {len(taken)} steps; 12 were asked for"):
        time_grid(SCHEDULE_OF_IF, 12, name)
    with pytest.raises(UserError, match="end_logsnr"):
        time_grid(SCHEDULE_OF_IF, len(taken), name, end_logsnr=5.0)


@pytest.mark.parametrize(
    ("case", "grid", "threshold"),
    [
        ("leading100", "leading", DynamicThreshold(95.0, 1.5)),
        ("fast27", "fast27", DynamicThreshold(95.0, 1.5)),
        ("smart50", "smart50", static_threshold),
    ],
)
def test_every_step_is_that_of_the_scheduler(case: str, grid: str, threshold: Any) -> None:
    timesteps = REFERENCE[f"{case}/timesteps"]
    levels = time_grid(SCHEDULE_OF_IF, len(timesteps), grid)
    np.testing.assert_array_equal(levels[:-1], LOGSNRS[timesteps])
    moves = path_transitions(levels, np.arange(len(levels)))
    denoise = guided_denoiser(network, Conditioning(TEXT), 1, "eps", threshold)

    @jax.jit
    def step(x: Any, noise: Any, transition: Transition) -> Any:
        done = DDPM("learned").step(denoise, start_state(x), transition, lambda: noise)
        return jnp.where(transition.last, done.x0, done.x), done.x0

    for i, place in enumerate(REFERENCE[f"{case}/place"]):
        x, noise, x0, after = (REFERENCE[f"{case}/{k}"][i] for k in ("x", "noise", "x0", "next"))
        got, estimate = step(x, noise, Transition(*(leaf[place] for leaf in moves)))
        amplified = 2.0**-22 * np.exp(-0.5 * levels[place])  # roundings of x and eps, in x0
        np.testing.assert_allclose(estimate, x0, rtol=0, atol=2e-6 + amplified)
        np.testing.assert_allclose(got, after, rtol=0, atol=2e-6 * np.abs(after).max())


def test_guidance_moves_eps_and_keeps_the_variance_of_the_text() -> None:
    x, logsnr = jnp.asarray(files.normal("x", 2, 4, 4, 3)), jnp.float32(0.3)
    guided = guided_denoiser(network, Conditioning(TEXT), 7.0, "eps", "none")
    alone = guided_denoiser(network, Conditioning(TEXT), 1, "eps", "none")
    np.testing.assert_allclose(
        guided.with_variance(x, logsnr)[1], alone.with_variance(x, logsnr)[1], atol=1e-6
    )
    none = TextEmbedding(TEXT.states, jnp.zeros_like(TEXT.mask))
    dropped = guided_denoiser(network, Conditioning(none), 1, "eps", "none")
    expected = 7.0 * alone(x, logsnr) - 6.0 * dropped(x, logsnr)
    np.testing.assert_allclose(guided(x, logsnr), expected, rtol=1e-4, atol=1e-4)


def test_inpainting_keeps_the_variance() -> None:
    x, logsnr = jnp.asarray(files.normal("x", 2, 4, 4, 3)), jnp.float32(0.3)
    denoise = guided_denoiser(network, Conditioning(TEXT), 1, "eps", "none")
    image, mask = jnp.zeros_like(x), jnp.ones((2, 4, 4, 1), bool).at[:, :2].set(False)
    x0, variance = keep_outside(denoise, image, mask).with_variance(x, logsnr)
    assert (x0[:, :2] == 0).all()
    np.testing.assert_array_equal(x0[:, 2:], denoise(x, logsnr)[:, 2:])
    np.testing.assert_array_equal(variance, denoise.with_variance(x, logsnr)[1])


@pytest.mark.parametrize("denoise", [lambda x, t: x, "network"])
def test_learned_variance_needs_a_network_that_predicts_it(denoise: Any) -> None:
    if denoise == "network":

        def eps_alone(x: Any, logsnr: Any, c: Any) -> Any:
            return network(x, logsnr, c)[..., :3]

        denoise = guided_denoiser(eps_alone, Conditioning(TEXT), 1, "eps", "none")
    x = jnp.zeros((2, 4, 4, 3))
    transition = jax.tree.map(lambda leaf: leaf[0], path_transitions(jnp.float32([0, 1, 2])))
    keys = jax.random.split(jax.random.key(0), 2)
    with pytest.raises(UserError, match="this network predicts none"):
        move(DDPM("learned"), denoise, start_state(x), transition, keys)


def test_noise_levels_of_stage_two_are_augmentation_levels() -> None:
    """aug_level is a time of the cosine schedule: the one with the same logsnr."""
    levels = REFERENCE["add_noise/levels"]
    aug = SCHEDULE.t(LOGSNRS[levels])
    np.testing.assert_allclose(SCHEDULE.logsnr(aug[:3]), LOGSNRS[levels[:3]], atol=1e-3)
    np.testing.assert_array_equal(aug_step(SCHEDULE.t(LOGSNRS)), np.arange(1000))
    x0, noise = (files.normal(name, 4, 5, 5, 3) for name in ("x0", "noise"))
    noised = diffuse(x0, noise, SCHEDULE.logsnr(aug))
    np.testing.assert_allclose(noised, REFERENCE["add_noise/noised"], atol=3e-4)
    exact = diffuse(x0, noise, jnp.asarray(LOGSNRS[levels]))
    np.testing.assert_allclose(exact, REFERENCE["add_noise/noised"], atol=2e-6)


def test_enlarging_between_the_centres_of_corner_pixels() -> None:
    small = jnp.asarray(files.normal("small", 2, 4, 6, 3))
    enlarged = upsample_low_res(small, (16, 24), align_corners=True)
    np.testing.assert_allclose(enlarged, REFERENCE["enlarged"], atol=2e-6)
    np.testing.assert_array_equal(enlarged[:, ::15, ::23], small[:, ::3, ::5])
