"""Sums over the positions of an image, the gradient of a bias, by a TPU's vector and matrix units.

    python -m benchmarks.bias_gradient_tpu

Needs no TPU, only its compiler: nothing is run, and the times are what it expects
(docs/paper-scale.md).
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax.sharding import SingleDeviceSharding

from imagen_jax.chips import CHIPS
from imagen_jax.models.layers import channel_sums
from imagen_jax.plan import hlo
from imagen_jax.plan.estimate import estimate
from imagen_jax.plan.topology import topology_devices

SHAPES = ((16, 128, 128, 128), (16, 32, 32, 512), (16, 16, 16, 1024))


def plain(x: jax.Array) -> jax.Array:
    """The sum as it is differentiated without ours."""
    return x.sum((0, 1, 2))


def main() -> None:
    """Prints the table."""
    on_chip = SingleDeviceSharding(topology_devices("v4:1x1x1")[0])
    print(f"{'image':24}{'sum':>10}{'product':>10}")
    for shape in SHAPES:
        x = jax.ShapeDtypeStruct(shape, jnp.bfloat16, sharding=on_chip)
        times = []
        for function in (plain, channel_sums):
            module = hlo.parse(jax.jit(function).lower(x).compile().as_text())
            found = estimate(module, CHIPS["v4"])
            times.append("-" if found is None else f"{1e3 * found.seconds:.3f} ms")
        print(f"{shape!s:24}{times[0]:>10}{times[1]:>10}", flush=True)


if __name__ == "__main__":
    main()
