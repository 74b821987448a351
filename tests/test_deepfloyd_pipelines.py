"""Both stages one after another, against diffusers' pipelines with the noise that these draw.

Everything but the noise is what sampling runs: an imported cascade, its settings, text that is
computed once, guidance, thresholding, and the sampler's steps.
"""

from __future__ import annotations

import dataclasses
import functools
from pathlib import Path
from typing import Any

import deepfloyd_files as files
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from imagen_jax.checkpoints.cascades import open_cascade
from imagen_jax.checkpoints.deepfloyd import import_deepfloyd
from imagen_jax.checkpoints.pretrained import Pretrained
from imagen_jax.diffusion.augment import SCHEDULE, upsample_low_res
from imagen_jax.diffusion.guidance import guided_denoiser
from imagen_jax.diffusion.parametrization import diffuse
from imagen_jax.diffusion.samplers import parse_sampler
from imagen_jax.diffusion.transitions import Transition, path_transitions, start_state
from imagen_jax.sampling import Edit, noise_levels
from imagen_jax.stage import Stage
from imagen_jax.stage_programs import threshold_of
from imagen_jax.typing import Conditioning, TextEmbedding

TESTDATA = Path(__file__).parent / "testdata"
REFERENCE = np.load(TESTDATA / "deepfloyd_pipelines.npz")
STATES = np.load(TESTDATA / "deepfloyd_text.npz")["states"]
GREY_LEVEL = 1 / 127.5


@pytest.fixture(scope="module")
def cascade(tmp_path_factory: pytest.TempPathFactory) -> Pretrained:
    parent = tmp_path_factory.mktemp("pipelines")
    one = files.write_text_encoder(files.write_stage(parent / "one", "I"))
    two = files.write_stage(parent / "two", "II")
    import_deepfloyd([one, two], parent / "cascade", show=lambda terms: None)
    return open_cascade(parent / "cascade")


def sample(stage: Stage, params: Any, noise: np.ndarray, steps: int, low_res: Any) -> jax.Array:
    """Images of the two captions; noise in the order that a pipeline draws it in."""
    settings = stage.sample
    x, draws = jnp.asarray(noise[0]), list(noise[1:])
    conditioning = Conditioning(TextEmbedding(jnp.asarray(STATES[1:3]), jnp.ones((2, 77), bool)))
    if low_res is not None:
        level = jnp.full(2, settings.aug_level)
        enlarged = upsample_low_res(low_res, x.shape[1:3], stage.align_corners)
        noised = diffuse(enlarged, draws.pop(0), SCHEDULE.logsnr(level))
        conditioning = conditioning._replace(low_res=noised, aug_level=level)
    denoise = guided_denoiser(
        functools.partial(stage.apply, params),
        conditioning,
        settings.guidance,
        stage.parametrization,
        threshold_of(settings),
        prepare=functools.partial(stage.cache_text, params),
    )
    grid, path = noise_levels(stage, dataclasses.replace(settings, steps=steps), Edit())
    sampler = parse_sampler(settings.sampler)

    @jax.jit
    def step(state: Any, transition: Any, drawn: Any) -> Any:
        return sampler.step(denoise, state, transition, lambda: drawn)

    moves, state = path_transitions(grid, path), start_state(x)
    for i in range(steps):
        drawn = draws[i] if i < len(draws) else jnp.zeros_like(x)
        state = step(state, Transition(*(leaf[i] for leaf in moves)), drawn)
    return state.x0


@pytest.mark.slow
@pytest.mark.parametrize("stage", ["I", "II"])
def test_images_are_those_of_the_pipeline(cascade: Pretrained, stage: str) -> None:
    of_cascade = cascade.stages[0 if stage == "I" else 1]
    made = sample(
        of_cascade,
        cascade.weights(of_cascade),
        REFERENCE[f"{stage}/noise"],
        files.PIPELINE_STEPS[stage],
        jnp.asarray(REFERENCE["I/images"]) if stage == "II" else None,
    )
    expected = REFERENCE[f"{stage}/images"]
    assert np.abs(expected).max() > 0.9
    assert expected.std() > 0.1
    np.testing.assert_allclose(made, expected, rtol=0, atol=GREY_LEVEL)
