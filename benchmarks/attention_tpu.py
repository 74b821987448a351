"""Attention layers compiled for TPU v4: plain attention against the kernel of models/tpu_attention.

Needs no TPU, only its compiler (pip install '.[plan]'):

    python -m benchmarks.attention_tpu

Each row is one layer of attention to the image and to 128 tokens of text, norm and projections with
it, forward and backward under the rematerialisation policy of the shipped configs. Nothing is run;
the numbers are the compiler's, of one chip:

* XLA's kernels: the cycles that the compiler expects, over the clock.
* Pallas kernels: of them it says nothing, but writes their code down. Each step of the grid is
  taken to run all of it once, one bundle of instructions a cycle, without waiting for memory.
"""

from __future__ import annotations

import multiprocessing
import os
import re
import tempfile
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any
from unittest import mock

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding

from imagen_jax import sharding
from imagen_jax.models import tpu_attention
from imagen_jax.models.attention import ImageAttention
from imagen_jax.models.stack import rematerialised
from imagen_jax.plan.topology import topology_devices

TOPOLOGY = "v4:2x2x1"
CLOCK = 1.05e9
"""Cycles a second of TPU v4."""

LAYERS = {
    # images of a chip, pixels a side, channels, channels of a head and of a text token, to_image
    "heads of 128, 32 x 32, text alone": (16, 32, 1024, 128, 1024, False),
    "base64, 32 x 32": (8, 32, 1024, 64, 512, True),
    "base64, 16 x 16": (8, 16, 1536, 64, 512, True),
    "base64, 8 x 8": (8, 8, 2048, 64, 512, True),
    "heads of 128, 32 x 32": (16, 32, 1024, 128, 1024, True),
    "heads of 64, 24 x 24": (8, 24, 1024, 64, 512, True),
    "heads of 128, 24 x 24": (16, 24, 1024, 128, 1024, True),
    "sr256, 16 x 16": (16, 16, 1024, 128, 1024, True),
}


def compile_layer(mesh: Mesh, layer: str, kernel: bool) -> Any:
    """Compile the two passes of a layer of LAYERS, with the kernel or with plain attention."""
    images, side, channels, head_channels, text_channels, to_image = LAYERS[layer]
    images *= mesh.size
    block = rematerialised(ImageAttention, "products")(
        head_channels, to_image=to_image, to_text=True, dtype=jnp.dtype("bfloat16")
    )

    def shape(dims: tuple[int, ...], dtype: Any, spec: Any = sharding.BATCH_SPEC) -> Any:
        return jax.ShapeDtypeStruct(dims, dtype, sharding=NamedSharding(mesh, spec))

    x = shape((images, side, side, channels), jnp.bfloat16)
    text = shape((images, 128, text_channels), jnp.bfloat16)
    mask = shape((images, 128), jnp.bool_)
    params = jax.tree.map(
        lambda leaf: shape(leaf.shape, leaf.dtype, jax.sharding.PartitionSpec()),
        nn.unbox(jax.eval_shape(block.init, jax.random.key(0), x, text, mask)),
    )

    def step(params: Any, x: Any, text: Any, mask: Any, grad: Any) -> Any:
        out, back = jax.vjp(lambda *args: block.apply(*args, mask), params, x, text)
        return out, back(grad)

    with mock.patch.object(tpu_attention, "applies", return_value=kernel):
        return jax.jit(sharding.on_mesh(step, mesh)).lower(params, x, text, mask, x).compile()


def kernel_cycles(layer: str) -> int:
    """Cycles of the Pallas kernels of a layer of LAYERS on one core: the bundles of their code
    times the steps of their grid. For a process of its own, which has loaded no TPU compiler yet.
    """
    with tempfile.TemporaryDirectory() as dump:
        os.environ["LIBTPU_INIT_ARGS"] = f"--xla_jf_dump_to={dump} --xla_jf_dump_llo_text=true"
        mesh = sharding.make_mesh({"data": -1}, topology_devices(TOPOLOGY))
        images, side, channels, head_channels, _, to_image = LAYERS[layer]
        heads = (channels // head_channels, head_channels)
        keys = side**2 * to_image + 129
        divided = NamedSharding(mesh, sharding.BATCH_SPEC)
        q, k, v = (
            jax.ShapeDtypeStruct((images * mesh.size, of, *heads), "bfloat16", sharding=divided)
            for of in (side**2, keys, keys)
        )

        def step(q: Any, k: Any, v: Any) -> Any:
            out, back = jax.vjp(tpu_attention.attend, q, k, v)
            return out, back(out)

        jax.jit(sharding.on_mesh(step, mesh)).lower(q, k, v).compile()
        cycles = 0
        for path in Path(dump).glob("*splash*[0-9]-final_bundles.txt"):
            code = path.read_text()
            bundles = int(re.findall(r"^ *0x([0-9a-f]+)", code, re.MULTILINE)[-1], 16)
            cycles += bundles * max(map(int, re.findall(r", (\d+) /\* loop exit test \*/", code)))
        return cycles


def main() -> None:
    """Prints the table."""
    mesh = sharding.make_mesh({"data": -1}, topology_devices(TOPOLOGY))
    print("| layer | attention | scratch | traffic | XLA's kernels | Pallas kernels | together |")
    print("|---|---|--:|--:|--:|--:|--:|")
    for layer in LAYERS:
        for name in ("plain", "kernel"):
            compiled = compile_layer(mesh, layer, name == "kernel")
            cycles = map(int, re.findall(r'"estimated_cycles":"(\d+)"', compiled.as_text()))
            xla = sum(c for c in cycles if c < 2**60) / CLOCK * 1e3
            pallas = 0.0
            if name == "kernel":
                fresh = multiprocessing.get_context("spawn")
                with ProcessPoolExecutor(1, fresh) as pool:
                    pallas = pool.submit(kernel_cycles, layer).result() / CLOCK * 1e3
            print(
                f"| {layer} | {name} "
                f"| {compiled.memory_analysis().temp_size_in_bytes / 2**20:.0f} MiB "
                f"| {compiled.cost_analysis()['bytes accessed'] / 1e9:.2f} GB "
                f"| {xla:.2f} ms | {pallas:.2f} ms | {xla + pallas:.2f} ms |",
                flush=True,
            )


if __name__ == "__main__":
    main()
