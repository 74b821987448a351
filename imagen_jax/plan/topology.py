"""The devices of a machine that one does not have: a TPU topology, or a host of GPUs."""

from __future__ import annotations

import importlib.util
import os
import re
from typing import Any

from imagen_jax.chips import CHIPS
from imagen_jax.errors import UserError
from imagen_jax.extras import install_command
from imagen_jax.plan.gpus import GPUS, target_config

_ALONE = {
    "TPU_SKIP_MDS_QUERY": "1",  # there is no metadata server to ask
    "TPU_ACCELERATOR_TYPE": "v4-8",  # nor this; what is compiled for is said elsewhere
    "TPU_WORKER_HOSTNAMES": "localhost",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",  # no TPU that two processes could fight for
}
"""Environment in which the TPU compiler asks nothing of a TPU machine."""


def topology_devices(topology: str, slices: int = 1) -> list[Any]:
    """Devices to compile for without having them; only their compiler is needed.

    Args:
      topology: TPU generation and shape in chips, "v4:8x8x4" or "v5e:4x4"; or GPU and how many of
        them NVLink joins in one host, "h100:8".
      slices: number of slices, joined by the data-centre network.

    Raises:
      UserError: an unknown name, a shape that it does not come in, or no compiler.
    """
    name, _, shape = topology.partition(":")
    shapes = r"[1-9]\d*" if name in GPUS else r"\d+x\d+(x\d+)?"
    if name not in CHIPS or not re.fullmatch(shapes, shape):
        tpus = ", ".join(chip for chip in CHIPS if chip not in GPUS)
        raise UserError(
            f"topology is {topology!r}; it must be a TPU generation ({tpus}) and its shape in "
            f"chips, such as v4:8x8x4 or v5e:4x4, or a GPU ({', '.join(GPUS)}) and how many of "
            "them a host has, such as h100:8"
        )
    return _gpus(name, int(shape), slices) if name in GPUS else _tpus(topology, slices)


def _tpus(topology: str, slices: int) -> list[Any]:
    if importlib.util.find_spec("libtpu") is None:
        raise UserError(
            "the TPU compiler libtpu is missing (there is one for Linux on x86_64 alone): "
            + install_command("plan")
        )
    for name, value in _ALONE.items():
        os.environ.setdefault(name, value)
    from jax.experimental import topologies

    # A v4 or v5p chip has two cores that programs see as one device.
    megacore = topology.startswith(("v4:", "v5p:"))
    options: dict[str, Any] = {"chip_config_name": "megacore"} if megacore else {}
    if set(topology.partition(":")[2]) <= {"1", "x"}:
        options["chips_per_host_bounds"] = (1, 1, 1)  # hosts have four chips otherwise
    if slices > 1:
        options["num_slices"] = slices
    try:
        described = topologies.get_topology_desc(platform="tpu", topology_name=topology, **options)
    except Exception as error:
        raise UserError(f"topology {topology!r} does not exist: {error}") from error
    return list(described.devices)


def _gpus(name: str, count: int, hosts: int) -> list[Any]:
    from jax.experimental import topologies

    try:
        described = topologies.get_topology_desc(
            platform="cuda",
            target_config=target_config(GPUS[name]),
            topology=f"{hosts}x1x{count}",
        )
    except NotImplementedError as error:  # no plugin has registered
        raise UserError(
            "the GPU compiler is missing; install JAX's plugin for CUDA with: pip install "
            "'jax[cuda13]'; neither a GPU nor its driver is needed"
        ) from error
    return list(described.devices)
