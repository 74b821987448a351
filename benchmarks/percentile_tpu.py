"""The percentile of dynamic thresholding, compiled for a TPU: counting bits against sorting.

Needs no TPU, only its compiler (pip install libtpu==0.0.52):

    TPU_SKIP_MDS_QUERY=1 python -m benchmarks.percentile_tpu --topology v5e:2x2

Nothing is run: the numbers are the compiler's. "HBM MB" is what the program moves to and from the
main memory of one device; a loop over data that the compiler keeps in fast on-chip memory (memory
space 1 in the compiled program) moves it once, otherwise once per iteration. A sort is charged as
the compiler charges it, which leaves out most of its work.
"""

from __future__ import annotations

import argparse
import functools
import re
import time
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import topologies
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from imagen_jax.diffusion.guidance import absolute_percentile

PERCENTILE = 99.5


def _ranks(size: int) -> tuple[int, float]:
    position = (size - 1) * PERCENTILE / 100
    return int(position), position - int(position)


def by_sort(x0: jax.Array) -> jax.Array:
    """Sorts all of |x0|."""
    ordered = jnp.sort(jnp.abs(x0).reshape(x0.shape[0], -1), axis=1)
    rank, fraction = _ranks(ordered.shape[1])
    return ordered[:, rank] + fraction * (ordered[:, rank + 1] - ordered[:, rank])


def by_top_k(x0: jax.Array) -> jax.Array:
    """Sorts out the largest half percent of |x0|."""
    flat = jnp.abs(x0).reshape(x0.shape[0], -1)
    rank, fraction = _ranks(flat.shape[1])
    largest, _ = jax.lax.top_k(flat, flat.shape[1] - rank)
    return largest[:, -1] + fraction * (largest[:, -2] - largest[:, -1])


def by_approx_max_k(x0: jax.Array) -> jax.Array:
    """The TPU's approximate largest half percent (recall 0.95): not exact."""
    flat = jnp.abs(x0).reshape(x0.shape[0], -1)
    rank, _ = _ranks(flat.shape[1])
    return jax.lax.approx_max_k(flat, flat.shape[1] - rank)[0][:, -1]


by_counting = functools.partial(absolute_percentile, percentile=PERCENTILE)

METHODS: dict[str, Callable[[jax.Array], jax.Array]] = {
    "sort": by_sort,
    "top_k": by_top_k,
    "approx_max_k": by_approx_max_k,
    "counting (ours)": by_counting,
}


def describe(method: Callable[[jax.Array], jax.Array], x0: jax.ShapeDtypeStruct, local: int) -> str:
    """Compiles and formats one row; local is the number of bytes of x0 on one device."""
    start = time.perf_counter()
    compiled = jax.jit(method).lower(x0).compile()
    seconds = time.perf_counter() - start
    text = compiled.as_text()
    moved = compiled.cost_analysis()["bytes accessed"]
    loops = re.findall(r"= \((.*)\) while\(", text)
    on_chip = all("S(1)" in carried for carried in loops)
    if loops and not on_chip:
        moved += 30 * local  # the compiler charges one iteration of 31
    collectives = len(re.findall(r" (?:all-gather|all-reduce|all-to-all)(?:-start)?\(", text))
    temporary = compiled.memory_analysis().temp_size_in_bytes
    where = ("on chip" if on_chip else "from HBM") if loops else "-"
    return (
        f"{moved / 2**20:9.1f} | {temporary / 2**20:8.1f} | {where:8} | {collectives:8} | "
        f"{seconds:9.1f}"
    )


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--topology", default="v5e:2x2", help="name of a TPU topology")
    parser.add_argument("--sizes", type=int, nargs="+", default=[64, 256, 1024])
    arguments = parser.parse_args()
    topology = topologies.get_topology_desc(platform="tpu", topology_name=arguments.topology)
    devices = np.array(topology.devices)
    mesh = Mesh(devices, ("devices",))
    print(f"{arguments.topology}, one example per device\n")
    print(
        "size | split by | method          |    HBM MB |  temp MB | loop     | collect. | compile s"
    )
    print(
        "---: | :------- | :-------------- | --------: | -------: | :------- | -------: | --------:"
    )
    for size in arguments.sizes:
        shape = (len(devices), size, size, 3)
        for split, spec in (
            ("batch", PartitionSpec("devices")),
            ("rows", PartitionSpec(None, "devices")),
        ):
            x0 = jax.ShapeDtypeStruct(shape, jnp.float32, sharding=NamedSharding(mesh, spec))
            for name, method in METHODS.items():
                row = describe(method, x0, local=4 * size * size * 3)
                print(f"{size:4} | {split:8} | {name:15} | {row}", flush=True)


if __name__ == "__main__":
    main()
