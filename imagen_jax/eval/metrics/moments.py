"""Mean and covariance of features, gathered part by part.

Parts are merged as Chan, Golub and LeVeque 1979 do: with n = n_a + n_b and d = mean_b - mean_a,
  mean = mean_a + d n_b / n,
  S = S_a + S_b + d d^T n_a n_b / n,       S: the sum of (x - mean)(x - mean)^T,
so parts may be cut anywhere, taken in any order and lie on any host, and nothing cancels.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable

import numpy as np

from imagen_jax.errors import UserError


@dataclasses.dataclass(frozen=True, eq=False)
class Moments:
    """Of a set of features.

    Attributes:
      count: number of examples.
      mean: [d] float64.
      scatter: [d, d] float64, sum of (x - mean)(x - mean)^T.
    """

    count: int
    mean: np.ndarray
    scatter: np.ndarray

    @classmethod
    def of(cls, features: np.ndarray) -> Moments:
        """Of features [n, d].

        Raises:
          UserError: none, another shape, or values that are not finite.
        """
        x = check_features(features)
        mean = x.mean(0)
        centred = x - mean
        return cls(len(x), mean, centred.T @ centred)

    def merge(self, other: Moments) -> Moments:
        """Of both sets together."""
        count = self.count + other.count
        step = other.mean - self.mean
        cross = np.outer(step, step) * (self.count * other.count / count)
        mean = self.mean + step * (other.count / count)
        return Moments(count, mean, self.scatter + other.scatter + cross)

    @property
    def covariance(self) -> np.ndarray:
        """[d, d], with the divisor n - 1.

        Raises:
          UserError: of fewer than two.
        """
        if self.count < 2:
            raise UserError(f"a covariance needs at least 2 images, got {self.count}")
        return self.scatter / (self.count - 1)


def merge_all(parts: Iterable[Moments]) -> Moments:
    """Of all parts together.

    Raises:
      UserError: there are none.
    """
    total: Moments | None = None
    for part in parts:
        total = part if total is None else total.merge(part)
    if total is None:
        raise UserError("no parts to merge")
    return total


def check_features(features: np.ndarray) -> np.ndarray:
    """Features [n, d] as float64.

    Raises:
      UserError: none, another shape, or values that are not finite.
    """
    if features.ndim != 2 or 0 in features.shape:
        raise UserError(f"features must be [n, d] with n, d >= 1; got {list(features.shape)}")
    if not np.isfinite(features).all():
        bad = int((~np.isfinite(features).all(1)).argmax())
        raise UserError(f"features of image {bad} are not finite")
    return features.astype(np.float64)
