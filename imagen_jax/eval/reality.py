"""Real pictures that sampled ones are compared with."""

from __future__ import annotations

from pathlib import Path

from imagen_jax.eval.feature_sets import FeatureSet, cached_features
from imagen_jax.eval.features.network import FeatureNetwork
from imagen_jax.eval.pictures import Pictures


class Reality:
    """Real pictures and their features.

    Args:
      pictures: as many as are sampled.
      others: further real ones, for the distance of real from real; None for none.
      directory: where their features are kept.
    """

    def __init__(self, pictures: Pictures, others: Pictures | None, directory: Path):
        self.pictures, self.others, self._directory = pictures, others, directory

    def features(self, network: FeatureNetwork) -> tuple[FeatureSet, FeatureSet | None]:
        """Of the pictures, and of the others."""

        def of(pictures: Pictures, name: str) -> FeatureSet:
            path = self._directory / f"{network.name}-{name}.npz"
            return cached_features(network, pictures, path)

        others = None if self.others is None else of(self.others, "others")
        return of(self.pictures, "reference"), others
