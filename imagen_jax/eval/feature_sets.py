"""Features of a set of images with what they must agree in to be compared."""

from __future__ import annotations

import functools
import hashlib
import json
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from imagen_jax.data.corpora.unfolding import growth_limit, too_much
from imagen_jax.errors import UserError
from imagen_jax.eval.features.network import FeatureNetwork
from imagen_jax.eval.images import Images, chunks
from imagen_jax.eval.metrics.frechet import frechet_distance, frechet_of_features
from imagen_jax.eval.metrics.intervals import frechet_interval
from imagen_jax.eval.metrics.kernel import kernel_distance
from imagen_jax.eval.metrics.manifold import manifold_scores
from imagen_jax.eval.metrics.moments import Moments, merge_all
from imagen_jax.eval.metrics.scores import inception_score
from imagen_jax.files import atomic_path, differences, given_file

INCEPTION = "inception-v3"
RESAMPLES = 50
SCORE_SPLITS = 10
"""Of the Inception score, as is usual."""


class FeatureSet:
    """Features [n, d] float32 of n images.

    Attributes:
      features: one row for each image.
      identity: network, weights, preprocessing and side of the images: equal where two sets are
        compared.
      data: identity of the images: "name", "made", "source" (a hash of where they come from) and
        "sha256" of their pixels, or of what determines them.
      moments: moments of the features; gathered part by part as they were computed.
      logits: [n, classes] float32, without biases, of Inception, for its score; None of others.
    """

    def __init__(
        self,
        features: np.ndarray,
        identity: Mapping[str, Any],
        data: Mapping[str, Any],
        moments: Moments | None = None,
        logits: np.ndarray | None = None,
    ):
        self.features, self.identity, self.data = features, dict(identity), dict(data)
        self._moments, self.logits = moments, logits

    def __len__(self) -> int:
        return len(self.features)

    @functools.cached_property
    def moments(self) -> Moments:
        """See the class."""
        return Moments.of(self.features) if self._moments is None else self._moments

    def first(self, count: int) -> FeatureSet:
        """The first images of the set.

        Raises:
          UserError: there are not so many.
        """
        if not 1 <= count <= len(self):
            raise UserError(f"{self.data['name']!r} has {len(self)} images; cannot take {count}")
        if count == len(self):
            return self
        logits = None if self.logits is None else self.logits[:count]
        data = self.data | {"first": count}
        return FeatureSet(self.features[:count], self.identity, data, logits=logits)

    def save(self, path: str | Path) -> None:
        """Writes features, logits, moments and record as one .npz."""
        record = json.dumps({"identity": self.identity, "data": self.data})
        logits: dict[str, Any] = {} if self.logits is None else {"logits": self.logits}
        with atomic_path(path) as temporary, open(temporary, "wb") as file:
            np.savez(
                file, features=self.features, record=np.array(record), count=self.moments.count,
                mean=self.moments.mean, scatter=self.moments.scatter, **logits,
            )  # fmt: skip

    @classmethod
    def load(cls, path: str | Path) -> FeatureSet:
        """Reads what `save` wrote.

        Raises:
          UserError: no such file, another file, or a damaged one.
        """
        try:
            with given_file(path, "file of features") as local:
                _check_growth(local)
                with np.load(local) as file:
                    record = json.loads(str(file["record"]))
                    moments = Moments(int(file["count"]), file["mean"], file["scatter"])
                    data, logits = record["data"], file.get("logits")
                    return cls(file["features"], record["identity"], data, moments, logits)
        except UserError:
            raise
        except Exception as error:  # of whatever kind NumPy's and zip's parts raise on damage
            raise UserError(
                f"{path} is no file of `imagen evaluate features`, or damaged: {error}"
            ) from error


def _check_growth(path: Path) -> None:
    """Raise a UserError if an archive holds far more than its own size."""
    with zipfile.ZipFile(path) as archive:
        unfolded = sum(entry.file_size for entry in archive.infolist())
    if unfolded > (limit := growth_limit(path.stat().st_size)):
        raise UserError(f"{path} is damaged: {too_much(limit)}")


def compute_features(network: FeatureNetwork, images: Images) -> FeatureSet:
    """Features of images, read and measured a part at a time."""
    parts, logits, moments, digest = [], [], [], hashlib.sha256()
    for part in chunks(images):
        digest.update(np.ascontiguousarray(part).data)
        outputs = network.outputs(part)
        parts.append(outputs["features"])
        if "logits_unbiased" in outputs:
            logits.append(outputs["logits_unbiased"])
        moments.append(Moments.of(parts[-1]))
    data = {
        "name": images.name, "made": images.made, "source": images.fingerprint(),
        "sha256": digest.hexdigest(),
    }  # fmt: skip
    identity = network.identity | {"side": images.side}
    classified = np.concatenate(logits) if logits else None
    return FeatureSet(np.concatenate(parts), identity, data, merge_all(moments), classified)


