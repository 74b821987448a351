"""Makes the plots of docs/diffusion.md.

python -m benchmarks.diffusion_plots            # all, into docs/diffusion/
python -m benchmarks.diffusion_plots --only schedules editing
"""

from __future__ import annotations

import argparse
import pathlib
from collections.abc import Callable

import jax
import jax.numpy as jnp
import matplotlib as mpl
import numpy as np
from matplotlib import pyplot as plt
from matplotlib.figure import Figure

from benchmarks.sampler_overhead import (
    MIXTURE,
    SCHEDULE,
    STEPS,
    distance_curves,
    distance_floor,
    network_calls,
)
from imagen_jax.diffusion import (
    PARAMETRIZATIONS,
    GaussianMixture,
    alpha_sigma,
    augment_sweep,
    diffuse,
    dynamic_threshold,
    initial_noise,
    keep_outside,
    loss_weight,
    make_schedule,
    resampling_path,
    sample,
    static_threshold,
    target,
    time_grid,
    to_eps,
    to_x0,
)

OUTPUT = pathlib.Path(__file__).parents[1] / "docs" / "diffusion"
SCHEDULES = {
    "cosine": make_schedule("cosine"),
    "linear": make_schedule("linear"),
    "shifted cosine, 256": make_schedule("shifted_cosine", image_size=256, reference_size=64),
    "shifted cosine, 1024": make_schedule("shifted_cosine", image_size=1024, reference_size=64),
}


def schedules() -> Figure:
    """logsnr, noise amplitude and density of logsnr over time."""
    figure, axes = plt.subplots(1, 3, figsize=(12, 3.6))
    t = np.linspace(0, 1, 1001)
    for name, schedule in SCHEDULES.items():
        logsnr = np.asarray(schedule.logsnr(t))
        axes[0].plot(t, logsnr, label=name)
        axes[1].plot(t, schedule.alpha_sigma(t)[1], label=name)
        axes[2].plot(logsnr, 1 / np.asarray(schedule.rate(t)), label=name)
    axes[0].set(xlabel="t", ylabel="logsnr", title="signal-to-noise ratio")
    axes[1].set(xlabel="t", ylabel="sigma", title="noise amplitude")
    axes[2].set(xlabel="logsnr", ylabel="density for uniform t", title="where training looks")
    axes[2].set_xlim(-15, 15)
    axes[0].legend(fontsize=8)
    return figure


def weightings() -> Figure:
    """Weights on the error of v, in which all of them are bounded, alone and times the density."""
    figure, axes = plt.subplots(1, 2, figsize=(10, 3.8))
    t = np.linspace(0.0005, 0.9995, 4001)
    logsnr = SCHEDULE.logsnr(t)
    for name in ("eps", "v", "x0", "min_snr", "sigmoid", "edm"):
        weight = np.asarray(loss_weight(name, logsnr, "v"))
        axes[0].semilogy(logsnr, weight, label=name)
        density = weight / np.asarray(SCHEDULE.rate(t))
        axes[1].plot(logsnr, density / density.max(), label=name)
    axes[0].set(xlabel="logsnr", ylabel="weight on the error of v", title="weightings")
    axes[0].set(xlim=(-10, 10), ylim=(1e-4, 10))
    axes[1].set(xlabel="logsnr", ylabel="relative weight", title="times the density (cosine)")
    axes[1].set_xlim(-10, 10)
    axes[0].legend(fontsize=8)
    return figure


def precision() -> Figure:
    """Float32 round trips against their bounds."""
    figure, axes = plt.subplots(1, 2, figsize=(10, 3.8), sharey=True)
    logsnr = jnp.linspace(-20.0, 20.0, 401)
    x0 = jax.random.uniform(jax.random.key(0), (401, 16, 16, 1), minval=-1.0)
    eps = jax.random.normal(jax.random.key(1), x0.shape)
    x_t = diffuse(x0, eps, logsnr)
    alpha, sigma = (np.asarray(a) for a in alpha_sigma(logsnr))
    scale = float(jnp.max(jnp.abs(x0) + jnp.abs(eps)))
    for axis, wanted, convert in ((axes[0], "x0", to_x0), (axes[1], "eps", to_eps)):
        for colour, kind in zip(("C0", "C1", "C2"), PARAMETRIZATIONS, strict=True):
            if kind == wanted:
                continue
            result = convert(kind, target(kind, x0, eps, logsnr), x_t, logsnr)
            error = np.abs(result - target(wanted, x0, eps, logsnr)).max(axis=(1, 2, 3))
            bound = 8 * 2.0**-24 * scale * {"eps": 1 / alpha, "x0": 1 / sigma, "v": 1}[kind]
            axis.semilogy(logsnr, error, colour, label=f"from {kind}")
            axis.semilogy(logsnr, np.broadcast_to(bound, error.shape), colour + "--", lw=0.8)
        axis.set(xlabel="logsnr", title=f"error of {wanted} in float32 (dashed: bound)")
        axis.legend(fontsize=8)
    axes[0].set_ylabel("largest error")
    return figure


