"""Writes tests/testdata/diffusers_reference.npz: steps of the samplers of `diffusers`.

The stored file was made with diffusers 0.42.1 and torch 2.13.0 (CPU), in an environment of its own:

    pip install torch==2.13.0 diffusers==0.42.1
    python tests/make_diffusers_reference.py

Every case holds, per step: the noisy image x and the next one (both variance preserving), the
estimate(s) of x0, the noise that was drawn, and the logsnr of both levels. The "network" is the
formula `predict_eps`, so that whole runs can be repeated too.
"""

from __future__ import annotations

import pathlib
import sys

import diffusers
import numpy as np
import torch
from diffusers.schedulers.deprecated.scheduling_karras_ve import KarrasVeScheduler

SHAPE = (2, 4, 4, 3)
STEPS = 8
OUTPUT = pathlib.Path(__file__).parent / "testdata" / "diffusers_reference.npz"
LINEAR = {"num_train_timesteps": 1000, "beta_start": 1e-4, "beta_end": 0.02}


def predict_eps(x: torch.Tensor, logsnr: float) -> torch.Tensor:
    """A smooth function that is no denoiser of anything: errors cannot cancel in it."""
    sigma = (1.0 / (1.0 + np.exp(logsnr))) ** 0.5
    return sigma * x + 0.3 * torch.sin(2.0 * x + 0.2 * logsnr)


def noise_of(step: int) -> tuple[torch.Generator, torch.Tensor]:
    """A generator, and the float32 noise that a scheduler will draw from it."""
    draw = torch.randn(SHAPE, generator=torch.Generator().manual_seed(1000 + step))
    return torch.Generator().manual_seed(1000 + step), draw


def start() -> torch.Tensor:
    """The starting noise of every case."""
    return torch.randn(SHAPE, generator=torch.Generator().manual_seed(7))


def collect(rows: list[dict[str, object]]) -> dict[str, np.ndarray]:
    """Stacks the steps of a case."""
    return {name: np.stack([np.asarray(row[name]) for row in rows]) for name in rows[0]}


def discrete(scheduler: object, **step_options: float) -> dict[str, np.ndarray]:
    """DDPM and DDIM, which know their levels as alphas_cumprod."""
    scheduler.set_timesteps(STEPS)
    bars = scheduler.alphas_cumprod.double().numpy()
    levels = [float(np.log(bars[t] / (1.0 - bars[t]))) for t in scheduler.timesteps]
    x, rows = start(), []
    for step, t in enumerate(scheduler.timesteps):
        eps = predict_eps(x, levels[step])
        generator, noise = noise_of(step)
        result = scheduler.step(eps, t, x, generator=generator, **step_options)
        rows.append(
            {
                "x": x,
                "x0": result.pred_original_sample,
                "noise": noise,
                "next": result.prev_sample,
                "logsnr_t": levels[step],
                "logsnr_s": levels[step + 1] if step + 1 < STEPS else np.inf,
            }
        )
        x = result.prev_sample
    return collect(rows)


def multistep(algorithm: str) -> dict[str, np.ndarray]:
    """DPM-Solver++ 2M, which knows its levels as sigma / alpha."""
    scheduler = diffusers.DPMSolverMultistepScheduler(
        **LINEAR,
        algorithm_type=algorithm,
        solver_order=2,
        solver_type="midpoint",
        timestep_spacing="trailing",
        final_sigmas_type="zero",
    )
    scheduler.set_timesteps(STEPS)
    levels = -2.0 * np.log(np.maximum(scheduler.sigmas.double().numpy(), 1e-300))
    x, rows = start(), []
    for step, t in enumerate(scheduler.timesteps):
        eps = predict_eps(x, levels[step])
        generator, noise = noise_of(step)
        result = scheduler.step(eps, t, x, generator=generator).prev_sample
        rows.append(
            {
                "x": x,
                "x0": scheduler.model_outputs[-1],
                "noise": noise,
                "next": result,
                "logsnr_t": levels[step],
                "logsnr_s": levels[step + 1] if step + 1 < STEPS else np.inf,
            }
        )
        x = result
    return collect(rows)


