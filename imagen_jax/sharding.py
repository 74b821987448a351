"""The device mesh, and how logical axes of parameters and batches are laid out on it.

Networks name the axes of their parameters ("in", "out", ...); this file alone says where those axes
live. A new way of sharding is an edit of LOGICAL_AXIS_RULES, never of a network. Parameters whose
axes have no names are copied to every device.
"""

from __future__ import annotations

import functools
import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import flax.linen as nn
import jax
import numpy as np
import optax
from jax.experimental import mesh_utils
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from imagen_jax.errors import MachineError, UserError

MESH_AXES = ("slice", "data", "fsdp", "spatial", "tensor")
"""slice: TPU slices joined by the data-centre network, each with a copy of the parameters.
data: examples are divided, parameters copied. fsdp: examples and parameters are divided; each layer
gathers its own (ZeRO, stage 3). spatial: the height of images is divided; convolutions exchange
their borders. tensor: output channels of kernels are divided."""

LOGICAL_AXIS_RULES: tuple[tuple[str, str | None], ...] = (
    ("in", "fsdp"),  # input channels of every kernel
    ("out", "tensor"),  # output channels of every kernel
    ("pixel", None),  # colour channels: 3 or 6, never divided
    ("window", None),  # height and width of a convolution
    ("vector", None),  # scales, biases, learned tokens
    ("stack", None),  # blocks of one shape that run as a loop
)

# fsdp before data: XLA's partitioner (jaxlib 0.10.2) computes wrong gradients for the other order
# where the axes fsdp and tensor are equally long and data is longer than 1. A test tells.
BATCH_SPEC = PartitionSpec(("fsdp", "data", "slice"))
IMAGE_SPEC = PartitionSpec(BATCH_SPEC[0], "spatial")
IMAGES = ("image", "low_res")
"""Entries of a training batch that are images [b, h, w, 3]."""


def join_hosts(where: str) -> None:
    """Makes this process one of several that run the same program; call it before anything else.

    Args:
      where: "auto" where the processes find one another (TPU pods, GKE, Slurm), else
        "ID/COUNT@HOST:PORT": which process this is of how many, from 0, and where the first one can
        be reached by all.

    Raises:
      UserError: another form, or nothing says where the other processes are.
      MachineError: they do not answer.
    """
    if where == "auto":
        try:
            jax.distributed.initialize()
        except ValueError as error:
            raise UserError(
                f"the other hosts cannot be found ({error}); where this is no TPU pod, GKE or "
                "Slurm job, say which host this is: ID/COUNT@HOST:PORT"
            ) from error
        except RuntimeError as error:
            raise MachineError(
                f"the other hosts cannot be joined ({error}); run the command again on all of them"
            ) from error
        return
    number, count, address = parse_hosts(where)
    host = address.rpartition(":")[0]
    # Left to itself, the coordinator listens to every network that reaches this machine.
    here = address if host in ("localhost", "127.0.0.1", "[::1]") else None
    jax.distributed.initialize(address, count, number, coordinator_bind_address=here)


def parse_hosts(where: str) -> tuple[int, int, str]:
    """Return (which host this is, how many there are, address of the first) of join_hosts's text.

    Raises:
      UserError: another form.
    """
    match = re.fullmatch(r"(\d+)/(\d+)@(.+:\d+)", where, re.ASCII)
    if match is None or not int(match[1]) < int(match[2]):
        raise UserError(
            f"multi-host is {where!r}; it must be 'auto', or ID/COUNT@HOST:PORT with ID from 0 to "
            "COUNT - 1, such as 0/2@10.0.0.1:9911"
        )
    return int(match[1]), int(match[2]), match[3]


def mesh_sizes(axes: Mapping[str, int], devices: int) -> dict[str, int]:
    """Size of every axis of MESH_AXES on so many devices.

    Args:
      axes: sizes; missing axes have size 1, and one may be -1, which takes all remaining devices.
      devices: devices that the mesh must use exactly.

    Raises:
      UserError: an unknown axis, sizes whose product is not the number of devices, or both spatial
        and tensor, which do not work together.
    """
    unknown = set(axes) - set(MESH_AXES)
    if unknown:
        raise UserError(f"unknown mesh axes {sorted(unknown)}; choices: {MESH_AXES}")
    sizes = dict.fromkeys(MESH_AXES, 1) | dict(axes)
    free = [name for name, size in sizes.items() if size == -1]
    if len(free) > 1:
        raise UserError(f"only one mesh axis may be -1, got {free}")
    if free:
        sizes[free[0]] = devices // max(1, math.prod(s for s in sizes.values() if s != -1))
    if sizes["spatial"] > 1 and sizes["tensor"] > 1:
        raise UserError(
            f"a mesh cannot have both spatial ({sizes['spatial']}) and tensor ({sizes['tensor']}) "
            "longer than 1: XLA's partitioner (jaxlib 0.10.2) computes wrong losses for them"
        )
    if math.prod(sizes.values()) != devices:
        longer = {name: size for name, size in axes.items() if size != 1}
        raise UserError(f"mesh {longer} does not use the {devices} devices exactly")
    return sizes


