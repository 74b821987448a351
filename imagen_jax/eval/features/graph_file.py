"""Reads Inception-v3 from TensorFlow's frozen graph of 2015-12-05, classify_image_graph_def.pb.

Its constants get the names that pytorch-fid and torch-fidelity have for them.
"""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np

from imagen_jax.errors import UserError
from imagen_jax.extras import require
from imagen_jax.files import given_file

STEM = ("Conv2d_1a_3x3", "Conv2d_2a_3x3", "Conv2d_2b_3x3", "Conv2d_3b_1x1", "Conv2d_4a_3x3")
BLOCKS = ("5b", "5c", "5d", "6a", "6b", "6c", "6d", "6e", "7a", "7b", "7c")
_KINDS: dict[str, dict[str, str]] = {
    "5": {
        "branch1x1": "conv",
        "branch5x5_1": "tower/conv",
        "branch5x5_2": "tower/conv_1",
        "branch3x3dbl_1": "tower_1/conv",
        "branch3x3dbl_2": "tower_1/conv_1",
        "branch3x3dbl_3": "tower_1/conv_2",
        "branch_pool": "tower_2/conv",
    },
    "6a": {
        "branch3x3": "conv",
        "branch3x3dbl_1": "tower/conv",
        "branch3x3dbl_2": "tower/conv_1",
        "branch3x3dbl_3": "tower/conv_2",
    },
    "6": {
        "branch1x1": "conv",
        "branch7x7_1": "tower/conv",
        "branch7x7_2": "tower/conv_1",
        "branch7x7_3": "tower/conv_2",
        "branch7x7dbl_1": "tower_1/conv",
        "branch7x7dbl_2": "tower_1/conv_1",
        "branch7x7dbl_3": "tower_1/conv_2",
        "branch7x7dbl_4": "tower_1/conv_3",
        "branch7x7dbl_5": "tower_1/conv_4",
        "branch_pool": "tower_2/conv",
    },
    "7a": {
        "branch3x3_1": "tower/conv",
        "branch3x3_2": "tower/conv_1",
        "branch7x7x3_1": "tower_1/conv",
        "branch7x7x3_2": "tower_1/conv_1",
        "branch7x7x3_3": "tower_1/conv_2",
        "branch7x7x3_4": "tower_1/conv_3",
    },
    "7": {
        "branch1x1": "conv",
        "branch3x3_1": "tower/conv",
        "branch3x3_2a": "tower/mixed/conv",
        "branch3x3_2b": "tower/mixed/conv_1",
        "branch3x3dbl_1": "tower_1/conv",
        "branch3x3dbl_2": "tower_1/conv_1",
        "branch3x3dbl_3a": "tower_1/mixed/conv",
        "branch3x3dbl_3b": "tower_1/mixed/conv_1",
        "branch_pool": "tower_2/conv",
    },
}
_NORM = {"weight": "gamma", "bias": "beta", "running_mean": "moving_mean",
         "running_var": "moving_variance"}  # fmt: skip


def layer_names() -> dict[str, str]:
    """Prefix of a layer in torch -> its prefix in the graph."""

    def numbered(name: str, index: int) -> str:
        return name if index == 0 else f"{name}_{index}"

    names = {torch: numbered("conv", i) for i, torch in enumerate(STEM)}
    for index, block in enumerate(BLOCKS):
        for torch, graph in _KINDS.get(block, _KINDS.get(block[0], {})).items():
            names[f"Mixed_{block}.{torch}"] = f"{numbered('mixed', index)}/{graph}"
    return names


def read_graph_file(path: str | Path) -> dict[str, np.ndarray]:
    """The weights of the graph by their names in torch, in torch's layouts.

    Raises:
      UserError: no frozen graph, or one that lacks a constant; names it.
    """
    # The definitions of the format alone, without TensorFlow.
    require("train", "reading a frozen graph of TensorFlow")
    from google.protobuf.message import DecodeError
    from tensorboard.compat.proto import graph_pb2, types_pb2

    graph = graph_pb2.GraphDef()
    try:
        with given_file(path, "frozen graph") as local:
            graph.ParseFromString(local.read_bytes())
    except DecodeError as error:
        raise UserError(f"{path} is no frozen graph of TensorFlow: {error}") from error
    constants = {node.name: node.attr["value"].tensor for node in graph.node if node.op == "Const"}

    def read(name: str, axes: int) -> np.ndarray:
        if name not in constants:
            raise UserError(f"{path} has no constant {name!r}: it is not Inception of 2015-12-05")
        tensor = constants[name]
        shape = [dim.size for dim in tensor.tensor_shape.dim]
        content = tensor.tensor_content
        whole = len(shape) == axes and min(shape) >= 0 and len(content) == 4 * math.prod(shape)
        if tensor.dtype != types_pb2.DT_FLOAT or not whole:
            raise UserError(
                f"{path}: constant {name!r} is of {len(content)} bytes and shape {shape}, not of "
                f"float32 with {axes} axes"
            )
        return np.frombuffer(content, "<f4").reshape(shape)

    found = {"fc.weight": read("softmax/weights", 2).T, "fc.bias": read("softmax/biases", 1)}
    for torch, there in layer_names().items():
        found[f"{torch}.conv.weight"] = read(f"{there}/conv2d_params", 4).transpose(3, 2, 0, 1)
        for part, of_graph in _NORM.items():
            found[f"{torch}.bn.{part}"] = read(f"{there}/batchnorm/{of_graph}", 1)
    return found
