"""Chips: their published rates, which of them a program is compiled for, and where it is kept."""

from __future__ import annotations

import dataclasses

import jax
from jax.experimental.compilation_cache import compilation_cache

from imagen_jax.caches import cache_directory
from imagen_jax.extras import libtpu_without_tpu
from imagen_jax.sharding import MESH_AXES

GIB = 2**30


@dataclasses.dataclass(frozen=True)
class Chip:
    """One accelerator chip, as its maker publishes it; rates of one device that programs see of it.

    Attributes:
      flops: peak of bfloat16 products, FLOP/s.
      hbm_bytes: main memory, bytes.
      hbm_rate: bandwidth of the main memory, bytes/s.
      link_rate: bandwidth to the other chips, all links in one direction, bytes/s.
      network_rate: bandwidth of the data-centre network between slices, bytes/s for one chip: what
        its host has, divided by the host's chips.
      source: publication of the rates.
      multipliers: units that multiply and add two bfloat16 numbers in a cycle, of all cores; None
        where a program's cycles are not estimated.
      devices: devices that programs see of one chip.
    """

    flops: float
    hbm_bytes: float
    hbm_rate: float
    link_rate: float
    network_rate: float
    source: str
    multipliers: int | None = None
    devices: int = 1

    @property
    def clock(self) -> float | None:
        """Cycles of the matrix units a second: their peak, at two operations a cycle each."""
        return None if self.multipliers is None else self.flops / (2 * self.multipliers)


_DOCS = "https://docs.cloud.google.com/tpu/docs"
_NVIDIA = "https://www.nvidia.com/en-us/data-center"

CHIPS: dict[str, Chip] = {
    # Matrix units are 128 x 128 up to v5p, four a core: two cores in v4 and v5p, one in v5e.
    # 6 links of 50 GB/s in each direction; 100 Gbit/s and 4 chips a host.
    "v4": Chip(275e12, 32 * GIB, 1200e9, 300e9, 3.1e9, f"{_DOCS}/v4", 8 * 128**2),
    # 400 GB/s in both directions together; 2 x 100 Gbit/s and 8 chips a host.
    "v5e": Chip(197e12, 16e9, 819e9, 200e9, 3.1e9, f"{_DOCS}/v5e", 4 * 128**2),
    # 1200 GB/s in both directions together; 200 Gbit/s and 4 chips a host.
    "v5p": Chip(459e12, 95e9, 2765e9, 600e9, 6.2e9, f"{_DOCS}/v5p", 8 * 128**2),
    # 800 GB/s in both directions together; 4 x 200 Gbit/s and 8 chips a host. Of matrix units the
    # source names two, or four in other versions, and no size; four of 256 x 256 are the fewest
    # that do what the compiler counts on, 369,231 operations a cycle in a product of 8,192 rows,
    # columns and terms.
    "v6e": Chip(918e12, 32e9, 1638e9, 400e9, 12.5e9, f"{_DOCS}/v6e", 4 * 256**2),
    # Of a chip, which is two devices: 1200 GB/s in both directions together, 100 Gbit/s. Matrix
    # units as of v6e, by 422,142 operations a cycle of a device.
    "tpu7x": Chip(
        2307e12 / 2, 96 * GIB, 7380e9 / 2, 300e9, 6.2e9, f"{_DOCS}/tpu7x", 4 * 256**2, devices=2
    ),
    # NVLink's 600 GB/s are of both directions together; 8 x 200 Gbit/s and 8 cards a host (DGX).
    "a100": Chip(312e12, 80e9, 2039e9, 300e9, 25e9, f"{_NVIDIA}/a100, 80 GB SXM, without sparsity"),
    # NVLink's 900 GB/s likewise; 8 x 400 Gbit/s and 8 cards a host (DGX).
    "h100": Chip(989e12, 80e9, 3350e9, 450e9, 50e9, f"{_NVIDIA}/h100, SXM, without sparsity"),
}
"""Chips that programs can be compiled for without having one."""

KINDS = {
    "TPU v4": CHIPS["v4"],
    "TPU v5 lite": CHIPS["v5e"],
    "TPU v5": CHIPS["v5p"],  # after its longer namesake
    "TPU v6 lite": CHIPS["v6e"],
    "TPU7x": CHIPS["tpu7x"],
    "NVIDIA H100 80GB HBM3": CHIPS["h100"],  # the SXM module; others have other rates
    "NVIDIA A100-SXM4-80GB": CHIPS["a100"],
}
"""Rates of local accelerators, by how JAX's name of their kind begins; the first that fits."""


def local_chip() -> Chip | None:
    """Rates of this machine's accelerator; None where they are not known, as of a CPU."""
    kind = jax.devices()[0].device_kind
    return next((chip for name, chip in KINDS.items() if kind.startswith(name)), None)


def platform() -> str:
    """Return what is compiled for: the platform of the mesh in `on_mesh`, else this machine's."""
    device = jax.sharding.get_abstract_mesh().abstract_device
    return jax.default_backend() if device is None else device.platform


def one_device() -> bool:
    """Return whether the mesh within `on_mesh` has no more than one device."""
    return jax.sharding.get_abstract_mesh().size <= 1  # 0 without a mesh


def no_platform() -> jax.sharding.AbstractMesh:
    """Return a mesh of one device of no kind.

    A function that is traced for it is what was written, without what is computed otherwise for the
    sake of a platform.
    """
    device = jax.sharding.AbstractDevice("none", None, "none")
    return jax.sharding.AbstractMesh((1,) * len(MESH_AXES), MESH_AXES, abstract_device=device)


def configure_jax() -> None:
    """Configure JAX for users of Python as the commands do, where the user said nothing.

    A program that was compiled once is read from the cache directory of this machine, and no TPU is
    looked for where there is none.
    """
    if jax.config.jax_platforms is None and libtpu_without_tpu():  # type: ignore[attr-defined]
        jax.config.update("jax_platforms", "cpu")
    if jax.config.jax_compilation_cache_dir is None:  # type: ignore[attr-defined]
        jax.config.update("jax_compilation_cache_dir", str(cache_directory("compiled")))
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
        compilation_cache.reset_cache()  # what was compiled before has found none
