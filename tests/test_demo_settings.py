"""Sampling settings on the shipped cascade, against scenes whose pixels are known."""

from __future__ import annotations

import functools
from typing import Any

import numpy as np
import pytest

from imagen_jax.cascade import Cascade
from imagen_jax.data.scenes.grammar import caption
from imagen_jax.data.scenes.levels import get_level
from imagen_jax.data.scenes.render import render
from imagen_jax.data.scenes.sampling import sample_scene
from imagen_jax.eval.alignment import score_all

COUNT, SIDE = 8, 64
LEVEL = get_level("quickstart")
SCENES = [sample_scene(LEVEL, "heldout", 77, i) for i in range(COUNT)]
TRUTH = np.stack([render(scene, SIDE) for scene in SCENES]).astype(float)
GROUND = np.median(TRUTH[:, :3].reshape(COUNT, -1, 3), axis=1)[:, None, None]
IS_GROUND = (np.abs(TRUTH - GROUND) < 2).all(axis=-1)
FROM_EDGE = np.minimum.reduce(
    np.meshgrid(*[np.minimum(np.arange(SIDE), np.arange(SIDE)[::-1])] * 2)
)


@functools.cache
def cascade() -> Cascade:
    return Cascade.load()


def sample(**options: Any) -> np.ndarray:
    prompts = [caption(scene) for scene in SCENES]
    return cascade().sample(prompts, seed=range(COUNT), show_progress=False, **options).images


def off_ground(images: np.ndarray, where: np.ndarray) -> float:
    """Root mean square distance from the colour of the ground, in levels of 255."""
    return float(np.sqrt((((images - GROUND) ** 2)[IS_GROUND & where]).mean()))


@pytest.mark.slow
def test_pad_mends_the_border() -> None:
    plain, padded = sample(), sample(pad=4)
    ring, inside = FROM_EDGE < 2, FROM_EDGE >= 6
    assert off_ground(padded, ring) < max(0.6 * off_ground(plain, ring), 4)
    assert off_ground(padded, inside) < 1.2 * off_ground(plain, inside)
    error, before = (np.sqrt(((images - TRUTH) ** 2).mean()) for images in (padded, plain))
    assert error < 1.05 * before


@pytest.mark.slow
def test_more_steps_to_the_same_end_leave_no_more_grain() -> None:
    everywhere = np.full((SIDE, SIDE), True)
    few, many = (
        off_ground(sample(steps=steps, end_logsnr={"base": -4.0, "sr": 3.5}), everywhere)
        for steps in (8, 32)
    )
    assert many < 1.1 * few


@pytest.mark.slow
def test_guidance_above_an_interval_leaves_scenes_right() -> None:
    """The unguided last calls decide what is left of a strong guidance with dynamic thresholds."""

    def right(**options: Any) -> float:
        images = sample(guidance={"base": 2.0}, threshold="dynamic", **options)
        return float(np.mean([score["all_correct"] for score in score_all(SCENES, images, LEVEL)]))

    inside = right(guidance_max_logsnr={"base": -4.0})
    assert inside >= 0.85
    assert inside >= right()
