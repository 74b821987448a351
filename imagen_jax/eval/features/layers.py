"""Layers of frozen convolutional networks, whose weights come from state_dicts of torch.

A network is a function of a `Layers`, which it asks for convolutions by name. `shapes` runs it
without weights to learn which tensors it needs; `fold` makes its parameters of a state_dict.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from imagen_jax.errors import UserError

PRECISE = jax.lax.Precision.HIGHEST
"""Full float32 products: a distance must not depend on the accelerator's fast default."""

Params = Mapping[str, tuple[Any, Any]]
"""Name of a layer -> (kernel [h, w, in, out] or [in, out], bias [out])."""


class ConvNames(NamedTuple):
    """Place of a convolution in a state_dict: prefixes of its weight and its normalisation."""

    weight: str
    norm: str


class Layers:
    """Applies layers by name, each convolution with the batch normalisation folded into it."""

    def __init__(self, params: Params):
        self._params = params

    def weights(self, names: ConvNames, shape: tuple[int, ...]) -> tuple[Any, Any]:
        """(kernel, bias) of a layer."""
        del shape
        return self._params[names.weight]

    def conv(
        self,
        names: ConvNames,
        x: jax.Array,
        channels: int,
        kernel: tuple[int, int] = (1, 1),
        stride: int = 1,
        padding: tuple[int, int] = (0, 0),
    ) -> jax.Array:
        """Convolution and bias of [b, h, w, c]."""
        weight, bias = self.weights(names, (*kernel, x.shape[-1], channels))
        if kernel == (1, 1) and stride == 1:
            # A product of matrices, which XLA does faster on a CPU than the same convolution.
            return jnp.einsum("bhwc,cd->bhwd", x, weight[0, 0], precision=PRECISE) + bias
        pads = [(p, p) for p in padding]
        y = jax.lax.conv_general_dilated(
            x, weight, (stride, stride), pads, dimension_numbers=("NHWC", "HWIO", "NHWC"),
            precision=PRECISE,
        )  # fmt: skip
        return y + bias

    def depthwise(self, names: ConvNames, x: jax.Array, stride: int = 1) -> jax.Array:
        """3 x 3 convolution of each channel alone, padded by 1.

        As nine shifted products, which a compiler fuses into one pass; XLA's own grouped
        convolution crawls on a CPU.
        """
        _, height, width, channels = x.shape
        weight, bias = self.weights(names, (3, 3, 1, channels))
        padded = jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
        y = bias
        for i in range(3):
            for j in range(3):
                rows = slice(i, i + height, stride)
                columns = slice(j, j + width, stride)
                y = y + padded[:, rows, columns] * weight[i, j, 0]
        return y

    def dense(self, name: str, x: jax.Array, outputs: int) -> jax.Array:
        """Product and bias of [b, c]."""
        weight, bias = self.weights(ConvNames(name, ""), (x.shape[-1], outputs))
        return jnp.matmul(x, weight, precision=PRECISE) + bias


class _Recorder(Layers):
    """Remembers what a network asks for."""

    def __init__(self) -> None:
        super().__init__({})
        self.found: dict[ConvNames, tuple[int, ...]] = {}

    def weights(self, names: ConvNames, shape: tuple[int, ...]) -> tuple[Any, Any]:
        self.found[names] = shape
        return jnp.zeros(shape, "float32"), jnp.zeros(shape[-1], "float32")


Network = Callable[[Layers, jax.Array], Any]
"""(layers, images [b, s, s, 3]) -> outputs."""


def shapes(network: Network, size: int) -> dict[ConvNames, tuple[int, ...]]:
    """The layers of a network with the shapes of their kernels, in the order of use."""
    recorder = _Recorder()
    jax.eval_shape(
        lambda x: network(recorder, x), jax.ShapeDtypeStruct((1, size, size, 3), "float32")
    )
    return recorder.found


def fold(
    network: Network, size: int, tensors: Mapping[str, np.ndarray], eps: float, path: Any
) -> Params:
    """Parameters of a network from a state_dict, normalisation folded into the convolutions.

    With w' = w gamma / sqrt(var + eps) and b' = beta - mean gamma / sqrt(var + eps), in float64.

    Args:
      network, size: the network and its input's side.
      tensors: the state_dict.
      eps: epsilon of batch normalisation.
      path: file of the tensors, for messages.

    Raises:
      UserError: a tensor is missing or has another shape, or a weight is not finite.
    """

    def read(name: str, shape: tuple[int, ...]) -> np.ndarray:
        if name not in tensors:
            raise UserError(f"{path} has no tensor {name!r}: it is of another network or layout")
        if tensors[name].shape != shape:
            raise UserError(
                f"{path}: {name!r} has shape {list(tensors[name].shape)}, expected {list(shape)}"
            )
        value = tensors[name].astype(np.float64)
        if not np.isfinite(value).all():
            raise UserError(f"{path}: {name!r} has values that are not finite")
        return value

    params = {}
    for names, shape in shapes(network, size).items():
        bias_shape = (shape[-1],)
        if len(shape) == 2:
            kernel = read(f"{names.weight}.weight", shape[::-1]).T
            bias = read(f"{names.weight}.bias", bias_shape)
        else:
            *window, inputs, outputs = shape
            kernel = read(f"{names.weight}.weight", (outputs, inputs, *window)).transpose(
                2, 3, 1, 0
            )
            gamma, beta, mean, variance = (
                read(f"{names.norm}.{part}", bias_shape)
                for part in ("weight", "bias", "running_mean", "running_var")
            )
            scale = gamma / np.sqrt(variance + eps)
            kernel, bias = kernel * scale, beta - mean * scale
        params[names.weight] = (kernel.astype(np.float32), bias.astype(np.float32))
    return params
