"""A frozen network with its preprocessing: images in, features out, and what they are worth."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from imagen_jax.errors import UserError
from imagen_jax.eval.features import clip, inception, mobilenet
from imagen_jax.eval.features.clip_weights import Clip, read_clip
from imagen_jax.eval.features.layers import Layers, fold
from imagen_jax.eval.features.resize import resize
from imagen_jax.eval.features.tensors import read_tensors
from imagen_jax.paths import as_path

NETWORKS = ("mobilenet-v2", "inception-v3", "clip")
INCEPTION_PROTOCOLS = ("clean", "tf1", "half-pixel")
BATCHES = (4, 32)
"""Images of each device that are seen together; few sizes, so that few are compiled."""


@dataclasses.dataclass(frozen=True, eq=False)
class FeatureNetwork:
    """Images to features.

    Attributes:
      name: name of the network; with "inception-v3" a Frechet distance is an FID, otherwise not.
      width: width of the features.
      sha256: of the file of weights.
      preprocessing: name of the images' preprocessing.
      params: weights.
      forward: (params, [b, h, w, 3] float32 0 ... 255) -> {output: [b, d]}; "features" is one.
    """

    name: str
    width: int
    sha256: str
    preprocessing: str
    params: Any = dataclasses.field(repr=False)
    forward: Callable[[Any, jax.Array], dict[str, jax.Array]] = dataclasses.field(repr=False)

    @property
    def identity(self) -> dict[str, str]:
        """Identity of features: equal if they may be compared."""
        return {"network": self.name, "weights": self.sha256, "preprocessing": self.preprocessing}

    def outputs(self, images: np.ndarray) -> dict[str, np.ndarray]:
        """All outputs of uint8 images [n, h, w, 3], in batches divided over this host's devices.

        Raises:
          UserError: no images, or other than uint8 RGB.
        """
        if images.ndim != 4 or images.shape[-1] != 3 or images.dtype != np.uint8:
            raise UserError(
                f"images must be uint8 [n, h, w, 3]; got {images.dtype} {list(images.shape)}"
            )
        if len(images) == 0:
            raise UserError(f"no images were given to {self.name}")
        batched, weights, run = self._compiled
        devices = len(batched.mesh.devices)
        size = devices * (BATCHES[0] if len(images) < devices * BATCHES[1] else BATCHES[1])
        parts = []
        for start in range(0, len(images), size):
            part = images[start : start + size]
            short = size - len(part)
            padded = np.pad(part, ((0, short), (0, 0), (0, 0), (0, 0)), mode="edge")
            parts.append((run(weights, jax.device_put(padded, batched)), len(part)))
        return {
            name: np.concatenate([np.asarray(out[name])[:real] for out, real in parts])
            for name in parts[0][0]
        }

    def __call__(self, images: np.ndarray) -> np.ndarray:
        """Features [n, width] float32; see `outputs`."""
        return self.outputs(images)["features"]

    @functools.cached_property
    def _compiled(self) -> tuple[NamedSharding, Any, Any]:
        mesh = Mesh(np.array(jax.local_devices()), ("data",))
        weights = jax.device_put(self.params, NamedSharding(mesh, PartitionSpec()))

        @jax.jit
        def run(params: Any, images: jax.Array) -> dict[str, jax.Array]:
            return self.forward(params, images.astype(jnp.float32))

        return NamedSharding(mesh, PartitionSpec("data")), weights, run


def load_network(
    name: str, weights: str | Path | None = None, protocol: str = "clean"
) -> FeatureNetwork:
    """A feature network.

    Args:
      name: one of NETWORKS.
      weights: file of inception-v3 or mobilenet-v2, directory of clip; None is the installed
        package of mobilenet-v2.
      protocol: protocol of inception-v3, one of INCEPTION_PROTOCOLS; see resize.

    Raises:
      UserError: no weights there; an unknown name or protocol, or weights of another network.
    """
    if name not in NETWORKS:
        raise UserError(f"unknown feature network {name!r}; choices: {', '.join(NETWORKS)}")
    if protocol not in INCEPTION_PROTOCOLS:
        raise UserError(f"unknown protocol {protocol!r}; choices: {', '.join(INCEPTION_PROTOCOLS)}")
    if name == "mobilenet-v2":
        (shipped,) = mobilenet.PACKAGE.files() if weights is None else (as_path(weights),)
        return mobilenet_network(shipped)
    if weights is None:
        raise UserError(
            f"no package ships the weights of {name}; say where they are (docs/evaluation.md says "
            "where they come from)"
        )
    if name == "clip":
        return clip_network(read_clip(weights))
    return inception_network(weights, protocol)


def mobilenet_network(path: str | Path) -> FeatureNetwork:
    """MobileNetV2 with torchvision's weights."""
    tensors, digest = read_tensors(path)
    size = mobilenet.SIZE
    params = fold(mobilenet.mobilenet_v2, size, tensors, mobilenet.NORM_EPS, path)

    def forward(params: Any, x: jax.Array) -> dict[str, jax.Array]:
        x = mobilenet.preprocess(resize(x, size, "clean"))
        return {"features": mobilenet.mobilenet_v2(Layers(params), x)}

    how = f"bicubic without aliasing to {size}, ImageNet's mean and deviation"
    return FeatureNetwork("mobilenet-v2", mobilenet.WIDTH, digest, how, params, forward)


def inception_network(path: str | Path, protocol: str) -> FeatureNetwork:
    """Inception-v3; its outputs are "features" (pool3), "logits", and "logits_unbiased", without
    the biases of the last layer, as the code of Salimans et al. 2016 and all since take them."""
    tensors, digest = read_tensors(path)
    size = inception.SIZE
    params = fold(inception.inception_v3, size, tensors, inception.NORM_EPS, path)

    def forward(params: Any, x: jax.Array) -> dict[str, jax.Array]:
        x = inception.preprocess(resize(x, size, protocol), protocol)
        pooled, logits = inception.inception_v3(Layers(params), x)
        _, bias = params["fc"]
        return {"features": pooled, "logits": logits, "logits_unbiased": logits - bias}

    # Others may have these shapes, too: only the weights of 2015 make a distance an FID. Torch's
    # files of them are known by their hash, TensorFlow's graph by the names that only it has.
    known = digest[:8] in inception.KNOWN or Path(path).suffix == ".pb"
    name = "inception-v3" if known else "inception-v3 of unknown weights"
    return FeatureNetwork(name, inception.WIDTH, digest, f"{protocol} to {size}", params, forward)


def clip_network(read: Clip) -> FeatureNetwork:
    """The image tower of CLIP."""

    def forward(params: Any, x: jax.Array) -> dict[str, jax.Array]:
        x = clip.preprocess(resize(x, read.image_size, "8-bit"))
        return {"features": clip.encode_images(params, x, read.sizes)}

    width = read.params["vision"]["projection"].shape[1]
    how = f"8-bit bicubic to {read.image_size}, CLIP's mean and deviation"
    return FeatureNetwork(read.name, width, read.sha256, how, read.params, forward)


def text_features(read: Clip, texts: list[str]) -> np.ndarray:
    """Features [n, d] float32 of texts, not normalised; see Clip.tokenize of long ones."""
    run = jax.jit(lambda params, ids: clip.encode_texts(params, ids, read.sizes))
    ids = read.tokenize(texts)
    size = BATCHES[1]
    padded = np.pad(ids, ((0, -len(ids) % size), (0, 0)), mode="edge")
    parts = [run(read.params, padded[i : i + size]) for i in range(0, len(padded), size)]
    return np.concatenate([np.asarray(part) for part in parts])[: len(ids)]
