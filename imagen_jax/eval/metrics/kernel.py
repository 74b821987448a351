"""The kernel distance: the squared maximum mean discrepancy under a cubic kernel, without bias.

Binkowski et al. 2018 (arXiv:1801.01401), "KID" on Inception features:
  k(x, y) = (x . y / d + 1)^3,
  MMD^2 = mean of k over pairs within x + the same within y - 2 mean of k between x and y,
where pairs are of different images. Its expectation does not depend on the number of images,
and is zero for equal distributions, so single values may be negative.
"""

from __future__ import annotations

import numpy as np

from imagen_jax.errors import UserError
from imagen_jax.eval.metrics.moments import check_features


def kernel_distance(
    x: np.ndarray, y: np.ndarray, subsets: int = 100, subset_size: int = 1000, seed: int = 0
) -> tuple[float, float]:
    """Mean and standard deviation of MMD^2 over random subsets of two sets of features.

    Args:
      x, y: [n, d] and [m, d].
      subsets: number of subsets.
      subset_size: images of each in a subset, drawn without repetition.
      seed: seed of the subsets.

    Raises:
      UserError: fewer images than a subset has.
    """
    x, y = check_features(x), check_features(y)
    if not 2 <= subset_size <= min(len(x), len(y)):
        raise UserError(
            f"subsets of {subset_size} of {len(x)} and {len(y)} images: the size must be from 2 "
            "to the smaller number of images"
        )
    rng = np.random.default_rng(seed)
    values = []
    for _ in range(subsets):
        part_x = x[rng.choice(len(x), subset_size, replace=False)]
        part_y = y[rng.choice(len(y), subset_size, replace=False)]
        values.append(squared_mmd(part_x, part_y))
    return float(np.mean(values)), float(np.std(values))


def squared_mmd(x: np.ndarray, y: np.ndarray) -> float:
    """The estimate without bias from features [n, d] and [m, d] float64, n, m >= 2."""
    n, m = len(x), len(y)
    within = 0.0
    for z, count in ((x, n), (y, m)):
        k = _kernel(z, z)
        within += (k.sum() - np.trace(k)) / (count * (count - 1))
    return float(within - 2 * _kernel(x, y).mean())


def _kernel(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    return (x @ y.T / x.shape[1] + 1) ** 3
