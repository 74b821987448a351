"""Overhead of samplers besides the network, and their number of network calls.

    python -m benchmarks.sampler_overhead

The first table times every sampler with a network that does next to nothing. The second counts
the calls of the network until samples of a Gaussian mixture, drawn with its exact denoiser, are as
near to the data as a given distance. docs/diffusion.md shows both.
"""

from __future__ import annotations

import argparse
import functools
import time
from collections.abc import Callable

import jax
import numpy as np

from imagen_jax.diffusion import (
    DynamicThreshold,
    GaussianMixture,
    initial_noise,
    make_schedule,
    sample,
    time_grid,
)
from imagen_jax.typing import Denoiser

SCHEDULE = make_schedule("cosine")
MIXTURE = GaussianMixture(
    weights=np.array([0.2, 0.3, 0.5]),
    means=np.array([[-0.6, -0.3], [0.7, -0.4], [0.1, 0.6]]),
    covariances=np.array(
        [[[0.02, 0.01], [0.01, 0.03]], [[0.01, 0.0], [0.0, 0.01]], [[0.04, 0.0], [0.0, 0.005]]]
    ),
)
NAMES = ("ddpm", "ddim", "dpmpp_2m", "dpmpp_2m(sde=true)", "heun")
# The grids that each sampler is at home on, and one for comparison.
RUNS = (
    ("ddpm", "uniform_t"),
    ("ddim", "uniform_t"),
    ("ddim", "karras"),
    ("dpmpp_2m", "uniform_t"),
    ("dpmpp_2m", "uniform_logsnr"),
    ("dpmpp_2m", "karras"),
    ("dpmpp_2m(sde=true)", "karras"),
    ("heun", "karras"),
)
STEPS = (2, 4, 6, 8, 12, 16, 24, 32, 48, 64, 128, 256, 512)


def network_calls(name: str, steps: int) -> int:
    """Number of network calls of a sampler."""
    return 2 * steps - 1 if name == "heun" else steps


def least_seconds(runs: list[Callable[[], jax.Array]], rounds: int = 7) -> list[float]:
    """Least wall time of each of several programs, run in turn so that noise hits all alike."""
    for run in runs:
        jax.block_until_ready(run())  # compiles
    times = np.empty((rounds, len(runs)))
    for i in range(rounds):
        for j, run in enumerate(runs):
            start = time.perf_counter()
            jax.block_until_ready(run())
            times[i, j] = time.perf_counter() - start
    return times.min(axis=0).tolist()


def overhead(batch_size: int, size: int, steps: int) -> None:
    """Prints microseconds per step with a trivial network."""
    shape = (size, size, 3)
    key = jax.random.key(0)
    x_t = initial_noise(key, batch_size, shape)
    grid = time_grid(SCHEDULE, steps, "karras")
    limit = DynamicThreshold(percentile=99.5)

    def trivial(x: jax.Array, logsnr: jax.Array) -> jax.Array:
        return 0.5 * x

    def thresholded(x: jax.Array, logsnr: jax.Array) -> jax.Array:
        return limit(0.5 * x)

    def program(name: str, denoise: Denoiser) -> Callable[[], jax.Array]:
        run = jax.jit(lambda x: sample(name, denoise, x, grid, key))
        return functools.partial(run, x_t)

    variants = (trivial, thresholded)
    seconds = least_seconds([program(name, denoise) for name in NAMES for denoise in variants])
    print(
        f"Microseconds per step, {batch_size} images of {size} x {size}, {steps} steps, "
        f"{jax.devices()[0].platform}\n"
    )
    print("| sampler | bare | with dynamic thresholding |")
    print("| :--- | ---: | ---: |")
    for name, row in zip(NAMES, np.reshape(seconds, (-1, len(variants))), strict=True):
        print(f"| {name} | " + " | ".join(f"{1e6 * cell / steps:.0f}" for cell in row) + " |")


def sliced_distance(first: np.ndarray, second: np.ndarray, directions: int = 16) -> float:
    """Wasserstein-1 distance of [n, 2] samples, averaged over directions of the plane."""
    angles = np.pi * np.arange(directions) / directions
    axes = np.stack([np.cos(angles), np.sin(angles)])
    return float(np.abs(np.sort(first @ axes, axis=0) - np.sort(second @ axes, axis=0)).mean())


@functools.cache
def distance_curves(count: int = 20_000) -> dict[tuple[str, str], list[float]]:
    """Distance to the data for every run of RUNS and every number of STEPS."""
    data = np.asarray(MIXTURE.sample(jax.random.key(10), count))
    key = jax.random.key(11)
    x_t = initial_noise(key, count, (1, 2, 1))
    curves = {}
    for name, kind in RUNS:
        curve = []
        for steps in STEPS:
            grid = time_grid(SCHEDULE, steps, kind)
            run = jax.jit(lambda x, n=name, g=grid: sample(n, MIXTURE.denoise, x, g, key))
            curve.append(sliced_distance(np.asarray(run(x_t)).reshape(count, 2), data))
        curves[name, kind] = curve
    return curves


def distance_floor(count: int = 20_000) -> float:
    """Distance of the data from itself: of two draws of the same size."""
    draws = [np.asarray(MIXTURE.sample(jax.random.key(seed), count)) for seed in (10, 12)]
    return sliced_distance(*draws)


def distances(targets: tuple[float, ...]) -> None:
    """Prints the calls of the network that each sampler needs for each distance."""
    print(
        "\nCalls of the network until the distance to the data is at most ... "
        f"(two draws of the data: {distance_floor():.4f})\n"
    )
    print("| sampler | grid | " + " | ".join(f"{target:g}" for target in targets) + " |")
    print("| :--- | :--- |" + " ---: |" * len(targets))
    for (name, kind), curve in distance_curves().items():
        cells = []
        for target in targets:
            reached = [steps for steps, value in zip(STEPS, curve, strict=True) if value <= target]
            cells.append(str(network_calls(name, reached[0])) if reached else f"> {STEPS[-1]}")
        print(f"| {name} | {kind} | " + " | ".join(cells) + " |")


def main() -> None:
    """Prints both tables."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--size", type=int, default=64)
    parser.add_argument("--steps", type=int, default=50)
    arguments = parser.parse_args()
    overhead(arguments.batch_size, arguments.size, arguments.steps)
    distances((0.1, 0.05, 0.02, 0.01))


if __name__ == "__main__":
    main()