def grids() -> Figure:
    """Noise levels of the time grids."""
    figure, axes = plt.subplots(1, 2, figsize=(10, 2.8), sharey=True)
    kinds = ("karras", "uniform_logsnr", "leading", "trailing", "uniform_t")
    for axis, name in zip(axes, ("cosine", "linear"), strict=True):
        for i, kind in enumerate(kinds):
            grid = np.asarray(time_grid(SCHEDULES[name], 12, kind))
            axis.plot(grid[:-1], np.full(12, i), "o-", ms=4, lw=0.6)
        axis.set(xlabel="logsnr given to the network", title=f"12 steps, {name}")
    axes[0].set_yticks(range(len(kinds)), kinds)
    return figure


def distances() -> Figure:
    """Distance to the data over calls of the network."""
    figure, axis = plt.subplots(figsize=(7, 4.5))
    for (name, kind), curve in distance_curves().items():
        calls = [network_calls(name, steps) for steps in STEPS]
        axis.loglog(calls, curve, "o-", ms=3, lw=1, label=f"{name}, {kind}")
    axis.axhline(distance_floor(), color="k", ls=":", lw=1, label="two draws of the data")
    axis.set(xlabel="calls of the network", ylabel="sliced Wasserstein-1 distance")
    axis.set(title="20,000 samples of the mixture, exact denoiser")
    axis.legend(fontsize=8)
    axis.grid(alpha=0.3)
    return figure


def convergence() -> Figure:
    """Error of the deterministic samplers in float64 when steps are doubled."""
    figure, axis = plt.subplots(figsize=(6, 4.2))
    with jax.enable_x64(True):
        x_t = jax.random.normal(jax.random.key(0), (32, 1, 2, 1), jnp.float64)

        def run(name: str, steps: int) -> jax.Array:
            grid = jnp.append(jnp.linspace(-7.0, 7.0, steps + 1), 20.0)
            return jax.jit(lambda x: sample(name, MIXTURE.denoise, x, grid))(x_t)

        reference, steps = run("heun", 8192), 2 ** np.arange(4, 11)
        for name in ("ddim", "dpmpp_2m", "heun"):
            error = [float(jnp.sqrt(jnp.mean((run(name, n) - reference) ** 2))) for n in steps]
            slope = -np.polyfit(np.log2(steps[2:]), np.log2(error[2:]), 1)[0]
            axis.loglog(steps, error, "o-", ms=4, label=f"{name}: order {slope:.2f}")
    axis.set(xlabel="steps", ylabel="root mean square error", title="float64, logsnr -7 to 7")
    axis.legend(fontsize=9)
    axis.grid(alpha=0.3, which="both")
    return figure


def mixture() -> Figure:
    """Samples of the mixture after few calls of the network."""
    runs = (
        ("ddpm", "uniform_t"),
        ("ddim", "uniform_t"),
        ("dpmpp_2m", "uniform_t"),
        ("heun", "karras"),
    )
    calls = (7, 15, 63)
    figure, axes = plt.subplots(len(calls), len(runs) + 1, figsize=(11, 6.6))
    count = 3000
    data = np.asarray(MIXTURE.sample(jax.random.key(0), count))
    key = jax.random.key(1)
    x_t = initial_noise(key, count, (1, 2, 1))
    for row, budget in zip(axes, calls, strict=True):
        row[0].set_ylabel(f"{budget} calls")
        for axis, (name, kind) in zip(row, runs, strict=False):
            steps = (budget + 1) // 2 if name == "heun" else budget
            grid = time_grid(SCHEDULE, steps, kind)
            points = np.asarray(sample(name, MIXTURE.denoise, x_t, grid, key)).reshape(count, 2)
            axis.plot(*points.T, ",", alpha=0.6)
            axis.set_title(f"{name}, {kind}", fontsize=9)
        row[-1].plot(*data.T, ",k", alpha=0.6)
        row[-1].set_title("data", fontsize=9)
        for axis in row:
            axis.set(xlim=(-1.3, 1.3), ylim=(-1.1, 1.1), xticks=[], yticks=[])
    return figure


def _image(size: int) -> np.ndarray:
    """An image with edges, flat areas and a slope, in [-1, 1]."""
    y, x = np.mgrid[:size, :size] / (size - 1) * 2 - 1
    image = np.stack([-0.6 + 0.4 * y, -0.2 + 0.3 * x, 0.5 - 0.3 * y], axis=-1)
    image[(x + 0.3) ** 2 + (y + 0.1) ** 2 < 0.2] = (0.9, -0.6, -0.5)
    image[(np.abs(x - 0.45) < 0.3) & (np.abs(y - 0.3) < 0.3)] = (0.8, 0.7, -0.6)
    return image.astype(np.float32)


