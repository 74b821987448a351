"""Attention on TPUs that never writes its weights to the main memory: JAX's splash attention.

The weights of some queries to all keys are computed, used and forgotten within the chip's fast
memory, in the backward pass again. Plain attention writes them several times.
"""

from __future__ import annotations

import math

import jax
import jax.export
import jax.numpy as jnp
from jax.sharding import PartitionSpec
from jaxtyping import Array, Bool, Float

from imagen_jax import chips
from imagen_jax.models.layers import PRODUCT
from imagen_jax.sharding import BATCH_SPEC, MESH_AXES, batch_divisor

LANES = 128
"""Queries and keys are computed in blocks of multiples of this."""
QUERY_BLOCK, WIDE_QUERY_BLOCK = 1024, 512
KEY_BLOCK = 1280
"""Longest blocks of queries, of queries whose heads take more than 256 bytes, and of keys: what the
kernel's fast memory holds (16 MiB of TPU v4 and v5e)."""
MIN_LENGTH = 512
"""Fewest queries, and fewest keys, for which the kernel is the faster one: plain attention to the
text alone is, and that of 256 queries to 385 keys (docs/paper-scale.md)."""


def applies(q: jax.Array, k: jax.Array, v: jax.Array) -> bool:
    """True if attend takes these queries, keys and values, and is the faster one on TPUs."""
    b, queries, _, channels = q.shape
    if jax.export.is_symbolic_dim(b):  # in a program that runs elsewhere
        return False
    mesh = jax.sharding.get_abstract_mesh()
    if _divided(mesh):
        if mesh.axis_names != MESH_AXES:
            return False
        parts = (batch_divisor(mesh), mesh.shape["spatial"], mesh.shape["tensor"])
        if any(size % part for size, part in zip(q.shape[:3], parts, strict=True)):
            return False
        queries //= mesh.shape["spatial"]
    dtypes = {x.dtype for x in (q, k, v)}
    known = dtypes in ({jnp.dtype("float32")}, {jnp.dtype("bfloat16")})
    return known and min(queries, k.shape[1]) >= MIN_LENGTH and channels <= LANES


def attend(
    q: Float[Array, "b l n k"],
    k: Float[Array, "b m n k"],
    v: Float[Array, "b m n k"],
    visible: Bool[Array, "b m"] | None = None,
) -> Float[Array, "b l n k"]:
    """Softmax attention of n heads, of what applies.

    On a mesh, within sharding.on_mesh, each device computes its own examples (axes slice, data and
    fsdp), heads (tensor) and queries (spatial). Where no TPU is compiled for, the kernel is
    interpreted, which is slow.

    Args:
      visible: keys that are seen, of each example at least one; None is all.
    """
    seen = jnp.ones(k.shape[:2], bool) if visible is None else visible
    mesh = jax.sharding.get_abstract_mesh()
    if not _divided(mesh):
        return _on_one_device(q, k, v, seen)
    of_queries = PartitionSpec(BATCH_SPEC[0], "spatial", "tensor")
    of_keys = PartitionSpec(BATCH_SPEC[0], None, "tensor")
    divided = jax.shard_map(
        _on_one_device,
        mesh=mesh,
        in_specs=(of_queries, of_keys, of_keys, BATCH_SPEC),
        out_specs=of_queries,
        check_vma=False,
    )
    return divided(q, k, v, seen)


def _divided(mesh: jax.sharding.AbstractMesh) -> bool:
    """True if the traced code is that of several devices, which XLA's partitioner divides."""
    manual = all(kind == jax.sharding.AxisType.Manual for kind in mesh.axis_types)
    return mesh.size > 1 and not manual


def blocks(length: int, longest: int) -> tuple[int, int]:
    """Return (length of a block, number of blocks) that hold `length` queries or keys: whole lanes,
    as few blocks as blocks of `longest` allow, and as little padding as so many blocks do."""
    lanes = -(-length // LANES)
    number = -(-lanes * LANES // longest)
    return -(-lanes // number) * LANES, number


def _on_one_device(q: jax.Array, k: jax.Array, v: jax.Array, seen: jax.Array) -> jax.Array:
    from jax.experimental.pallas.ops.tpu import splash_attention as splash  # slow to import

    b, queries, heads, channels = q.shape
    wide = channels * q.dtype.itemsize > 256
    query_block, query_blocks = blocks(queries, WIDE_QUERY_BLOCK if wide else QUERY_BLOCK)
    key_block, key_blocks = blocks(k.shape[1], KEY_BLOCK)
    length, keys = query_block * query_blocks, key_block * key_blocks
    sizes = splash.BlockSizes(
        block_q=query_block,
        block_kv=key_block,
        block_q_dkv=query_block,
        block_kv_dkv=key_block,
        block_kv_dkv_compute=LANES,
        use_fused_bwd_kernel=True,  # computes the weights once, not twice
        q_layout=splash.QKVLayout.SEQ_MINOR,  # as XLA lays out what dense layers compute
        k_layout=splash.QKVLayout.SEQ_MINOR,
        v_layout=splash.QKVLayout.SEQ_MINOR,
    )
    kernel = splash.make_splash_mha(
        mask=splash.MultiHeadMask([splash.FullMask((length, keys))] * heads),
        block_sizes=sizes,
        head_shards=1,
        q_seq_shards=1,
        # A policy that saves products saves the output, too, and the backward pass does not run
        # the forward kernel again.
        residual_checkpoint_name=PRODUCT,
        interpret=chips.platform() != "tpu",
    )

    def arranged(x: jax.Array, length: int) -> jax.Array:
        x = jnp.pad(x, ((0, 0), (0, length - x.shape[1]), (0, 0), (0, 0)))
        return x.transpose(0, 2, 1, 3)

    # Numbers of segments: each query sees the keys of its own, 1. What pads the keys is in 0.
    segments = jnp.pad(seen.astype(jnp.int32), ((0, 0), (0, keys - seen.shape[1])))
    out = jax.vmap(kernel)(
        arranged(q * jnp.asarray(1 / math.sqrt(channels), q.dtype), length),
        arranged(k, keys),
        arranged(v, keys),
        splash.SegmentIds(jnp.ones((b, length), jnp.int32), segments),
    )
    return out.transpose(0, 2, 1, 3)[:, :queries]
