"""The device mesh, and how logical axes of parameters and batches are laid out on it.

Networks name the axes of their parameters ("in", "out", ...); this file alone says where those axes
live. A new way of sharding is an edit of LOGICAL_AXIS_RULES, never of a network.
"""

from __future__ import annotations

import math
import re
from typing import Any

import flax.linen as nn
import jax
import optax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

MESH_AXES = ("data", "fsdp", "tensor")

LOGICAL_AXIS_RULES: tuple[tuple[str, str | None], ...] = (
    ("in", "fsdp"),  # input channels of every kernel
    ("out", "tensor"),  # output channels of every kernel
    ("pixel", None),  # colour channels: 3 or 6, never divided
    ("window", None),  # height and width of a convolution
    ("vector", None),  # scales, biases, learned tokens
)

# fsdp before data: XLA's partitioner (jaxlib 0.10.2) computes wrong gradients for the other order
# where the axes fsdp and tensor are equally long and data is longer than 1. A test tells.
BATCH_SPEC = PartitionSpec(("fsdp", "data"))


def join_hosts(where: str) -> None:
    """Makes this process one of several that run the same program; call it before anything else.

    Args:
      where: "auto" where the processes find one another (TPU pods, GKE, Slurm), else
        "ID/COUNT@HOST:PORT": which process this is of how many, from 0, and where the first one can
        be reached by all.

    Raises:
      ValueError: another form, or the other processes cannot be found.
    """
    if where == "auto":
        try:
            jax.distributed.initialize()
        except (ValueError, RuntimeError) as error:
            raise ValueError(
                f"the other hosts cannot be found or joined ({error}); where this is no TPU pod, "
                "GKE or Slurm job, say which host this is: ID/COUNT@HOST:PORT"
            ) from error
        return
    match = re.fullmatch(r"(\d+)/(\d+)@(.+:\d+)", where)
    if match is None or not int(match[1]) < int(match[2]):
        raise ValueError(
            f"multi-host is {where!r}; it must be 'auto', or ID/COUNT@HOST:PORT with ID from 0 to "
            "COUNT - 1, such as 0/2@10.0.0.1:9911"
        )
    jax.distributed.initialize(match[3], int(match[2]), int(match[1]))


def make_mesh(axes: dict[str, int] | None = None) -> Mesh:
    """A mesh over all devices of all hosts.

    Args:
      axes: size of each axis of MESH_AXES; missing axes have size 1 and one axis may be -1, which
        takes all remaining devices. None means {"data": -1}.

    Raises:
      ValueError: an unknown axis, or sizes whose product is not the number of devices.
    """
    sizes = dict.fromkeys(MESH_AXES, 1) | ({"data": -1} if axes is None else dict(axes))
    unknown = set(sizes) - set(MESH_AXES)
    if unknown:
        raise ValueError(f"unknown mesh axes {sorted(unknown)}; choices: {MESH_AXES}")
    devices = jax.device_count()
    free = [name for name, size in sizes.items() if size == -1]
    if len(free) > 1:
        raise ValueError(f"only one mesh axis may be -1, got {free}")
    if free:
        sizes[free[0]] = devices // max(1, math.prod(s for s in sizes.values() if s != -1))
    if math.prod(sizes.values()) != devices:
        raise ValueError(f"mesh {sizes} does not use the {devices} devices exactly")
    return jax.make_mesh(
        tuple(sizes[name] for name in MESH_AXES),
        MESH_AXES,
        axis_types=(jax.sharding.AxisType.Auto,) * len(MESH_AXES),
    )


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """Examples are divided over the data and fsdp axes; everything else is replicated."""
    return NamedSharding(mesh, BATCH_SPEC)


def replicated(mesh: Mesh) -> NamedSharding:
    """One full copy on every device."""
    return NamedSharding(mesh, PartitionSpec())


def batch_divisor(mesh: Mesh) -> int:
    """Number of devices that a batch is divided over."""
    return mesh.shape["data"] * mesh.shape["fsdp"]


def state_shardings(abstract_state: Any, mesh: Mesh) -> Any:
    """Shardings of a train state from the logical axes that its parameters carry.

    Args:
      abstract_state: pytree of ShapeDtypeStructs, with nn.LogicallyPartitioned boxes where
        parameters (or optimiser moments and averages, which inherit them) were annotated.

    Returns:
      The unboxed pytree's shardings. Replicated are leaves without annotation (step, counters), and
      those with fewer axes than their parameter: Adafactor's factored moments, which are small.

    Raises:
      ValueError: a parameter names an axis that LOGICAL_AXIS_RULES does not know, or an axis is
        not divisible by the mesh axis that it is laid on.
    """
    rules = dict(LOGICAL_AXIS_RULES)
    specs = nn.get_partition_spec(abstract_state)

    def sharding(path: Any, spec: PartitionSpec, leaf: Any) -> Any:
        if isinstance(leaf, optax.MaskedNode):  # a parameter that this optimiser leaves to another
            return leaf
        if not spec or leaf.ndim < len(spec):
            return replicated(mesh)
        unknown = set(spec) - set(rules)
        if unknown:
            raise ValueError(
                f"{jax.tree_util.keystr(path)}: unknown logical axes {sorted(map(str, unknown))}; "
                f"choices: {[name for name, _ in LOGICAL_AXIS_RULES]}"
            )
        axes = PartitionSpec(*(rules[name] for name in spec))
        for size, axis in zip(leaf.shape, axes, strict=True):
            if axis is not None and size % mesh.shape[axis]:
                raise ValueError(
                    f"{jax.tree_util.keystr(path)}: axis of size {size} is not divisible by the "
                    f"mesh axis {axis!r} of size {mesh.shape[axis]}"
                )
        return NamedSharding(mesh, axes)

    leaves = nn.unbox(abstract_state)
    return jax.tree_util.tree_map_with_path(
        sharding, specs, leaves, is_leaf=lambda x: isinstance(x, PartitionSpec)
    )
