"""Kernels on a mesh: each device computes its part of the batch by itself."""

from __future__ import annotations

from collections.abc import Callable

import jax
from jax.sharding import AxisType, PartitionSpec

from imagen_jax.sharding import BATCH_SPEC, MESH_AXES, batch_divisor


def can_divide(batch: int) -> bool:
    """True if the devices of the mesh within sharding.on_mesh can each take a part of a batch.

    XLA's partitioner knows nothing of what a kernel computes. Examples are independent of one
    another; rows of an image and channels, which the axes spatial and tensor divide, are not.
    """
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.size <= 1 or _within_a_part(mesh):
        return True
    return (
        mesh.axis_names == MESH_AXES
        and mesh.shape["spatial"] == mesh.shape["tensor"] == 1
        and batch % batch_divisor(mesh) == 0
    )


def by_example(
    function: Callable[..., jax.Array], *batched: jax.Array, whole: tuple[jax.Array, ...] = ()
) -> jax.Array:
    """Apply a function of batches to the part of each device of the mesh within sharding.on_mesh.

    Gradients of what is whole are summed over the devices.

    Args:
      function: (*batched, *whole) -> a batch.
      batched: arrays whose first axis is the batch; see can_divide.
      whole: arrays that every device needs all of.
    """
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.size <= 1 or _within_a_part(mesh):
        return function(*batched, *whole)
    specs = (*[BATCH_SPEC] * len(batched), *[PartitionSpec()] * len(whole))
    divided = jax.shard_map(
        function, mesh=mesh, in_specs=specs, out_specs=BATCH_SPEC, check_vma=False
    )
    return divided(*batched, *whole)


def _within_a_part(mesh: jax.sharding.AbstractMesh) -> bool:
    """True if the traced code is that of one device already, of a shard_map outside."""
    return all(kind == AxisType.Manual for kind in mesh.axis_types)
