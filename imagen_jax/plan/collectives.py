"""Collectives of a compiled program: whom they join, and what a device sends for them."""

from __future__ import annotations

import math
import re

import numpy as np

from imagen_jax.plan.hlo import Computation, Instruction, Module

COLLECTIVES = {
    "all-gather", "all-reduce", "reduce-scatter", "all-to-all", "collective-permute",
    "ragged-all-to-all", "collective-broadcast",
}  # fmt: skip


def phase(module: Module, instruction: Instruction) -> str:
    """Returns "start" or "done" of something asynchronous, else "".

    Where the compiler fuses steps of a collective into kernels, both are fusions, too, and so is
    what runs in between (see is_repeated).
    """
    for end in ("start", "done"):
        if instruction.opcode.endswith(f"-{end}"):
            return end
        body = module.computations.get(instruction.attribute("calls") or "")
        if (
            instruction.opcode == "fusion"
            and body
            and _calls(body, f"AsyncCollective{end.title()}")
        ):
            return end
    return ""


def is_repeated(computation: Computation) -> bool:
    """True for what is fused beside the steps or into the end of an asynchronous collective: it
    names the collective that its start has named."""
    name = computation.name
    return name.startswith("async_collective_fusion") or _calls(computation, "AsyncCollectiveDone")


def _calls(computation: Computation, target: str) -> bool:
    return any(i.custom_call_target == target for i in computation.instructions.values())


def bytes_sent(kind: str, given: int, group: int) -> float:
    """Bytes that one device sends, by the counts of ring algorithms (Chan et al. 2007).

    Args:
      kind: one of COLLECTIVES.
      given: bytes that the device puts in.
      group: devices that take part.
    """
    others = group - 1
    if kind == "all-gather":
        return float(given * others)
    if kind == "all-reduce":
        return 2 * given * others / group
    if kind in ("reduce-scatter", "all-to-all", "ragged-all-to-all"):
        return given * others / group
    return float(given)


def replica_group(attributes: str, slice_devices: int | None) -> tuple[int, bool]:
    """Devices of a group that a collective joins, and whether they are in several slices."""
    if found := re.search(r"replica_groups=\{\{([\d,]*)\}", attributes):
        members = [int(d) for d in found[1].split(",") if d]
    elif found := re.search(
        r"replica_groups=\[([\d,]+)\]<=\[([\d,]+)\](?:T\(([\d,]+)\))?", attributes
    ):
        groups = [int(d) for d in found[1].split(",")]
        members = _transposed(found[2], found[3]).reshape(groups)[0].tolist()
    elif found := re.search(
        r"replica_groups=mesh\[([^\]]*)\](?:, device_ids=\(\[([\d,]+)\](?:T\(([\d,]+)\))?\))? "
        r"\{([^}]*)\}",
        attributes,
    ):
        sizes = {k: int(v) for k, v in re.findall(r"'([^']+)'=(\d+)", found[1])}
        devices = _transposed(found[2] or str(math.prod(sizes.values())), found[3]).reshape(-1)
        names = re.findall(r"'([^']+)'", found[4])
        members = devices[_mesh_members(sizes, names)].tolist()
    elif found := re.search(r"source_target_pairs=\{\{(\d+),(\d+)\}", attributes):
        members = [int(found[1]), int(found[2])]
    else:
        return 1, False
    spans = slice_devices is not None and len({m // slice_devices for m in members}) > 1
    return max(1, len(members)), spans


def _transposed(sizes: str, axes: str | None) -> np.ndarray:
    """Device numbers in the order that "[8,32]T(1,0)" writes: counted in the first shape, then
    transposed."""
    shape = [int(size) for size in sizes.split(",")]
    devices = np.arange(math.prod(shape)).reshape(shape)
    return devices.transpose([int(axis) for axis in axes.split(",")]) if axes else devices


def _mesh_members(sizes: dict[str, int], names: list[str]) -> list[int]:
    """Positions along the named axes of a mesh, the others at 0."""
    strides, stride = {}, 1
    for name, size in reversed(sizes.items()):
        strides[name], stride = stride, stride * size
    members = [0]
    for name in names:
        members = [m + i * strides[name] for m in members for i in range(sizes[name])]
    return members
