r"""Diffusion models in continuous time, as pure functions over arrays.

Example, where the data is one point, so that every sampler must end there:
  >>> import jax, jax.numpy as jnp
  >>> from imagen_jax import diffusion
  >>> schedule = diffusion.make_schedule("cosine")
  >>> grid = diffusion.time_grid(schedule, steps=8, kind="uniform_t")
  >>> noise = diffusion.initial_noise(jax.random.key(0), batch_size=4, shape=(8, 8, 3))
  >>> x0 = diffusion.sample("heun", lambda x_t, logsnr: jnp.full_like(x_t, 0.5), noise, grid)
  >>> bool(jnp.allclose(x0, 0.5))
  True

The code uses the symbols of this derivation and cites its equations. lam is logsnr; t is noisier
than s; D(x_t, lam) is the denoiser, the estimate of x0. options.py checks the options of what is
chosen by name.

Process (schedule.py, parametrization.py, augment.py)
  A clean image x0 in [-1, 1] is noised, variance preserving, to
    (1)  x_t = alpha x0 + sigma eps,  eps ~ N(0, I),  alpha^2 + sigma^2 = 1.
  Its logarithmic signal-to-noise ratio lam = log(alpha^2 / sigma^2) says it all:
    (2)  alpha^2 = sigmoid(lam),  sigma^2 = sigmoid(-lam).
  A schedule is a decreasing lam(t), t = 0 clean, t = 1 noise:
    (3a) cosine          lam = -2 log tan(pi t / 2)
    (3b) shifted cosine  lam = -2 log tan(pi t / 2) + 2 log(reference_size / image_size)
    (3c) linear beta     lam = -log(exp(B(t)) - 1),  B(t) = integral of N beta from 0 to t
    (3d) discrete cosine lam at t = i / N is that of prod_j (1 - beta_j), and linear between.

Prediction (parametrization.py)
  Any of eps, x0 and the velocity v gives the others:
    (4)  v = alpha eps - sigma x0
    (5)  x0 = (x_t - sigma eps) / alpha = alpha x_t - sigma v
    (6)  eps = (x_t - alpha x0) / sigma = sigma x_t + alpha v
    (7)  v = (eps - sigma x_t) / alpha = (alpha x_t - x0) / sigma
  The squared error is least for
    (8)  D(x_t, lam) = E[x0 | x_t],  with score = (alpha D - x_t) / sigma^2.

Loss (loss.py)
    (9)  L = E_{t, eps} w(lam) || target - prediction ||^2
  By (5), errors in the three spaces differ by a factor only,
    (10) || x0 error ||^2 = exp(-lam) || eps error ||^2 = sigma^2 || v error ||^2,
  so that one weight on the error of x0 serves all:
    (11) w_eps = exp(-lam) w_x0,  w_v = sigma^2 w_x0
    (12) w_x0 = exp(lam)                        eps (the paper's loss)
                exp(lam) + 1                    v
                1                               x0
                min(exp(lam), gamma)            min-SNR
                exp(lam) sigmoid(bias - lam)    sigmoid
                exp(lam) + 1 / sigma_data^2     EDM.
  Uniform times have the density 1 / rate in lam, so that
    (13) E_t[rate(t) f(lam(t))] = integral of f over lam,  rate = -dlam/dt.

Guidance (guidance.py)
    (14) prediction = w conditional + (1 - w) unconditional,  w = 1 is off.
  (5) is affine in the prediction and the weights add up to 1: guiding eps, v or x0 is the same.
    (15) D <- clip(D, -s, s) / s,  s = max(1, percentile of |D|).

Sampling (transitions.py, samplers.py, grids.py, respacing.py)
  Towards noise, from s to t, with the ratio of the alphas a = alpha_t / alpha_s:
    (16) x_t = a x_s + sigma_t sqrt(1 - exp(t - s)) noise       (t and s stand for their lam),
  because sigma_t^2 - a^2 sigma_s^2 = sigma_t^2 (1 - SNR_t / SNR_s).
  Towards the image, from t to s: put eps of (6) back in, a part of it renewed. With
  h = (lam_s - lam_t) / 2 and k^2 = 1 - eta^2 (1 - exp(-2 h)),
    (17) x_s = alpha_s D + k sigma_s (x_t - alpha_t D) / sigma_t
               + eta sigma_s sqrt(1 - exp(-2 h)) noise
             = k (sigma_s / sigma_t) x_t + alpha_s (1 - k exp(-h)) D + (the same noise),
  as alpha_t sigma_s / (sigma_t alpha_s) = exp(-h). If D were x0, x_s would have the right
  distribution for every eta. eta = 0 is DDIM; at eta = 1, k = exp(-h), it is the posterior
  q(x_s | x_t, x0) of ancestral sampling.
  For eta = 0, (17) solves the probability flow ODE, which with y = x / alpha and
  u = sigma / alpha = exp(-lam / 2) reads dy/du = (y - D) / u, for a constant D. Better: the linear
  extrapolation of D to the middle of the step (in lam) from the last two evaluations,
    (18) D <- D + (D - D_last) h / (2 h_last)                      DPM-Solver++ 2M, any eta;
  or the trapezoidal rule in u, where x_s of (17) has been evaluated to D_s; it is of the form (17)
  with
    (19) D <- D + (D_s - D) exp(h) / 2                             Heun.
  For h -> 0, (17) is a step of the family of reverse SDEs with the marginals of (1),
    (20) dx = [f x - (1 + eta^2) / 2 g^2 score] dt + eta g dw,
  where f = dlog(alpha)/dt and g^2 = sigma^2 rate: DDPM is its discretisation for eta = 1, with
  either variance, DDIM that of the ODE.

Editing (editing.py)
  Replacing D by the known image y outside of the mask m of what is repainted,
    (21) D <- m D + (1 - m) y,
  makes (17) keep x_s = alpha_s y + sigma_s eps there, eps being the noise of x_t, renewed by eta:
  the known part is noised as (1) demands. Walking steps again after (16) harmonises the parts.

Closed forms (gaussian_mixture.py)
  For data with the density sum_k p_k N(m_k, C_k), (8) is
    (22) D = sum_k r_k [m_k + alpha C_k S_k^-1 (x_t - alpha m_k)],  S_k = alpha^2 C_k + sigma^2 I,
         r_k ~ p_k N(x_t; alpha m_k, S_k),  adding up to 1,
  and for one Gaussian the mean squared error of D is, per direction of variance c,
    (23) E || x0 - D ||^2 = c / (1 + c exp(lam)).

Precision
  logsnr lies in [-20, 20]: see schedule.py. Everything is computed from logsnr through log_sigmoid
  and expm1, never as 1 - alpha^2 or as a difference of amplitudes, and holds in float32.
"""

