"""Annotations of shapes hold at every call of training and sampling, and a wrong shape is caught.

The import hook must come before the package, so that the checks run in a process of their own:
`python tests/test_shapes.py`.
"""

from __future__ import annotations

import dataclasses
import importlib
import os
import subprocess
import sys
from typing import Any

import jax
import jax.numpy as jnp
import jaxtyping
import numpy as np
import pytest

CHECKED = ("diffusion", "models", "sampling", "stage_programs")


@pytest.mark.slow
def test_annotated_shapes_hold_and_wrong_ones_are_caught() -> None:
    done = subprocess.run(
        [sys.executable, __file__], capture_output=True, text=True, check=False, timeout=1800,
        env=os.environ | {"JAX_PLATFORMS": "cpu"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-6000:]
    assert done.stdout.splitlines()[-1] == "checked"


def wrong_shapes_are_caught() -> None:
    from imagen_jax.diffusion import make_schedule, time_grid
    from imagen_jax.diffusion.loss import loss_by_logsnr_bin
    from imagen_jax.diffusion.parametrization import diffuse
    from imagen_jax.models.attention import attend

    q, image = jnp.ones((2, 5, 1, 4)), np.zeros((2, 4, 4, 3), np.float32)
    assert attend(q, q, q).shape == q.shape
    assert diffuse(image, image, 0.5).shape == image.shape  # NumPy's arrays and numbers, too
    assert time_grid(make_schedule("cosine"), 6, "karras").shape == (7,)
    assert len(loss_by_logsnr_bin(jnp.ones(5), jnp.zeros(5), jnp.arange(3.0))[0]) == 2
    for function, arguments, name in (
        (attend, (q, q[:1], q[:1]), "k"),
        (diffuse, (image, image[:, :2], 0.5), "eps"),
        (diffuse, (image[0], image[0], 0.5), "x0"),
        (diffuse, (image.astype(int), image, 0.5), "x0"),
    ):
        with pytest.raises(jaxtyping.TypeCheckError, match=f"parameter '{name}'"):
            function(*arguments)


def annotations_hold() -> None:
    """Traces the training step and the samplers of every kind of stage."""
    import tiny

    from imagen_jax import sharding
    from imagen_jax.sampling import image_keys, whole_sampler
    from imagen_jax.stage_programs import StageInputs
    from imagen_jax.train.state import abstract_state
    from imagen_jax.train.step import make_train_step

    base, sr = tiny.stage("base"), tiny.stage("sr")
    for stage, samplers in (
        (base, ("ddim", "ddpm", "heun", "dpmpp_2m", "dpmpp_2m(sde=True)")),
        (sr, ("ddim",)),
        (sr.with_network(tiny.JIT), ("ddim",)),
    ):
        state: Any = abstract_state(stage, sharding.make_mesh())[0]
        jax.eval_shape(make_train_step(stage), state, tiny.batch(stage, 4))
        low_res = None if stage.low_res is None else jnp.zeros((2, stage.low_res, stage.low_res, 3))
        text = tiny.conditioning(stage, 2).text
        inputs = StageInputs(text, image_keys([1, 2]), low_res)
        for sampler in samplers:
            pad = 0 if low_res is None else 1
            settings = dataclasses.replace(stage.sample, sampler=sampler, steps=2, pad=pad)
            made = jax.eval_shape(
                whole_sampler(stage, settings), state.params, inputs, jnp.float32(2), jnp.float32(0)
            )
            assert made.shape == (2, stage.resolution, stage.resolution, 3)


if __name__ == "__main__":
    importlib.import_module("shapes")  # an error here: launch/setup.sh --dev installs beartype
    jaxtyping.install_import_hook([f"imagen_jax.{name}" for name in CHECKED], "shapes.check")
    wrong_shapes_are_caught()
    annotations_hold()
    print("checked")
