"""Gaussian noise that belongs to an example, not to its place in a batch or on a device."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from imagen_jax.errors import UserError
from imagen_jax.typing import PRNGKey

# Indices above any number of sampling steps: one key serves a whole sampling run, and its starting
# noise is never used twice.
INITIAL_NOISE = 2**31 - 1
AUGMENTATION_NOISE = 2**31 - 2


def per_example_keys(key: PRNGKey, batch_size: int) -> PRNGKey:
    """One key per example.

    Args:
      key: a single key, from which example i gets fold_in(key, i), or already [batch_size] keys,
        which are returned as they are. New-style keys or raw uint32 key data.
      batch_size: number of examples.

    Returns:
      [batch_size] new-style keys.

    Raises:
      UserError: key holds another number of keys.
    """
    if not jnp.issubdtype(key.dtype, jax.dtypes.prng_key):
        key = jax.random.wrap_key_data(key)
    if key.ndim == 0:
        return jax.vmap(jax.random.fold_in, in_axes=(None, 0))(key, jnp.arange(batch_size))
    if key.shape != (batch_size,):
        raise UserError(f"expected one key or {batch_size} keys, got keys of shape {key.shape}")
    return key


def example_noise(
    keys: PRNGKey, shape: tuple[int, ...], index: jax.Array | int, dtype: Any = jnp.float32
) -> jax.Array:
    """Standard normal noise [b, *shape], row i a function of keys[i] and index only.

    Args:
      keys: [b] keys.
      shape: shape of one example.
      index: the number of the sampling step, or a constant of this file; each gives another noise.
      dtype: floating type.
    """

    def draw(key: PRNGKey) -> jax.Array:
        return jax.random.normal(jax.random.fold_in(key, index), shape, dtype)

    return jax.vmap(draw)(keys)


def initial_noise(
    key: PRNGKey, batch_size: int, shape: tuple[int, ...], dtype: Any = jnp.float32
) -> jax.Array:
    """Starting noise of a sampler [batch_size, *shape], independent of its later noise.

    Args:
      key: the key that the sampler is given too: a single key or [batch_size] keys.
      batch_size: number of examples.
      shape: (h, w, c).
      dtype: floating type.
    """
    return example_noise(per_example_keys(key, batch_size), shape, INITIAL_NOISE, dtype)
