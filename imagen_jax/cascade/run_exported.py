"""Runs a stage that `imagen export --format compiled` wrote, by jax, numpy and safetensors alone.

    python run_exported.py DIRECTORY STAGE INPUTS.npz IMAGES.npy

INPUTS.npz has an array for each argument that STAGE.json lists, with any batch size b; IMAGES.npy
gets the images, float32 [b, h, w, 3] in [-1, 1].

A program is compiled to machine code and run: run only those of people whose programs you would
run. Calls of code that lies elsewhere, which no exported stage makes, are refused.
"""

import json
import re
import sys
from pathlib import Path

import jax
import jax.export
import numpy as np
from safetensors.numpy import load_file

CALL = re.compile(r"custom_call(?!\w)(?! @shape_assertion\()[^\n(]{0,80}")
"""In a program's text, a call of other code than the check of a shape."""


def check_calls(program: jax.export.Exported, name: str) -> None:
    """Raises ValueError if a program calls code that lies outside of it."""
    if found := CALL.search(program.mlir_module()):
        raise ValueError(f"{name} calls code outside of it ({found[0]!r}), which is not run")


def load(directory: str, stage: str) -> tuple:
    """(metadata, function from a dict of arrays to images) of an exported stage."""
    metadata = json.loads(Path(directory, f"{stage}.json").read_bytes())
    # Beside the metadata, wherever that says they are.
    path, weights = (Path(directory, Path(metadata[of]).name) for of in ("program", "weights"))
    program = jax.export.deserialize(bytearray(path.read_bytes()))
    check_calls(program, path.name)
    placed = jax.device_put(load_file(weights))
    call = jax.jit(program.call)
    return metadata, lambda inputs: call(placed, dict(inputs))


if __name__ == "__main__":
    _, sample = load(*sys.argv[1:3])
    np.save(sys.argv[4], sample(np.load(sys.argv[3])))
