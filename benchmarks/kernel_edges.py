"""Speed of the CPU kernels over XLA's own convolutions, at channels that fill no vector register.

    python -m benchmarks.kernel_edges
    python -m benchmarks.kernel_edges --devices 2

Prints for each number of channels how many times as fast a 3x3 convolution is with the kernels, its
value alone and with its gradients. The two take turns, and of each the fastest run counts, which
other jobs on the machine disturb least.
"""

from __future__ import annotations

import argparse
import functools
import os
import time
from collections.abc import Callable
from typing import Any

CHANNELS = (24, 40, 48, 72, 100)
BATCH, SIDE = 8, 32


def fastest(calls: dict[str, Callable[[], Any]], rounds: int) -> dict[str, float]:
    """Seconds of the fastest of `rounds` runs of each call, which take turns."""
    import jax

    best = dict.fromkeys(calls, float("inf"))
    for call in calls.values():
        jax.block_until_ready(call())
    for _ in range(rounds):
        for name, call in calls.items():
            started = time.perf_counter()
            jax.block_until_ready(call())
            best[name] = min(best[name], time.perf_counter() - started)
    return best


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--devices", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=30)
    args = parser.parse_args()
    os.environ |= {"JAX_PLATFORMS": "cpu", "JAX_NUM_CPU_DEVICES": str(args.devices)}
    import jax
    from jax.sharding import NamedSharding, PartitionSpec

    from imagen_jax import sharding
    from imagen_jax.native import winograd

    mesh = sharding.make_mesh({"data": args.devices})

    def direct(x: jax.Array, kernel: jax.Array) -> jax.Array:
        names = ("NHWC", "HWIO", "NHWC")
        return jax.lax.conv_general_dilated(x, kernel, (1, 1), "SAME", dimension_numbers=names)

    def with_gradients(convolve: Any) -> Any:
        def call(x: jax.Array, kernel: jax.Array) -> Any:
            value, back = jax.vjp(convolve, x, kernel)
            return value, back(value)

        return call

    print(f"{args.devices} device(s), batch {BATCH}, {SIDE} x {SIDE}")
    for channels in CHANNELS:
        rng = jax.random.key(channels)
        x = jax.device_put(
            jax.random.normal(rng, (BATCH, SIDE, SIDE, channels)),
            NamedSharding(mesh, sharding.BATCH_SPEC),
        )
        kernel = jax.device_put(
            jax.random.normal(rng, (3, 3, channels, channels)), NamedSharding(mesh, PartitionSpec())
        )
        assert winograd.applies(x, kernel)
        flops = 2 * 9 * BATCH * SIDE**2 * channels**2
        line = f"{channels:4} channels"
        for what, wrap, times in (("value", lambda f: f, 1), ("gradients", with_gradients, 3)):
            jitted = {name: jax.jit(sharding.on_mesh(wrap(f), mesh))
                      for name, f in (("kernel", winograd.convolve), ("XLA", direct))}  # fmt: skip
            calls = {name: functools.partial(f, x, kernel) for name, f in jitted.items()}
            found = fastest(calls, args.rounds)
            rate = times * flops / found["kernel"] / 1e9
            line += f"   {what} {found['XLA'] / found['kernel']:5.1f}x ({rate:.0f} GFLOP/s)"
        print(line, flush=True)


if __name__ == "__main__":
    main()
