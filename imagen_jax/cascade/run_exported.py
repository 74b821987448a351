"""Runs a stage that `imagen export --format compiled` wrote, by jax, numpy and safetensors alone.

    python run_exported.py DIRECTORY STAGE INPUTS.npz IMAGES.npy

INPUTS.npz has an array for each argument that STAGE.json lists, with any batch size b; IMAGES.npy
gets the images, float32 [b, h, w, 3] in [-1, 1].
"""

import json
import sys
from pathlib import Path

import jax
import jax.export
import numpy as np
from safetensors.numpy import load_file


def load(directory: str, stage: str) -> tuple:
    """(metadata, function from a dict of arrays to images) of an exported stage."""
    metadata = json.loads(Path(directory, f"{stage}.json").read_text())
    program = jax.export.deserialize(bytearray(Path(directory, metadata["program"]).read_bytes()))
    weights = jax.device_put(load_file(Path(directory, metadata["weights"])))
    call = jax.jit(program.call)
    return metadata, lambda inputs: call(weights, dict(inputs))


if __name__ == "__main__":
    _, sample = load(*sys.argv[1:3])
    np.save(sys.argv[4], sample(np.load(sys.argv[3])))
