"""Inception-v3 as the Frechet inception distance is defined on it: the weights of 2015-12-05.

The network of Szegedy et al. 2015 (arXiv:1512.00567) with the differences of the TensorFlow graph
that Heusel et al. 2017 (arXiv:1706.08500) used, named as pytorch-fid and torch-fidelity name them:
  * average pooling does not count what is padded;
  * the last block (Mixed_7c) pools by maximum;
  * 1008 classes.
The weights are not part of this project or of any package: they are read from the user's file.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from imagen_jax.eval.features.layers import ConvNames, Layers

SIZE = 299
WIDTH = 2048
CLASSES = 1008
NORM_EPS = 1e-3
KNOWN = {
    "6726825d": "pytorch-fid's and torch-fidelity's conversion of the graph of 2015-12-05",
}
"""First digits of the SHA-256 of files of the true weights, which are part of the files' names."""


def inception_v3(layers: Layers, x: jax.Array) -> tuple[jax.Array, jax.Array]:
    """(pooled features [b, 2048], logits [b, 1008]) of images [b, 299, 299, 3] in -1 ... 1."""

    def conv(
        name: str,
        x: jax.Array,
        channels: int,
        kernel: int | tuple[int, int] = 1,
        stride: int = 1,
        valid: bool = False,
    ) -> jax.Array:
        """Convolution, normalisation and ReLU; keeps the size unless it is `valid`."""
        h, w = (kernel, kernel) if isinstance(kernel, int) else kernel
        names = ConvNames(f"{name}.conv", f"{name}.bn")
        padding = (0, 0) if valid else (h // 2, w // 2)
        return jax.nn.relu(layers.conv(names, x, channels, (h, w), stride, padding))

    def block_35(name: str, x: jax.Array, pooled: int) -> jax.Array:
        a = conv(f"{name}.branch1x1", x, 64)
        b = conv(f"{name}.branch5x5_1", x, 48)
        b = conv(f"{name}.branch5x5_2", b, 64, 5)
        c = conv(f"{name}.branch3x3dbl_1", x, 64)
        c = conv(f"{name}.branch3x3dbl_2", c, 96, 3)
        c = conv(f"{name}.branch3x3dbl_3", c, 96, 3)
        d = conv(f"{name}.branch_pool", _average(x), pooled)
        return jnp.concatenate([a, b, c, d], -1)

    def block_17(name: str, x: jax.Array, c7: int) -> jax.Array:
        a = conv(f"{name}.branch1x1", x, 192)
        b = conv(f"{name}.branch7x7_1", x, c7)
        b = conv(f"{name}.branch7x7_2", b, c7, (1, 7))
        b = conv(f"{name}.branch7x7_3", b, 192, (7, 1))
        c = conv(f"{name}.branch7x7dbl_1", x, c7)
        c = conv(f"{name}.branch7x7dbl_2", c, c7, (7, 1))
        c = conv(f"{name}.branch7x7dbl_3", c, c7, (1, 7))
        c = conv(f"{name}.branch7x7dbl_4", c, c7, (7, 1))
        c = conv(f"{name}.branch7x7dbl_5", c, 192, (1, 7))
        d = conv(f"{name}.branch_pool", _average(x), 192)
        return jnp.concatenate([a, b, c, d], -1)

    def block_8(name: str, x: jax.Array, pooled: jax.Array) -> jax.Array:
        a = conv(f"{name}.branch1x1", x, 320)
        b = conv(f"{name}.branch3x3_1", x, 384)
        b1 = conv(f"{name}.branch3x3_2a", b, 384, (1, 3))
        b2 = conv(f"{name}.branch3x3_2b", b, 384, (3, 1))
        c = conv(f"{name}.branch3x3dbl_1", x, 448)
        c = conv(f"{name}.branch3x3dbl_2", c, 384, 3)
        c1 = conv(f"{name}.branch3x3dbl_3a", c, 384, (1, 3))
        c2 = conv(f"{name}.branch3x3dbl_3b", c, 384, (3, 1))
        d = conv(f"{name}.branch_pool", pooled, 192)
        return jnp.concatenate([a, b1, b2, c1, c2, d], -1)

    x = conv("Conv2d_1a_3x3", x, 32, 3, 2, valid=True)
    x = conv("Conv2d_2a_3x3", x, 32, 3, valid=True)
    x = conv("Conv2d_2b_3x3", x, 64, 3)
    x = _maximum(x, 2)
    x = conv("Conv2d_3b_1x1", x, 80)
    x = conv("Conv2d_4a_3x3", x, 192, 3, valid=True)
    x = _maximum(x, 2)
    x = block_35("Mixed_5b", x, 32)
    x = block_35("Mixed_5c", x, 64)
    x = block_35("Mixed_5d", x, 64)

    a = conv("Mixed_6a.branch3x3", x, 384, 3, 2, valid=True)
    b = conv("Mixed_6a.branch3x3dbl_1", x, 64)
    b = conv("Mixed_6a.branch3x3dbl_2", b, 96, 3)
    b = conv("Mixed_6a.branch3x3dbl_3", b, 96, 3, 2, valid=True)
    x = jnp.concatenate([a, b, _maximum(x, 2)], -1)

    for name, c7 in (("Mixed_6b", 128), ("Mixed_6c", 160), ("Mixed_6d", 160), ("Mixed_6e", 192)):
        x = block_17(name, x, c7)

    a = conv("Mixed_7a.branch3x3_1", x, 192)
    a = conv("Mixed_7a.branch3x3_2", a, 320, 3, 2, valid=True)
    b = conv("Mixed_7a.branch7x7x3_1", x, 192)
    b = conv("Mixed_7a.branch7x7x3_2", b, 192, (1, 7))
    b = conv("Mixed_7a.branch7x7x3_3", b, 192, (7, 1))
    b = conv("Mixed_7a.branch7x7x3_4", b, 192, 3, 2, valid=True)
    x = jnp.concatenate([a, b, _maximum(x, 2)], -1)

    x = block_8("Mixed_7b", x, _average(x))
    x = block_8("Mixed_7c", x, _maximum(x, 1))
    pooled = jnp.mean(x, (1, 2))
    return pooled, layers.dense("fc", pooled, CLASSES)


def _maximum(x: jax.Array, stride: int) -> jax.Array:
    """Of 3 x 3; padded to keep the size if the stride is 1."""
    pad = (1, 1) if stride == 1 else (0, 0)
    window, strides = (1, 3, 3, 1), (1, stride, stride, 1)
    return jax.lax.reduce_window(
        x, -jnp.inf, jax.lax.max, window, strides, ((0, 0), pad, pad, (0, 0))
    )


def _average(x: jax.Array) -> jax.Array:
    """Of the pixels of 3 x 3 that lie inside."""

    def along(values: np.ndarray | jax.Array, axis: int) -> jax.Array:
        # One axis after the other: two passes of three in place of nine.
        pads = [(0, 0)] * values.ndim
        pads[axis] = (1, 1)
        padded = jnp.pad(values, pads)
        size = values.shape[axis]
        return sum(jax.lax.slice_in_dim(padded, i, i + size, axis=axis) for i in range(3))  # type: ignore[return-value]

    height, width = x.shape[1:3]
    rows, columns = (np.convolve(np.ones(n), np.ones(3), "same") for n in (height, width))
    return along(along(x, 1), 2) / (rows[:, None, None] * columns[:, None]).astype(np.float32)


def preprocess(x: jax.Array, kind: str) -> jax.Array:
    """Images 0 ... 255 as the protocols scale them; 255 is 1 only in pytorch-fid (half-pixel)."""
    return x / 127.5 - 1 if kind == "half-pixel" else (x - 128) / 128
