"""Kernels on several devices and under JAX_ENABLE_X64."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys

import pytest

from imagen_jax.native import compiling

pytestmark = pytest.mark.skipif(
    not any(map(shutil.which, compiling.COMPILERS)), reason="needs a C++ compiler"
)

EIGHT_DEVICES = """
import jax, numpy as np, jax.numpy as jnp
from jax.sharding import NamedSharding, PartitionSpec
from imagen_jax import sharding
from imagen_jax.models.attention import attend
from imagen_jax.models.layers import Conv

assert len(jax.devices()) == 8
rng = np.random.default_rng(0)
draw = lambda *shape: rng.standard_normal(shape).astype(np.float32)
x, kernel, q, k = draw(8, 16, 12, 24), draw(3, 3, 24, 40), draw(8, 9, 2, 16), draw(8, 7, 2, 16)
seen = rng.random((8, 7)) < 0.7

def network(x, kernel, q, k):
    params = {"params": {"conv": {"kernel": kernel, "bias": jnp.zeros(40)}}}
    return Conv(40, jnp.float32).apply(params, x), attend(q, k, k, seen)

def value_and_gradients(*args):
    value, back = jax.vjp(network, *args)
    return value, back(value)

def run(axes, devices):
    mesh = sharding.make_mesh(axes, devices)
    by_example = NamedSharding(mesh, sharding.BATCH_SPEC)
    of_kernel = NamedSharding(mesh, PartitionSpec(None, None, "fsdp"))
    step = jax.jit(sharding.on_mesh(value_and_gradients, mesh),
                   in_shardings=(by_example, of_kernel, by_example, by_example))
    program = step.lower(x, kernel, q, k).as_text()
    return step(x, kernel, q, k), program

alone, _ = run({"data": 1}, jax.devices()[:1])
for axes in ({"data": 8}, {"data": 2, "fsdp": 4}):
    found, program = run(axes, jax.devices())
    assert "winograd_convolve" in program and "attention_forward" in program
    for ours, expected in zip(jax.tree.leaves(found), jax.tree.leaves(alone), strict=True):
        np.testing.assert_allclose(ours, expected, atol=1e-5 * np.abs(expected).max())
for axes in ({"data": 4, "tensor": 2}, {"data": 4, "spatial": 2}):
    assert "winograd_convolve" not in run(axes, jax.devices())[1]
"""

X64 = """
import jax, numpy as np
from imagen_jax.models.attention import attend
from imagen_jax.native import winograd

assert jax.config.jax_enable_x64
rng = np.random.default_rng(0)
q, x, kernel = (rng.standard_normal(shape).astype(np.float32)
                for shape in ((2, 9, 2, 16), (1, 8, 8, 24), (3, 3, 24, 16)))
seen = np.arange(9) < np.array([[4], [9]])
for function, args in ((lambda q: attend(q, q, q, seen), (q,)), (winograd.convolve, (x, kernel))):
    value, back = jax.vjp(function, *args)
    gradients = back(value)
    assert {leaf.dtype for leaf in (value, *gradients)} == {np.dtype(np.float32)}
    assert all(np.isfinite(leaf).all() for leaf in (value, *gradients))
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("code", "changes"),
    [(EIGHT_DEVICES, {"JAX_NUM_CPU_DEVICES": "8"}), (X64, {"JAX_ENABLE_X64": "1"})],
    ids=["eight devices", "x64"],
)
def test_kernels_compute_the_same_on_eight_devices_and_with_x64(
    code: str, changes: dict[str, str]
) -> None:
    done = subprocess.run(
        [sys.executable, "-c", code], env=os.environ | changes, capture_output=True, text=True,
        check=False, timeout=600,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
