"""Confidence intervals."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import scipy.special

from imagen_jax.errors import UserError
from imagen_jax.eval.metrics.frechet import frechet_of_features

Z95 = 1.959964


def wilson_interval(successes: int, trials: int, z: float = Z95) -> tuple[float, float]:
    """Score interval of a proportion (Wilson 1927); z=1.96 for 95%.

    Raises:
      UserError: trials < 1, or successes outside 0..trials.
    """
    _check_proportion("wilson_interval", successes, trials)
    share = successes / trials
    scale = 1 + z * z / trials
    middle = (share + z * z / (2 * trials)) / scale
    half = z / scale * math.sqrt(share * (1 - share) / trials + z * z / (4 * trials * trials))
    # At its ends the interval is exact, but for rounding.
    low = 0.0 if successes == 0 else middle - half
    return low, 1.0 if successes == trials else middle + half


def clopper_pearson_interval(
    successes: int, trials: int, level: float = 0.95
) -> tuple[float, float]:
    """Interval of a proportion that holds it at least as often as it says (Clopper, Pearson 1934).

    Raises:
      UserError: as wilson_interval.
    """
    _check_proportion("clopper_pearson_interval", successes, trials)
    tail = (1 - level) / 2
    failures = trials - successes
    low = scipy.special.betaincinv(successes, failures + 1, tail) if successes else 0.0
    high = scipy.special.betaincinv(successes + 1, failures, 1 - tail) if failures else 1.0
    return float(low), float(high)


def _check_proportion(name: str, successes: int, trials: int) -> None:
    if trials < 1 or not 0 <= successes <= trials:
        raise UserError(f"{name}: {successes} of {trials} is no proportion")


def mean_interval(values: np.ndarray, resamples: int = 1000, seed: int = 0) -> tuple[float, float]:
    """95% interval of the mean of values [n]: percentiles of means of resampled values."""
    rng = np.random.default_rng(seed)
    counts = rng.multinomial(len(values), np.full(len(values), 1 / len(values)), resamples)
    low, high = np.percentile(counts @ values / len(values), (2.5, 97.5))
    return float(low), float(high)


def bootstrap_error(
    statistic: Callable[[np.ndarray, np.ndarray], float],
    sizes: tuple[int, int],
    resamples: int = 50,
    seed: int = 0,
) -> float:
    """Standard error of a statistic of two sets: its deviation over resampled images.

    Only the deviation is used: resampling repeats images, which shifts a Frechet distance upwards
    as fewer images do, so that percentiles would not even hold the value itself.

    Args:
      statistic: (how often each image counts [n], the same of the other set [m]) -> value.
      sizes: n and m.
      resamples: at least 2.
      seed: seed of the resampling.
    """
    rng = np.random.default_rng(seed)
    n, m = sizes
    values = [
        statistic(rng.multinomial(n, np.full(n, 1 / n)), rng.multinomial(m, np.full(m, 1 / m)))
        for _ in range(resamples)
    ]
    return float(np.std(values, ddof=1))


def frechet_interval(
    x: np.ndarray, y: np.ndarray, value: float, resamples: int = 50, seed: int = 0
) -> tuple[float, float]:
    """95% interval of the Frechet distance of features [n, d] and [m, d] at these n and m.

    It says how far the value moves with other images of the same number, not how far it lies from
    that of infinitely many: for that, see the distance of real images from real ones.
    """
    error = bootstrap_error(
        lambda wx, wy: frechet_of_features(x, y, wx, wy), (len(x), len(y)), resamples, seed
    )
    return value - Z95 * error, value + Z95 * error
