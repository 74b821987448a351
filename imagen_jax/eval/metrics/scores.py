"""Scores of generated images alone: CLIP score and Inception score."""

from __future__ import annotations

import numpy as np
import scipy.special

from imagen_jax.errors import UserError
from imagen_jax.eval.metrics.moments import check_features


def clip_scores(images: np.ndarray, texts: np.ndarray) -> np.ndarray:
    """Cosine of every image's features with those of its text, [n] in -1 ... 1.

    The paper's CLIP score is their mean. Hessel et al. 2021 (arXiv:2104.08718) print
    2.5 max(cosine, 0), others 100 cosine.

    Args:
      images, texts: features [n, d] of CLIP's two towers.

    Raises:
      UserError: of different shapes.
    """
    x, y = check_features(images), check_features(texts)
    if x.shape != y.shape:
        raise UserError(f"features {list(x.shape)} of images, {list(y.shape)} of texts")
    return (x * y).sum(1) / np.linalg.norm(x, axis=1) / np.linalg.norm(y, axis=1)


def inception_score(logits: np.ndarray, splits: int = 10, seed: int = 0) -> tuple[float, float]:
    """Mean and standard deviation over splits of exp(E KL(p(y|x) || p(y))).

    Salimans et al. 2016 (arXiv:1606.03498).

    Args:
      logits: [n, classes].
      splits: parts of equal size, up to one image, in random order.
      seed: seed of the order.

    Raises:
      UserError: fewer images than splits.
    """
    logits = check_features(logits)
    if not 1 <= splits <= len(logits):
        raise UserError(f"{splits} splits of {len(logits)} images; choose 1 to {len(logits)}")
    order = np.random.default_rng(seed).permutation(len(logits))
    scores = []
    for part in np.array_split(logits[order], splits):
        log_p = scipy.special.log_softmax(part, axis=1)
        log_marginal = scipy.special.logsumexp(log_p, axis=0) - np.log(len(part))
        scores.append(np.exp((np.exp(log_p) * (log_p - log_marginal)).sum(1).mean()))
    return float(np.mean(scores)), float(np.std(scores))
