"""Real images that sampled ones are compared with."""

from __future__ import annotations

from pathlib import Path

from imagen_jax.eval.feature_sets import FeatureSet, cached_features
from imagen_jax.eval.features.network import FeatureNetwork
from imagen_jax.eval.images import Images


class Reality:
    """Real images and their features.

    Args:
      images: as many as are sampled.
      others: further real ones, for the distance of real from real; None for none.
      directory: folder for their features.
    """

    def __init__(self, images: Images, others: Images | None, directory: Path):
        self.images, self.others, self._directory = images, others, directory

    def features(self, network: FeatureNetwork) -> tuple[FeatureSet, FeatureSet | None]:
        """Of the images, and of the others."""

        def of(images: Images, name: str) -> FeatureSet:
            path = self._directory / f"{network.name}-{name}.npz"
            return cached_features(network, images, path)

        others = None if self.others is None else of(self.others, "others")
        return of(self.images, "reference"), others
