"""Noise conditioning augmentation of super-resolution models.

aug_level in [0, 1] is a time of the cosine schedule, in training and in sampling and whatever the
stage's own schedule: noise has the amplitude sin(pi aug_level / 2), so that a level means the same
in every stage. 0 leaves the image (almost) as it is, 1 replaces it by noise. The network is told
aug_level. Ho et al. 2022 (cascaded diffusion models), section 4; Saharia et al. 2022, section 2.4.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from imagen_jax.diffusion.noise import AUGMENTATION_NOISE, example_noise, per_example_keys
from imagen_jax.diffusion.parametrization import diffuse
from imagen_jax.diffusion.schedule import CosineSchedule
from imagen_jax.errors import UserError
from imagen_jax.typing import Image, PRNGKey

SCHEDULE = CosineSchedule()
"""The schedule whose time aug_level is."""


def sample_aug_level(key: PRNGKey, batch_size: int) -> Float[Array, "b"]:
    """Augmentation levels of a training batch: uniform on [0, 1), one per example."""
    return jax.random.uniform(key, (batch_size,))


def upsample_low_res(
    low_res: Image, size: tuple[int, int], align_corners: bool = False
) -> Float[Array, "b h2 w2 c"]:
    """Bilinear upsampling of low-resolution images to the size of the network's.

    Training and sampling both go through here.

    Args:
      low_res: [b, h, w, c] images.
      size: height and width of the result.
      align_corners: the centres of the corner pixels stay where they are, in place of the image's
        edges.

    Raises:
      UserError: the size is not the same whole multiple of height and width.
    """
    b, h, w, c = low_res.shape
    if size[0] % h or size[0] // h * w != size[1]:
        raise UserError(
            f"a low-resolution image of {h} x {w} cannot condition one of {size[0]} x {size[1]} "
            "pixels"
        )
    if not align_corners:
        return jax.image.resize(low_res, (b, *size, c), "bilinear")
    rows, columns = _between_corners(h, size[0]), _between_corners(w, size[1])
    return jnp.einsum("bhwc,Hh,Ww->bHWc", low_res, rows, columns, precision="highest")


def _between_corners(size: int, larger: int) -> Float[Array, "larger size"]:
    """Weights of linear interpolation that keep the first and the last sample."""
    at = np.arange(larger) * (size - 1) / max(larger - 1, 1)
    return jnp.asarray(np.maximum(0.0, 1.0 - np.abs(at[:, None] - np.arange(size))), jnp.float32)


def augment_low_res(key: PRNGKey, low_res_upsampled: Image, aug_level: Float[Array, "b"]) -> Image:
    """alpha x + sigma eps at t = aug_level, variance preserving: equation (1).

    Args:
      key: a single key or [b] keys; it may be the key that the sampler is given.
      low_res_upsampled: [b, h, w, c] in [-1, 1], already at the resolution of the network.
      aug_level: [] or [b] in [0, 1]; values outside are clipped.

    Returns:
      [b, h, w, c] noised images, not clipped to [-1, 1].

    Raises:
      UserError: aug_level is neither a scalar nor [b].
    """
    keys = per_example_keys(key, low_res_upsampled.shape[0])
    shape, dtype = low_res_upsampled.shape[1:], low_res_upsampled.dtype
    eps = example_noise(keys, shape, AUGMENTATION_NOISE, dtype)
    return diffuse(low_res_upsampled, eps, SCHEDULE.logsnr(aug_level))


def augment_sweep(
    key: PRNGKey,
    low_res_upsampled: Float[Array, "h w c"],
    aug_levels: Float[Array, "n"],
) -> Float[Array, "n h w c"]:
    """One image at several augmentation levels with the same noise, to compare levels.

    Args:
      key: a single key.
      low_res_upsampled: [h, w, c] in [-1, 1].
      aug_levels: [n] in [0, 1].
    """
    count = aug_levels.shape[0]
    images = jnp.broadcast_to(low_res_upsampled, (count, *low_res_upsampled.shape))
    keys = jnp.broadcast_to(per_example_keys(key, 1), (count,))
    return augment_low_res(keys, images, aug_levels)
