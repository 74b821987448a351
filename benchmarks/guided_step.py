"""Cost of a step of guided sampling, with and without its optimisations.

    python -m benchmarks.guided_step                        # the demo's networks
    python -m benchmarks.guided_step --config base64 sr256  # the paper's

FLOPs of all products of one step for one image: without guidance; guided, with the keys and
values of the text computed before the first step and both halves in one call, which is what runs;
guided, with the text computed again in every step. With --compile, also what XLA counts in the
compiled programs of the first two and of what is done once (all operations, not only products),
and the seconds that a guided step takes as one call and as two. docs/sampling.md shows the tables.
"""

from __future__ import annotations

import argparse
import functools
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from imagen_jax.checkpoints.pretrained import abstract_params
from imagen_jax.config import load_config
from imagen_jax.diffusion.guidance import stack_conditioning, stacked_denoiser
from imagen_jax.diffusion.samplers import parse_sampler
from imagen_jax.diffusion.transitions import path_transitions
from imagen_jax.flops import flops_of
from imagen_jax.sampling import Edit, noise_levels
from imagen_jax.stage import Stage, make_stage
from imagen_jax.stage_programs import (
    StageInputs,
    prepare_program,
    stage_conditioning,
    step_program,
)
from imagen_jax.typing import TextEmbedding


def shapes_of(stage: Stage, batch: int) -> tuple[Any, StageInputs]:
    """Shapes of the weights and of what a batch of images is made of."""

    def shape(*dims: int, dtype: Any = jnp.float32) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(dims, dtype)

    text = TextEmbedding(
        shape(batch, stage.text.max_length, stage.text.width),
        shape(batch, stage.text.max_length, dtype=jnp.bool_),
    )
    low_res = None
    if stage.low_res is not None:
        low_res = shape(batch, stage.low_res, stage.low_res, 3)
    keys = jax.eval_shape(lambda: jax.random.split(jax.random.key(0), batch))
    return abstract_params(stage), StageInputs(text, keys, low_res, text)


def program_shapes(stage: Stage, batch: int, guided: bool) -> tuple[Any, tuple, Any, tuple]:
    """(prepare, its arguments, step, its arguments), the arguments as shapes."""
    size = (stage.resolution, stage.resolution)
    params, inputs = shapes_of(stage, batch)
    number = jax.ShapeDtypeStruct((), jnp.float32)
    if not guided:
        inputs = inputs._replace(negative=None)
    prepare = prepare_program(stage, guided, size)
    once = (params, inputs, number, number)
    conditioning, state = jax.eval_shape(prepare, *once)
    moves = path_transitions(*noise_levels(stage, stage.sample, Edit()))
    move = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape[1:], x.dtype), moves)
    step = step_program(stage, parse_sampler(stage.sample.sampler), "static")
    guidance = number if guided else None
    return prepare, once, step, (params, inputs, conditioning, guidance, state, move)


def text_again_in_every_step(stage: Stage, batch: int) -> float:
    """FLOPs of a guided step whose network is given the text itself."""
    size = (stage.resolution, stage.resolution)
    params, inputs = shapes_of(stage, batch)

    def step(params: Any, inputs: StageInputs, x: jax.Array) -> jax.Array:
        given = stage_conditioning(stage, inputs.text, inputs.keys, inputs.low_res, 0.1, size)
        network = functools.partial(stage.apply, params)
        both = stack_conditioning(given, inputs.negative)
        denoise = stacked_denoiser(network, both, 2.0, stage.parametrization, "static")
        return denoise(x, jnp.zeros(()))

    return flops_of(step, params, inputs, jax.ShapeDtypeStruct((batch, *size, 3), jnp.float32))


def products(stages: list[Stage]) -> None:
    """Prints the table of products."""
    print("GFLOP of products for one image")
    print("| stage | text, once | step | guided step | with the text in every step | ratio |")
    print("| --- | --- | --- | --- | --- | --- |")
    for stage in stages:
        _, _, step, alone = program_shapes(stage, 1, guided=False)
        prepare, once, guided_step, guided = program_shapes(stage, 1, guided=True)
        of = [flops_of(prepare, *once), flops_of(step, *alone), flops_of(guided_step, *guided)]
        of.append(text_again_in_every_step(stage, 1))
        cells = " | ".join(f"{flops / 1e9:.3g}" for flops in of)
        print(f"| {stage.name} {stage.resolution} | {cells} | {of[3] / of[2]:.3f} |", flush=True)


def compiled(stages: list[Stage], batch: int, rounds: int) -> None:
    """Prints what XLA counts, and the seconds that guided steps take."""
    print(
        f"\nGFLOP that XLA counts for a batch of {batch}, and seconds of a step (least of {rounds})"
    )
    print("| stage | text, once | step | guided step | one call | two calls |")
    print("| --- | --- | --- | --- | --- | --- |")
    for stage in stages:
        cells = []
        runs: list[Callable[[], Any]] = []
        for guided in (True, False):
            prepare, once, step, each = program_shapes(stage, batch, guided)
            programs = [step.lower(*each).compile()]
            if guided:
                programs.insert(0, prepare.lower(*once).compile())
            counted = [f"{program.cost_analysis()['flops'] / 1e9:.3g}" for program in programs]
            cells = [*cells, *counted]
            arrays = jax.tree.map(random_like, each)
            runs.append(lambda program=programs[-1], arrays=arrays: program(*arrays))
        text, guided_step, step = cells
        seconds = [min(timed(run) for _ in range(rounds)) for run in runs]
        print(f"| {stage.name} {stage.resolution} | {text} | {step} | {guided_step} | "
              f"{seconds[0]:.3f} | {2 * seconds[1]:.3f} |", flush=True)  # fmt: skip


def random_like(shape: jax.ShapeDtypeStruct) -> jax.Array:
    """An array of small random numbers of a shape."""
    if jnp.issubdtype(shape.dtype, jax.dtypes.prng_key):
        return jax.random.split(jax.random.key(0), shape.shape)
    if shape.dtype == jnp.bool_:
        return jnp.ones(shape.shape, bool)
    rng = np.random.default_rng(0)
    return jnp.asarray(0.02 * rng.normal(size=shape.shape), shape.dtype)


def timed(run: Callable[[], Any]) -> float:
    """Seconds of one call."""
    start = time.perf_counter()
    jax.block_until_ready(run())
    return time.perf_counter() - start


def main() -> None:
    """Prints the tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--config", nargs="+", default=["demo"], help="names of configs")
    parser.add_argument("--compile", action="store_true", help="also compile and time the steps")
    parser.add_argument("--batch", type=int, default=4, help="images, with --compile")
    parser.add_argument("--rounds", type=int, default=5, help="of timing, with --compile")
    args = parser.parse_args()
    configs = [load_config(name) for name in args.config]
    stages = [make_stage(config, name) for config in configs for name in config.stages]
    products(stages)
    if args.compile:
        compiled(stages, args.batch, args.rounds)


if __name__ == "__main__":
    main()