def heun() -> dict[str, np.ndarray]:
    """Heun without churn on Karras' grid; this scheduler holds y = x / alpha."""
    scheduler = diffusers.HeunDiscreteScheduler(
        **LINEAR, use_karras_sigmas=True, timestep_spacing="trailing"
    )
    scheduler.set_timesteps(STEPS)
    sigmas = scheduler.sigmas.double().numpy()
    sigmas = np.concatenate([sigmas[0:1], sigmas[1:-1:2], sigmas[-1:]])
    y = start() * float((1.0 + sigmas[0] ** 2) ** 0.5)
    rows, calls = [], 0
    for step in range(STEPS):
        x_vp, estimates = y / float((1.0 + sigmas[step] ** 2) ** 0.5), []
        for _ in range(1 if step == STEPS - 1 else 2):
            t = scheduler.timesteps[calls]
            sigma = sigmas[step] if not estimates else sigmas[step + 1]
            eps = predict_eps(scheduler.scale_model_input(y, t), -2.0 * np.log(sigma))
            estimates.append(y - float(sigma) * eps)
            y = scheduler.step(eps, t, y).prev_sample
            calls += 1
        last = step == STEPS - 1
        rows.append(
            {
                "x": x_vp,
                "x0": estimates[0],
                "x0_ahead": estimates[-1],
                "noise": torch.zeros(SHAPE),
                "next": y / float((1.0 + sigmas[step + 1] ** 2) ** 0.5),
                "logsnr_t": -2.0 * np.log(sigmas[step]),
                "logsnr_s": np.inf if last else -2.0 * np.log(sigmas[step + 1]),
            }
        )
    return collect(rows)


def heun_churn() -> dict[str, np.ndarray]:
    """Algorithm 2 of Karras et al. with churn, as KarrasVeScheduler has it; also y = x / alpha."""
    scheduler = KarrasVeScheduler(
        sigma_min=0.05, sigma_max=20.0, s_noise=1.007, s_churn=2.0, s_min=0.1, s_max=10.0
    )
    scheduler.set_timesteps(STEPS)
    sigmas = [float(scheduler.schedule[t]) ** 0.5 for t in scheduler.timesteps]
    y, rows = start() * (1.0 + sigmas[0] ** 2) ** 0.5, []
    for step in range(STEPS - 1):
        sigma, sigma_next = sigmas[step], sigmas[step + 1]
        generator, noise = noise_of(step)
        y_hat, sigma_hat = scheduler.add_noise_to_input(y, sigma, generator=generator)

        def network(y_in: torch.Tensor, level: float) -> torch.Tensor:
            # This scheduler's model output is -eps.
            return -predict_eps(y_in / (1.0 + level**2) ** 0.5, -2.0 * np.log(level))

        output = network(y_hat, sigma_hat)
        first = scheduler.step(output, sigma_hat, sigma_next, y_hat)
        output = network(first.prev_sample, sigma_next)
        second = scheduler.step_correct(
            output, sigma_hat, sigma_next, y_hat, first.prev_sample, first.derivative
        )
        rows.append(
            {
                "x": y / (1.0 + sigma**2) ** 0.5,
                "x0": first.pred_original_sample,
                "x0_ahead": second.pred_original_sample,
                "noise": noise,
                "next": second.prev_sample / (1.0 + sigma_next**2) ** 0.5,
                "logsnr_t": -2.0 * np.log(sigma),
                "logsnr_s": -2.0 * np.log(sigma_next),
            }
        )
        y = second.prev_sample
    return collect(rows)


def grids() -> dict[str, np.ndarray]:
    """Times of the discrete grids, and the noise levels of EDM's."""
    result = {}
    for spacing in ("leading", "trailing"):
        for steps in (10, 7):
            scheduler = diffusers.DDIMScheduler(**LINEAR, timestep_spacing=spacing)
            scheduler.set_timesteps(steps)
            result[f"{spacing}_{steps}"] = scheduler.timesteps.numpy()
    scheduler = diffusers.EDMEulerScheduler(sigma_min=0.002, sigma_max=80.0, rho=7.0)
    scheduler.set_timesteps(10)
    result["karras_10"] = scheduler.sigmas.double().numpy()[:-1]
    return result


def main() -> None:
    """Makes all cases and writes them."""
    spaced = {**LINEAR, "clip_sample": False, "timestep_spacing": "trailing"}
    ddim = diffusers.DDIMScheduler
    cases = {
        "ddpm_small": discrete(diffusers.DDPMScheduler(**spaced, variance_type="fixed_small")),
        "ddpm_large": discrete(diffusers.DDPMScheduler(**spaced, variance_type="fixed_large")),
        "ddim_eta_0": discrete(ddim(**spaced), eta=0.0),
        "ddim_eta_0.5": discrete(ddim(**spaced), eta=0.5),
        "ddim_eta_1": discrete(ddim(**spaced), eta=1.0),
        "dpmpp_2m": multistep("dpmsolver++"),
        "dpmpp_2m_sde": multistep("sde-dpmsolver++"),
        "heun": heun(),
        "heun_churn": heun_churn(),
        "grids": grids(),
    }
    arrays = {
        f"{case}/{name}": value for case, rows in cases.items() for name, value in rows.items()
    }
    arrays["versions"] = np.array(
        [f"diffusers {diffusers.__version__}", f"torch {torch.__version__}"]
    )
    arrays = {
        name: value.astype(np.float32) if value.ndim > 2 else value
        for name, value in arrays.items()
    }
    np.savez_compressed(OUTPUT, **arrays)
    sys.stdout.write(f"{OUTPUT}: {OUTPUT.stat().st_size} bytes\n")


if __name__ == "__main__":
    main()
