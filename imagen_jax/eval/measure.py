"""Everything that is measured on the sampled images of a job, as numbers with their bounds."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any

import numpy as np

from imagen_jax.data.scenes.levels import Level
from imagen_jax.errors import UserError
from imagen_jax.eval.alignment import alignment_report
from imagen_jax.eval.feature_sets import RESAMPLES, compare
from imagen_jax.eval.features.clip_weights import Clip
from imagen_jax.eval.features.network import FeatureNetwork, clip_network, text_features
from imagen_jax.eval.job import ImageStore
from imagen_jax.eval.metrics.intervals import mean_interval
from imagen_jax.eval.metrics.scores import clip_scores
from imagen_jax.eval.prompts import Suite
from imagen_jax.eval.reality import Reality

ALL = "all"


@dataclasses.dataclass(frozen=True, eq=False)
class Instruments:
    """Networks that measure images.

    Attributes:
      network: network of the distances; None where there are no real images to compare with.
      clip: network of the CLIP score; None for none.
    """

    network: FeatureNetwork | None = None
    clip: Clip | None = None

    @functools.cached_property
    def clip_network(self) -> FeatureNetwork | None:
        """CLIP's image tower."""
        return None if self.clip is None else clip_network(self.clip)

    @property
    def networks(self) -> list[FeatureNetwork]:
        """All networks that see the images."""
        return [n for n in (self.network, self.clip_network) if n is not None]


def measure(
    store: ImageStore,
    suite: Suite,
    instruments: Instruments,
    reality: Reality | None,
    level: Level | None,
    resamples: int = RESAMPLES,
) -> dict[str, Any]:
    """Measures sampled images.

    Args:
      store: the images, all there; image i is of suite.prompts[i % len(suite.prompts)].
      suite: their prompts.
      instruments: networks to measure with.
      reality: real images; None where there are none to compare with.
      level: level of the scenes that the prompts describe; None if they are no scenes.
      resamples: resamples of bootstraps of distances.

    Returns:
      "distance" (with real images and a network): what feature_sets.compare returns.
      "alignment" (of scenes): category -> {"all_correct" and other attributes: {"accuracy", "low",
      "high", "n", ...}}, with "all", and "floor" and "ceiling" of all.
      "clip" (with CLIP): category -> {"mean", "low", "high"}, with "all", and "shuffled": images
      with captions of others.
    """
    scores: dict[str, Any] = {"count": len(store)}
    if reality is not None and instruments.network is not None:
        reference, others = reality.features(instruments.network)
        generated = store.features(instruments.network)
        scores["distance"] = compare(generated, reference, others, resamples)
    if level is not None:
        scores["alignment"] = _alignment(store, suite, level)
    network = instruments.clip_network
    if instruments.clip is not None and network is not None:
        texts = text_features(instruments.clip, [prompt.text for prompt in suite.prompts])
        scores["clip"] = _clip(store.features(network).features, texts, suite)
        scores["clip"]["network"] = network.name
    return scores


def indices_by_category(suite: Suite, count: int) -> dict[str, np.ndarray]:
    """Category -> indices of its images, where image i is of prompt i modulo their number."""
    prompts = len(suite.prompts)
    return {
        name: np.array([i for i in range(count) if i % prompts in members])
        for name, members in ((n, set(m)) for n, m in suite.categories().items())
    }


def _alignment(store: ImageStore, suite: Suite, level: Level) -> dict[str, Any]:
    scenes = [suite.prompts[i % len(suite.prompts)].scene for i in range(len(store))]
    known = [scene for scene in scenes if scene is not None]
    if len(known) < len(scenes):
        raise UserError(f"{len(scenes) - len(known)} prompts have no scene to be compared with")
    images = store.read(0, len(store))
    whole = alignment_report(known, images, level)
    result: dict[str, Any] = {
        ALL: whole["images"], "floor": whole["floor"], "ceiling": whole["ceiling"],
    }  # fmt: skip
    for category, members in indices_by_category(suite, len(store)).items():
        report = alignment_report([known[i] for i in members], images[members], level)
        result[category] = report["images"]
    return result


def _clip(images: np.ndarray, texts: np.ndarray, suite: Suite) -> dict[str, Any]:
    prompts = np.arange(len(images)) % len(texts)
    # Half way round, as alignment_report: neighbours may be of one category.
    shuffled = (prompts + max(1, len(texts) // 2)) % len(texts)
    values = clip_scores(images, texts[prompts])
    groups: dict[str, Sequence[float] | np.ndarray] = {
        ALL: values,
        "shuffled": clip_scores(images, texts[shuffled]),
    }
    for category, members in indices_by_category(suite, len(images)).items():
        groups[category] = values[members]
    result = {}
    for name, group in groups.items():
        low, high = mean_interval(np.asarray(group))
        result[name] = {"mean": float(np.mean(group)), "low": low, "high": high, "n": len(group)}
    return result
