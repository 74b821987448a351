"""Data whose denoiser is known exactly: what samplers and losses are measured against."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from imagen_jax.diffusion.parametrization import amplitudes
from imagen_jax.typing import LogSNR, PRNGKey


class GaussianMixture(NamedTuple):
    """A mixture of k Gaussians over images, flattened to d = h w c numbers.

    Attributes:
      weights: [k] positive, adding up to 1.
      means: [k, d].
      covariances: [k, d, d] symmetric, positive semidefinite.
    """

    weights: np.ndarray
    means: np.ndarray
    covariances: np.ndarray

    def _eigen(self) -> tuple[np.ndarray, np.ndarray]:
        """Variances [k, d] and directions [k, d, d] of each component's principal axes."""
        values, vectors = np.linalg.eigh(np.asarray(self.covariances, np.float64))
        return np.maximum(values, 0.0), vectors

    def denoise(self, x_t: Float[Array, "b ..."], logsnr: LogSNR) -> Float[Array, "b ..."]:
        """E[x0 | x_t]: equation (22). A Denoiser.

        Args:
          x_t: [b, ...] with d numbers per example.
          logsnr: [] or [b].
        """
        flat = x_t.reshape(x_t.shape[0], -1)
        alpha, sigma = amplitudes(logsnr, flat)
        means = jnp.asarray(self.means, flat.dtype)
        # In the eigenvectors of each covariance: nothing to invert, exact at both ends of logsnr.
        values, vectors = (jnp.asarray(part, flat.dtype) for part in self._eigen())
        alpha, sigma = (jnp.reshape(a, (-1, 1, 1)) for a in (alpha, sigma))
        spread = alpha**2 * values + sigma**2
        offset = jnp.einsum("kde,bkd->bke", vectors, flat[:, None] - alpha * means)
        log_density = -0.5 * jnp.sum(offset**2 / spread + jnp.log(spread), axis=-1)
        log_weights = jnp.log(jnp.asarray(self.weights, flat.dtype))
        share = jax.nn.softmax(log_weights + log_density, axis=1)
        posterior = means + jnp.einsum("kde,bke->bkd", vectors, alpha * values / spread * offset)
        return jnp.einsum("bk,bkd->bd", share, posterior).reshape(x_t.shape)

    def sample(self, key: PRNGKey, count: int) -> Float[Array, "count d"]:
        """Independent draws of the data."""
        choice_key, noise_key = jax.random.split(key)
        choice = jax.random.choice(
            choice_key, len(self.weights), (count,), p=jnp.asarray(self.weights)
        )
        values, vectors = self._eigen()
        root = jnp.asarray(vectors * np.sqrt(values)[:, None, :])
        noise = jax.random.normal(noise_key, (count, self.means.shape[1]), root.dtype)
        return jnp.asarray(self.means)[choice] + jnp.einsum("nde,ne->nd", root[choice], noise)

    def mean(self) -> np.ndarray:
        """[d] mean of the data."""
        return self.weights @ self.means

    def covariance(self) -> np.ndarray:
        """[d, d] covariance of the data."""
        centred = self.means - self.mean()
        between = np.einsum("k,kd,ke->de", self.weights, centred, centred)
        return np.einsum("k,kde->de", self.weights, self.covariances) + between
