"""Published rates of the chips that a plan is made for, and the devices of a topology."""

from __future__ import annotations

import dataclasses
import importlib.util
import os
import re
from typing import Any

import jax

GIB = 2**30


@dataclasses.dataclass(frozen=True)
class Chip:
    """One accelerator chip, as its maker publishes it.

    Attributes:
      flops: peak of bfloat16 products, FLOP/s.
      hbm_bytes: main memory, bytes.
      hbm_rate: bandwidth of the main memory, bytes/s.
      link_rate: bandwidth to the other chips, all links in one direction, bytes/s.
      network_rate: bandwidth of the data-centre network between slices, bytes/s for one chip: what
        its host has, divided by the host's chips.
      source: where the rates are published.
    """

    flops: float
    hbm_bytes: float
    hbm_rate: float
    link_rate: float
    network_rate: float
    source: str


_DOCS = "https://docs.cloud.google.com/tpu/docs"

CHIPS: dict[str, Chip] = {
    # 6 links of 50 GB/s in each direction; 100 Gbit/s and 4 chips a host.
    "v4": Chip(275e12, 32 * GIB, 1200e9, 300e9, 3.1e9, f"{_DOCS}/v4"),
    # 400 GB/s in both directions together; 2 x 100 Gbit/s and 8 chips a host.
    "v5e": Chip(197e12, 16e9, 819e9, 200e9, 3.1e9, f"{_DOCS}/v5e"),
    # 1200 GB/s in both directions together; 200 Gbit/s and 4 chips a host.
    "v5p": Chip(459e12, 95e9, 2765e9, 600e9, 6.2e9, f"{_DOCS}/v5p"),
    # 800 GB/s in both directions together; 4 x 200 Gbit/s and 8 chips a host.
    "v6e": Chip(918e12, 32e9, 1638e9, 400e9, 12.5e9, f"{_DOCS}/v6e"),
}
"""Chips that programs can be compiled for without having one."""

KINDS = {"NVIDIA H100": Chip(989e12, 80e9, 3350e9, 450e9, 50e9, "NVIDIA H100 datasheet, SXM")}
"""Rates of local accelerators, by how JAX's name of their kind begins."""


_ALONE = {
    "TPU_SKIP_MDS_QUERY": "1",  # there is no metadata server to ask
    "TPU_ACCELERATOR_TYPE": "v4-8",  # nor this; what is compiled for is said elsewhere
    "TPU_WORKER_HOSTNAMES": "localhost",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",  # no TPU that two processes could fight for
}
"""What the TPU compiler would otherwise ask of a TPU machine, and complain about."""


def topology_devices(topology: str, slices: int = 1) -> list[Any]:
    """Devices of a TPU topology, to compile for; no TPU is needed, only its compiler (libtpu).

    Args:
      topology: generation and shape in chips, "v4:8x8x4" or "v5e:4x4".
      slices: how many of them, joined by the data-centre network.

    Raises:
      ValueError: an unknown generation, a shape that it does not come in, or no compiler.
    """
    generation, _, shape = topology.partition(":")
    if generation not in CHIPS or not re.fullmatch(r"\d+x\d+(x\d+)?", shape):
        raise ValueError(
            f"topology is {topology!r}; it must be a generation ({', '.join(CHIPS)}) and its shape "
            "in chips, such as v4:8x8x4 or v5e:4x4"
        )
    if importlib.util.find_spec("libtpu") is None:
        raise ValueError(
            "the TPU compiler is missing; install it with: pip install libtpu (its version is in "
            "launch/pins-tpu.txt)"
        )
    for name, value in _ALONE.items():
        os.environ.setdefault(name, value)
    from jax.experimental import topologies

    # A v4 or v5p chip has two cores that programs see as one device.
    options: dict[str, Any] = (
        {"chip_config_name": "megacore"} if generation in ("v4", "v5p") else {}
    )
    if slices > 1:
        options["num_slices"] = slices
    try:
        described = topologies.get_topology_desc(platform="tpu", topology_name=topology, **options)
    except Exception as error:
        raise ValueError(f"topology {topology!r} does not exist: {error}") from error
    return list(described.devices)


def local_chip() -> Chip | None:
    """Rates of this machine's accelerator; None where they are not known, as of a CPU."""
    kind = jax.devices()[0].device_kind
    return next((chip for name, chip in KINDS.items() if kind.startswith(name)), None)