from imagen_jax.diffusion.augment import (
    augment_low_res,
    augment_sweep,
    sample_aug_level,
    upsample_low_res,
)
from imagen_jax.diffusion.editing import keep_outside, resampling_path
from imagen_jax.diffusion.gaussian_mixture import GaussianMixture
from imagen_jax.diffusion.grids import TIME_GRIDS, time_grid
from imagen_jax.diffusion.guidance import (
    THRESHOLDS,
    DynamicThreshold,
    IntervalGuidance,
    dynamic_threshold,
    guided_denoiser,
    static_threshold,
)
from imagen_jax.diffusion.loss import (
    TIME_SAMPLING,
    WEIGHTINGS,
    DiffusionLoss,
    diffusion_loss,
    loss_by_logsnr_bin,
    loss_weight,
    sample_times,
)
from imagen_jax.diffusion.noise import initial_noise, per_example_keys
from imagen_jax.diffusion.parametrization import (
    PARAMETRIZATIONS,
    diffuse,
    target,
    to_eps,
    to_v,
    to_x0,
)
from imagen_jax.diffusion.samplers import (
    DDIM,
    DDPM,
    SAMPLERS,
    DPMpp2M,
    Heun,
    format_sampler,
    parse_sampler,
    sample,
)
from imagen_jax.diffusion.schedule import SCHEDULES, NoiseSchedule, alpha_sigma, make_schedule
from imagen_jax.diffusion.transitions import Sampler

__all__ = [
    "DDIM",
    "DDPM",
    "PARAMETRIZATIONS",
    "SAMPLERS",
    "SCHEDULES",
    "THRESHOLDS",
    "TIME_GRIDS",
    "TIME_SAMPLING",
    "WEIGHTINGS",
    "DPMpp2M",
    "DiffusionLoss",
    "DynamicThreshold",
    "GaussianMixture",
    "Heun",
    "IntervalGuidance",
    "NoiseSchedule",
    "Sampler",
    "alpha_sigma",
    "augment_low_res",
    "augment_sweep",
    "diffuse",
    "diffusion_loss",
    "dynamic_threshold",
    "format_sampler",
    "guided_denoiser",
    "initial_noise",
    "keep_outside",
    "loss_by_logsnr_bin",
    "loss_weight",
    "make_schedule",
    "parse_sampler",
    "per_example_keys",
    "resampling_path",
    "sample",
    "sample_aug_level",
    "sample_times",
    "static_threshold",
    "target",
    "time_grid",
    "to_eps",
    "to_v",
    "to_x0",
    "upsample_low_res",
]
