"""Weights that any framework can draw for itself: functions of a tensor's name and shape."""

from __future__ import annotations

import zlib

import numpy as np


def random_tensor(name: str, shape: tuple[int, ...]) -> np.ndarray:
    """A float32 tensor that keeps the scale of what passes through it."""
    rng = np.random.default_rng(zlib.crc32(name.encode()))
    if name.endswith("running_var") or (len(shape) == 1 and name.endswith("weight")):
        return rng.uniform(0.5, 1.5, shape).astype(np.float32)
    if len(shape) < 2:
        return np.asarray(0.1 * rng.standard_normal(shape), np.float32)
    fan_in = np.prod(shape[1:])
    return (rng.standard_normal(shape, np.float32) * np.float32(np.sqrt(2 / fan_in))).astype("f4")


def random_images(count: int, side: int, seed: int = 0) -> np.ndarray:
    """Smooth images uint8 [count, side, side, 3]."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:side, :side] / side
    waves = rng.uniform(1, 9, (count, 3, 2)) @ np.stack([y, x]).reshape(2, -1)
    values = np.sin(waves + rng.uniform(0, 6, (count, 3, 1)))
    values = values.reshape(count, 3, side, side).transpose(0, 2, 3, 1)
    noise = rng.normal(0, 0.1, values.shape)
    return (127.5 * (1 + values + noise)).clip(0, 255).astype(np.uint8)


def random_features(count: int, width: int, seed: int) -> np.ndarray:
    """Features [count, width] float32, correlated and off centre as those of networks are."""
    rng = np.random.default_rng(seed)
    mixing = np.random.default_rng(width).normal(size=(width, width)) / np.sqrt(width)
    noise = rng.standard_normal((count, width))
    shift = 0.1 * rng.standard_normal(width)
    return np.maximum(noise @ mixing * (1 + 0.1 * seed) + shift + 0.5, 0).astype(np.float32)
