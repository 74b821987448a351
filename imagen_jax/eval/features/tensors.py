"""Tensors of a file of weights, and the hash that names it."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np

from imagen_jax.eval.features.graph_file import read_graph_file
from imagen_jax.eval.features.torch_file import read_torch_file
from imagen_jax.files import given_file
from imagen_jax.tensor_files import read_safetensors


def read_tensors(path: str | Path) -> tuple[dict[str, np.ndarray], str]:
    """Tensors by name, and the SHA-256 of the file.

    Args:
      path: .safetensors, a state_dict of torch.save, or TensorFlow's graph of Inception (.pb).

    Raises:
      UserError: there is no such file, or it cannot be read.
    """
    with given_file(path, "file of weights") as local:
        with open(local, "rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        if local.suffix == ".pb":
            return read_graph_file(local), digest
        if local.suffix != ".safetensors":
            return read_torch_file(local), digest
        return read_safetensors(local), digest