def _shown(image: np.ndarray) -> np.ndarray:
    return np.clip(np.asarray(image) * 0.5 + 0.5, 0, 1)


def thresholding() -> Figure:
    """An image whose contrast guidance has blown up, thresholded in two ways."""
    images = {"x0 = 3 x image": 3 * _image(64)[None]}
    images["static"] = np.asarray(static_threshold(images["x0 = 3 x image"]))
    for percentile in (99.5, 90.0):
        name = f"dynamic, percentile {percentile:g}"
        images[name] = np.asarray(dynamic_threshold(images["x0 = 3 x image"], percentile))
    figure, axes = plt.subplots(2, 4, figsize=(11, 4.8), height_ratios=(3, 1.3))
    for (name, image), (top, bottom) in zip(images.items(), axes.T, strict=True):
        top.imshow(_shown(image[0]), interpolation="nearest")
        top.set(title=name, xticks=[], yticks=[])
        bottom.hist(image.ravel(), bins=60, range=(-3, 3), color="C0")
        bottom.axvline(-1, color="k", lw=0.6)
        bottom.axvline(1, color="k", lw=0.6)
        bottom.set(yticks=[])
    return figure


def augmentation() -> Figure:
    """One low-resolution image at several augmentation levels."""
    levels = np.array([0.0, 0.1, 0.2, 0.3, 0.5, 0.75, 1.0], np.float32)
    sweep = augment_sweep(jax.random.key(0), jnp.asarray(_image(32)), levels)
    figure, axes = plt.subplots(1, len(levels), figsize=(12, 2.1))
    for axis, level, image in zip(axes, levels, sweep, strict=True):
        axis.imshow(_shown(image), interpolation="nearest")
        axis.set(title=f"aug_level {level:g}", xticks=[], yticks=[])
        axis.title.set_fontsize(9)
    return figure


def editing() -> Figure:
    """Inpainting of one of two correlated pixels, by how often steps are walked."""
    data = GaussianMixture(np.ones(1), np.zeros((1, 2)), 0.25 * np.array([[[1, 0.9], [0.9, 1]]]))
    count, key = 4000, jax.random.key(0)
    image = jnp.full((count, 1, 2, 1), 0.5)
    mask = jnp.array([False, True]).reshape(1, 1, 2, 1)
    grid = time_grid(SCHEDULE, 40, "uniform_t")
    x_t = diffuse(image, initial_noise(key, count, (1, 2, 1)), grid[0])
    denoise = keep_outside(data.denoise, image, mask)
    resamples = (1, 2, 3, 5, 10, 20)
    figure, axes = plt.subplots(1, 2, figsize=(10, 3.6))
    for name in ("ddpm", "ddim", "dpmpp_2m", "heun"):
        means, deviations = [], []
        for times in resamples:
            path = resampling_path(40, times, 4)
            run = jax.jit(lambda k, n=name, p=path: sample(n, denoise, x_t, grid, k, path=p))
            new = np.asarray(run(key))[:, 0, 1, 0]
            means.append(new.mean())
            deviations.append(new.std())
        axes[0].semilogx(resamples, means, "o-", ms=4, label=name)
        axes[1].semilogx(resamples, deviations, "o-", ms=4, label=name)
    for axis, exact, name in ((axes[0], 0.45, "mean"), (axes[1], 0.5 * 0.19**0.5, "deviation")):
        axis.axhline(exact, color="k", ls=":", lw=1, label="exact")
        axis.set(xlabel="resamples", title=f"{name} of the new pixel (40 steps, jump 4)")
        axis.set_xticks(resamples, [str(r) for r in resamples], minor=False)
        axis.minorticks_off()
    axes[0].legend(fontsize=8)
    return figure


PLOTS: dict[str, Callable[[], Figure]] = {
    "schedules": schedules,
    "weightings": weightings,
    "precision": precision,
    "grids": grids,
    "convergence": convergence,
    "distances": distances,
    "mixture": mixture,
    "thresholding": thresholding,
    "augmentation": augmentation,
    "editing": editing,
}


def main() -> None:
    """Writes docs/diffusion/<name>.png for every plot."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--only", nargs="+", choices=sorted(PLOTS), default=list(PLOTS))
    arguments = parser.parse_args()
    mpl.use("Agg")
    OUTPUT.mkdir(parents=True, exist_ok=True)
    for name in arguments.only:
        figure = PLOTS[name]()
        figure.tight_layout()
        figure.savefig(OUTPUT / f"{name}.png", dpi=100)
        plt.close(figure)
        print(OUTPUT / f"{name}.png", flush=True)


if __name__ == "__main__":
    main()
