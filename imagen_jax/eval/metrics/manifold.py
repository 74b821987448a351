"""Fidelity and diversity apart: whether images lie among the real ones, and real ones among them.

A set of features covers the balls around its members that reach to their k-th nearest neighbour.
  precision  share of generated images in a ball of a real one
  recall     share of real images in a ball of a generated one
             (Kynkaanniemi et al. 2019, arXiv:1904.06991; k = 3)
  density    how many balls of real images hold a generated one, by k
  coverage   share of real images whose ball holds a generated one
             (Naeem et al. 2020, arXiv:2002.09797; k = 5)
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from imagen_jax.errors import UserError
from imagen_jax.eval.metrics.moments import check_features

ROWS = 1024
"""Rows of distances that are held at once."""


class Manifold(NamedTuple):
    """The four numbers; 0 ... 1, density from 0 without an upper end."""

    precision: float
    recall: float
    density: float
    coverage: float


NEIGHBOURS = 5
"""Of every image; there must be more images."""


def manifold_scores(
    real: np.ndarray, generated: np.ndarray, k_pr: int = 3, k_dc: int = NEIGHBOURS
) -> Manifold:
    """Precision, recall, density and coverage of generated [m, d] against real [n, d] features.

    Raises:
      UserError: not more images than neighbours.
    """
    real, generated = check_features(real), check_features(generated)
    k = max(k_pr, k_dc)
    if min(len(real), len(generated)) <= k:
        raise UserError(
            f"{len(real)} real and {len(generated)} generated images; counting neighbours "
            f"needs more than {k} of each"
        )
    radius_pr, radius_dc = _radii(real, (k_pr, k_dc))
    (radius_generated,) = _radii(generated, (k_pr,))
    nearest_generated = np.full(len(real), np.inf)
    in_recall = np.zeros(len(real), bool)
    precise = balls = 0
    for start in range(0, len(generated), ROWS):
        rows = slice(start, start + ROWS)
        distances = _squared(generated[rows], real)
        precise += (distances <= radius_pr).any(1).sum()
        balls += (distances < radius_dc).sum()
        in_recall |= (distances <= radius_generated[rows, None]).any(0)
        nearest_generated = np.minimum(nearest_generated, distances.min(0))
    return Manifold(
        precision=float(precise / len(generated)),
        recall=float(in_recall.mean()),
        density=float(balls / (k_dc * len(generated))),
        coverage=float((nearest_generated < radius_dc).mean()),
    )


def _radii(x: np.ndarray, ks: tuple[int, ...]) -> list[np.ndarray]:
    """Squared distances to the k-th nearest other, [n] for every k."""
    result = [np.empty(len(x)) for _ in ks]
    for start in range(0, len(x), ROWS):
        distances = _squared(x[start : start + ROWS], x)
        # An image is not its own neighbour, whatever rounding makes of its distance.
        distances[np.arange(len(distances)), start + np.arange(len(distances))] = -1
        distances.partition(sorted(ks), axis=1)
        for values, k in zip(result, ks, strict=True):
            values[start : start + ROWS] = distances[:, k]
    return result


def _squared(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Squared distances [n, m], at least 0."""
    squares = (x**2).sum(1)[:, None] + (y**2).sum(1) - 2 * x @ y.T
    return np.maximum(squares, 0, out=squares)
