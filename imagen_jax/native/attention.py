"""Softmax attention in float32 on CPUs, by attention.cc."""

from __future__ import annotations

import jax
import jax.export
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from imagen_jax.native import devices
from imagen_jax.native.compiling import register

UNSEEN = -1e30
"""Added to the logits of keys that are not seen."""


def applies(q: jax.Array, k: jax.Array, v: jax.Array) -> bool:
    """True if attend takes these queries, keys and values; it is faster on CPUs then."""
    return (
        q.dtype == k.dtype == v.dtype == jnp.float32
        and not jax.export.is_symbolic_dim(q.shape[0])  # in a program that runs elsewhere
        and devices.can_divide(q.shape[0])
        and register("attention.cc", ("attention_forward", "attention_gradients"))
    )


def attend(
    q: Float[Array, "b l n k"],
    k: Float[Array, "b m n k"],
    v: Float[Array, "b m n k"],
    visible: Bool[Array, "b m"] | None = None,
) -> Float[Array, "b l n k"]:
    """Softmax attention of n heads, of what applies.

    Args:
      visible: keys that are seen, of each example at least one; None is all.
    """
    seen = jnp.ones(k.shape[:2], bool) if visible is None else visible
    # Of the kernel's dtype also where JAX_ENABLE_X64 makes Python's numbers float64.
    bias = jnp.where(seen, 0.0, UNSEEN).astype(jnp.float32)
    return devices.by_example(_attend, q, k, v, bias)


@jax.custom_vjp
def _attend(q: jax.Array, k: jax.Array, v: jax.Array, bias: jax.Array) -> jax.Array:
    return _forward(q, k, v, bias)[0]


def _forward(*args: jax.Array) -> tuple[jax.Array, tuple[jax.Array, ...]]:
    q = args[0]
    b, length, heads, _ = q.shape
    log_totals = jax.ShapeDtypeStruct((b, heads, length), q.dtype)
    shapes = (jax.ShapeDtypeStruct(q.shape, q.dtype), log_totals)
    out = jax.ffi.ffi_call("attention_forward", shapes, vmap_method="sequential")(*args)
    return out[0], (*args, *out)


def _backward(residuals: tuple[jax.Array, ...], grad: jax.Array) -> tuple[jax.Array | None, ...]:
    shapes = [jax.ShapeDtypeStruct(x.shape, x.dtype) for x in residuals[:3]]
    call = jax.ffi.ffi_call("attention_gradients", shapes, vmap_method="sequential")
    return (*call(*residuals, grad), None)  # the bias has none


_attend.defvjp(_forward, _backward)