def make_mesh(axes: Mapping[str, int] | None = None, devices: Sequence[Any] | None = None) -> Mesh:
    """A mesh over devices, neighbours on it being neighbours in the machine.

    Args:
      axes: sizes of axes, see mesh_sizes; None means {"data": -1}. A size 1 of slice, or none, is
        as many as there are.
      devices: all devices of all hosts by default; or those of a topology that is compiled for.

    Raises:
      UserError: axes that do not fit the devices, or a number of slices that is not theirs.
    """
    devices = jax.devices() if devices is None else devices
    axes = {"data": -1} if axes is None else axes
    slices = len({getattr(device, "slice_index", 0) or 0 for device in devices})
    if axes.get("slice", 1) == 1:
        axes = {**axes, "slice": slices}
    sizes = mesh_sizes(axes, len(devices))
    if slices > 1 and sizes["slice"] != slices:
        raise UserError(
            f"the devices are in {slices} slices, but the mesh axis 'slice' has {sizes['slice']}"
        )
    shape = tuple(sizes.values())
    if slices > 1:
        across = tuple(slices if name == "slice" else 1 for name in MESH_AXES)
        within = tuple(1 if name == "slice" else sizes[name] for name in MESH_AXES)
        arranged = mesh_utils.create_hybrid_device_mesh(within, across, devices)
    else:
        arranged = mesh_utils.create_device_mesh(shape, devices, allow_split_physical_axes=True)
    return Mesh(arranged, MESH_AXES, axis_types=(jax.sharding.AxisType.Auto,) * len(MESH_AXES))


def batch_shardings(mesh: Mesh, names: Iterable[str]) -> dict[str, NamedSharding]:
    """Shardings of a training batch: examples are divided over slice, data and fsdp, images also
    by height over spatial.

    Args:
      names: the entries of the batch.
    """
    return {
        name: NamedSharding(mesh, IMAGE_SPEC if name in IMAGES else BATCH_SPEC) for name in names
    }


def global_arrays(
    batch: Mapping[str, np.ndarray], shardings: Mapping[str, NamedSharding]
) -> dict[str, jax.Array]:
    """Global arrays from this host's share of a batch."""
    return {
        name: jax.make_array_from_process_local_data(shardings[name], value)
        for name, value in batch.items()
    }


def constrain(x: jax.Array) -> jax.Array:
    """Keeps activations divided by example, and images also by height, within `on_mesh`.

    Left to itself, XLA's partitioner divides them by channels where a kernel is divided so, and
    sends every activation to every device. Channels may be divided over the axis tensor.

    Args:
      x: [b, ...]; four axes are an image [b, h, w, c].
    """
    if jax.sharding.get_abstract_mesh().empty:
        return x
    free = PartitionSpec.UNCONSTRAINED
    if x.ndim == 4:
        spec = PartitionSpec(*IMAGE_SPEC, None, free)
    else:
        spec = PartitionSpec(*BATCH_SPEC, *(free,) * (x.ndim - 1))
    return jax.lax.with_sharding_constraint(x, spec)


def on_mesh(function: Callable[..., Any], mesh: Mesh) -> Callable[..., Any]:
    """The function, to be jitted, with the activations in it laid out on the mesh."""

    @functools.wraps(function)
    def placed(*args: Any) -> Any:
        with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):
            return function(*args)

    return placed


def replicated(mesh: Mesh) -> NamedSharding:
    """One full copy on every device."""
    return NamedSharding(mesh, PartitionSpec())


def batch_divisor(mesh: Mesh | jax.sharding.AbstractMesh) -> int:
    """Number of devices that a batch is divided over."""
    return mesh.shape["slice"] * mesh.shape["data"] * mesh.shape["fsdp"]


def state_shardings(abstract_state: Any, mesh: Mesh) -> Any:
    """Shardings of a train state from the logical axes that its parameters carry.

    Args:
      abstract_state: pytree of ShapeDtypeStructs, with nn.LogicallyPartitioned boxes where
        parameters (or optimiser moments and averages, which inherit them) were annotated.

    Returns:
      The unboxed pytree's shardings. Replicated are leaves without annotation (step, counters), and
      those with fewer axes than their parameter: Adafactor's factored moments, which are small.

    Raises:
      UserError: a parameter names an axis that LOGICAL_AXIS_RULES does not know, or an axis is
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
            raise UserError(
                f"{jax.tree_util.keystr(path)}: unknown logical axes {sorted(map(str, unknown))}; "
                f"choices: {[name for name, _ in LOGICAL_AXIS_RULES]}"
            )
        axes = PartitionSpec(*(rules[name] for name in spec))
        for size, axis in zip(leaf.shape, axes, strict=True):
            if axis is not None and size % mesh.shape[axis]:
                raise UserError(
                    f"{jax.tree_util.keystr(path)}: axis of size {size} is not divisible by the "
                    f"mesh axis {axis!r} of size {mesh.shape[axis]}"
                )
        return NamedSharding(mesh, axes)

    leaves = nn.unbox(abstract_state)
    return jax.tree_util.tree_map_with_path(
        sharding, specs, leaves, is_leaf=lambda x: isinstance(x, PartitionSpec)
    )