def cached_features(network: FeatureNetwork, images: Images, path: Path) -> FeatureSet:
    """`compute_features`, kept in a file, and read from it as long as nothing has changed: the
    network, its weights, the preprocessing, or where the images come from."""
    if path.is_file():
        found = FeatureSet.load(path)
        same_network = found.identity == network.identity | {"side": images.side}
        if same_network and found.data["source"] == images.fingerprint():
            return found
    computed = compute_features(network, images)
    path.parent.mkdir(parents=True, exist_ok=True)
    computed.save(path)
    return computed


def check_comparable(a: FeatureSet, b: FeatureSet) -> None:
    """That a distance between two sets says something.

    Raises:
      UserError: different networks, preprocessing or sizes of images; different numbers of
        images, on which every distance depends; or the same images on both sides.
    """
    names = f"{a.data['name']!r} and {b.data['name']!r}"
    if lines := differences(a.identity, b.identity):
        raise UserError(f"features of {names} cannot be compared: " + "; ".join(lines))
    if len(a) != len(b):
        raise UserError(
            f"{names} have {len(a)} and {len(b)} images; distances depend on the number, so take "
            f"as many of both, such as the first {min(len(a), len(b))}"
        )
    if a.data["sha256"] == b.data["sha256"]:
        raise UserError(f"{names} are the same images")


def compare(
    generated: FeatureSet, real: FeatureSet, floor: FeatureSet | None, resamples: int = RESAMPLES
) -> dict[str, Any]:
    """All distances of generated images from real ones, beside those of other real ones.

    Args:
      generated, real: the two sets; equally many.
      floor: other real images. Of fewer than the rest has, as many of the rest are compared with
        them, and "floor_count" says how many; None for none.
      resamples: resamples of the bootstrap.

    Returns:
      "count", "floor_count", "identity", "title" (of the Frechet distance), for every name of
      METRICS {"value", "floor"?, "low"?, "high"?}, and, where both sets have logits of enough
      images, "inception_score": {"value", "deviation", "real", "real_deviation"}.

    Raises:
      UserError: as check_comparable.
    """
    check_comparable(generated, real)
    result: dict[str, Any] = {"count": len(real), "resamples": resamples} | _identity(real)
    values = _metrics(real, generated)
    low, high = frechet_interval(
        real.features, generated.features, values["frechet"]["value"], resamples
    )
    values["frechet"] |= {"low": low, "high": high}
    if floor is not None:
        count = min(len(real), len(floor))
        other = floor.first(count)
        check_comparable(other, real.first(count))
        for name, of_floor in _metrics(real.first(count), other).items():
            values[name]["floor"] = of_floor["value"]
        result["floor_count"] = count
    if generated.logits is not None and real.logits is not None and len(real) >= SCORE_SPLITS:
        value, deviation = inception_score(generated.logits, SCORE_SPLITS)
        of_real, deviation_of_real = inception_score(real.logits, SCORE_SPLITS)
        result["inception_score"] = {
            "value": value, "deviation": deviation,
            "real": of_real, "real_deviation": deviation_of_real,
        }  # fmt: skip
    return result | values


METRICS = ("frechet", "kernel", "precision", "recall", "density", "coverage")


def _identity(features: FeatureSet) -> dict[str, Any]:
    network = features.identity["network"]
    title = "FID" if network == INCEPTION else f"Fréchet distance, {network}"
    return {"title": title, "identity": features.identity}


def _metrics(real: FeatureSet, generated: FeatureSet) -> dict[str, dict[str, float]]:
    x, y = real.features, generated.features
    if len(real) < x.shape[1]:
        frechet = frechet_of_features(x, y)
    else:
        frechet = frechet_distance(real.moments, generated.moments)
    size = min(1000, len(real))
    # One subset of everything has no luck in it.
    kernel, _ = kernel_distance(x, y, subsets=1 if size == len(real) else 100, subset_size=size)
    scores = manifold_scores(x, y)._asdict()
    return {name: {"value": value} for name, value in
            {"frechet": frechet, "kernel": kernel, **scores}.items()}  # fmt: skip
