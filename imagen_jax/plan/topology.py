"""The devices of a TPU topology that one does not have."""

from __future__ import annotations

import importlib.util
import os
import re
from typing import Any

from imagen_jax.chips import CHIPS

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
