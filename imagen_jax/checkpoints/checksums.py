"""Checksums of arrays, by which a checkpoint that was damaged in storage is recognised.

They are computed where the arrays live, and do not depend on how these are sharded: a checkpoint
that is read onto another mesh has the same ones.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec


def checksums(tree: Any) -> dict[str, int]:
    """For every array of a tree, sum over i of (2 i + 1) bits_i modulo 2^32.

    The factors are odd, so that one element with other bits is always seen; and different, so that
    elements in each other's place, or a part that reads as zeros, are seen in all likelihood.

    Args:
      tree: tree of arrays, on any devices of all hosts.

    Returns:
      The sums by the name of the array, such as "['params']['conv_in']['kernel']"; the same on
      every host.
    """
    paths, _ = jax.tree_util.tree_flatten_with_path(tree)
    if not paths:
        return {}
    mesh = getattr(paths[0][1].sharding, "mesh", None)
    # Every host reads all sums, also those of arrays that lie on other hosts.
    everywhere = NamedSharding(mesh, PartitionSpec()) if isinstance(mesh, Mesh) else None
    sums = _sums(everywhere)([leaf for _, leaf in paths])
    named = zip(paths, np.asarray(sums), strict=True)
    return {jax.tree_util.keystr(path): int(value) for (path, _), value in named}


@functools.cache
def _sums(sharding: NamedSharding | None) -> Callable[[list[jax.Array]], jax.Array]:
    """Compiled once for arrays of the same shapes: every checkpoint of a run has those."""
    return jax.jit(lambda leaves: jnp.stack([_sum(x) for x in leaves]), out_shardings=sharding)


@jax.jit  # traced once for all arrays of one shape
def _sum(x: jax.Array) -> jax.Array:
    bits = jax.lax.bitcast_convert_type(x, jnp.dtype(f"uint{8 * x.dtype.itemsize}"))
    index = jnp.zeros(x.shape, jnp.uint32)
    for axis, size in enumerate(x.shape):
        index = index * jnp.uint32(size) + jax.lax.broadcasted_iota(jnp.uint32, x.shape, axis)
    return jnp.sum(bits.astype(jnp.uint32) * (2 * index + 1), dtype=jnp.uint32)
