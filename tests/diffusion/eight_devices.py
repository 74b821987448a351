"""Run as a program with eight devices: sharded results equal those of one device.

test_diffusion_sharding.py starts it, because the number of devices of a process is fixed when jax
starts.
"""

import itertools

import jax
import numpy as np
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from imagen_jax.diffusion import (
    SAMPLERS,
    DPMpp2M,
    GaussianMixture,
    dynamic_threshold,
    initial_noise,
    make_schedule,
    sample,
    time_grid,
)
from imagen_jax.diffusion.guidance import absolute_percentile
from imagen_jax.diffusion.transitions import Sampler

AXES = ("batch", "space")
# Shardings that the compiler chooses, and shardings that are part of an array's type.
MESHES = [
    jax.make_mesh((4, 2), AXES, axis_types=(kind,) * 2)
    for kind in (AxisType.Auto, AxisType.Explicit)
]
LAYOUTS = {
    "batch": PartitionSpec(("batch", "space")),
    "rows": PartitionSpec(None, ("batch", "space")),
    "batch and rows": PartitionSpec("batch", "space"),
    "rows and columns": PartitionSpec(None, "batch", "space"),
}


def check_thresholding() -> None:
    """Percentile and thresholded image, in every layout, against one device and float64 NumPy."""
    rng = np.random.default_rng(0)
    images = (
        rng.normal(size=(8, 16, 16, 3)) * np.geomspace(0.2, 20, 8)[:, None, None, None]
    ).astype(np.float32)
    percentile = 99.5
    exact = np.percentile(np.abs(images).reshape(8, -1).astype(np.float64), percentile, axis=1)
    limit = np.maximum(exact, 1.0)[:, None, None, None]
    reference = np.clip(images, -limit, limit) / limit

    @jax.jit
    def threshold(x0: jax.Array) -> tuple[jax.Array, jax.Array]:
        return absolute_percentile(x0, percentile), dynamic_threshold(x0, percentile)

    scale_alone, alone = threshold(images)
    for mesh, (name, spec) in itertools.product(MESHES, LAYOUTS.items()):
        sharded = jax.device_put(images, NamedSharding(mesh, spec))
        assert len(sharded.sharding.device_set) == 8
        scale, result = threshold(sharded)
        np.testing.assert_allclose(scale, exact, rtol=2e-7, err_msg=name)
        np.testing.assert_allclose(result, reference, rtol=5e-7, atol=1e-7, err_msg=name)
        np.testing.assert_array_equal(scale, scale_alone, err_msg=name)
        np.testing.assert_array_equal(result, alone, err_msg=name)
    print("thresholding: ok")


def check_samplers() -> None:
    """Every sampler, batch spread over eight devices, from the same keys per example."""
    mixture = GaussianMixture(
        np.array([0.4, 0.6]), np.array([[-0.5] * 12, [0.4] * 12]), np.stack([np.eye(12) * 0.01] * 2)
    )
    grid = time_grid(make_schedule("cosine"), 6, "karras")
    keys = jax.random.split(jax.random.key(3), 8)
    spread = NamedSharding(MESHES[0], LAYOUTS["batch"])
    for sampler in (*(kind() for kind in SAMPLERS.values()), DPMpp2M(sde=True)):
        name = str(sampler)

        def run(keys: jax.Array, sampler: Sampler = sampler) -> tuple[jax.Array, jax.Array]:
            noise = initial_noise(keys, 8, (2, 2, 3))
            return noise, sample(sampler, mixture.denoise, noise, grid, keys)

        noise_alone, alone = jax.jit(run)(keys)
        noise, result = jax.jit(run, out_shardings=spread)(jax.device_put(keys, spread))
        assert len(result.sharding.device_set) == 8
        np.testing.assert_array_equal(noise, noise_alone, err_msg=name)
        np.testing.assert_allclose(result, alone, atol=2e-6, err_msg=name)
    print("samplers: ok")


if __name__ == "__main__":
    assert jax.device_count() == 8, jax.devices()
    check_thresholding()
    check_samplers()
