"""The Frechet distance between Gaussians of the same moments as two sets of features.

Dowson and Landau 1982; between Inception features, Heusel et al. 2017 (arXiv:1706.08500):
  d = |m - w|^2 + tr(C) + tr(W) - 2 tr((C W)^(1/2)).                                           (1)

With any A^T A = C and B^T B = W, the eigenvalues of C W that are not zero are those of
(A B^T)^T (A B^T), so that
  tr((C W)^(1/2)) = sum of the singular values of A B^T,                                       (2)
which needs no square root of a matrix that may be singular, and no offset on its diagonal. A comes
from the eigenvectors of C, or, with fewer images than features, from the centred features
themselves: A = (x - m) / sqrt(n - 1).
"""

from __future__ import annotations

import numpy as np
import scipy.linalg

from imagen_jax.errors import UserError
from imagen_jax.eval.metrics.moments import Moments, check_features


def frechet_distance(a: Moments, b: Moments) -> float:
    """Equation (1) of two sets by their moments.

    Raises:
      UserError: features of different widths, or fewer than two images.
    """
    if a.mean.shape != b.mean.shape:
        raise UserError(f"features of {len(a.mean)} and {len(b.mean)} channels")
    root_a, root_b = _root(a.covariance), _root(b.covariance)
    overlap = scipy.linalg.svdvals(root_a @ root_b.T).sum()
    traces = np.trace(a.covariance) + np.trace(b.covariance)
    return float(((a.mean - b.mean) ** 2).sum() + traces - 2 * overlap)


def _root(covariance: np.ndarray) -> np.ndarray:
    """Some A with A^T A = covariance."""
    values, vectors = scipy.linalg.eigh(covariance)
    # The smallest of a singular covariance are zero but for rounding, on either side of it.
    return np.sqrt(values.clip(0))[:, None] * vectors.T


def frechet_of_features(
    x: np.ndarray,
    y: np.ndarray,
    weights_x: np.ndarray | None = None,
    weights_y: np.ndarray | None = None,
) -> float:
    """Equation (1) of two sets of features.

    Args:
      x, y: [n, d] and [m, d].
      weights_x, weights_y: multiplicity of each image, whole numbers; None is once.

    Raises:
      UserError: as frechet_distance.
    """
    x, y = check_features(x), check_features(y)
    if len(x) + len(y) >= 2 * x.shape[1]:
        return frechet_distance(_weighted(x, weights_x), _weighted(y, weights_y))
    (mean_x, rows_x), (mean_y, rows_y) = _rows(x, weights_x), _rows(y, weights_y)
    overlap = scipy.linalg.svdvals(rows_x @ rows_y.T).sum()
    traces = (rows_x**2).sum() + (rows_y**2).sum()
    return float(((mean_x - mean_y) ** 2).sum() + traces - 2 * overlap)


def _weighted(x: np.ndarray, weights: np.ndarray | None) -> Moments:
    return Moments.of(x if weights is None else np.repeat(x, weights, axis=0))


def _rows(x: np.ndarray, weights: np.ndarray | None) -> tuple[np.ndarray, np.ndarray]:
    """Mean [d], and some A [n, d] with A^T A = covariance."""
    w = np.ones(len(x)) if weights is None else weights.astype(np.float64)
    if w.sum() < 2:
        raise UserError(f"a covariance needs at least 2 images, got {int(w.sum())}")
    mean = w @ x / w.sum()
    return mean, np.sqrt(w / (w.sum() - 1))[:, None] * (x - mean)
