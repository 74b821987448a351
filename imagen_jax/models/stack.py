"""Rows of identical blocks: compiled once, and rematerialised by a named policy."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from imagen_jax import chips
from imagen_jax.models import layers
from imagen_jax.models.base import TEXT_CACHE
from imagen_jax.sharding import constrain

SCAN_FROM = 3
"""Identical blocks in a row that are worth a loop in the compiled program."""

Remat = Literal["none", "products", "blocks"]
REMAT: dict[str, Callable[..., Any] | None] = {
    "none": None,
    "products": jax.checkpoint_policies.save_only_these_names(layers.PRODUCT),
    "blocks": jax.checkpoint_policies.nothing_saveable,
}
"""Rematerialisation policies. "none" saves all that the backward pass needs; "products" saves the
results of convolutions and dense layers and the statistics of norms, and recomputes normalised
images, activations and attention weights; "blocks" saves each block's input alone."""

Context = tuple[Float[Array, "b f"], Float[Array, "b l t"], Bool[Array, "b l"]]
"""Conditioning vector, text tokens and their mask, which all blocks of a network share."""


def rematerialised(
    block: type[nn.Module], remat: Remat, static_argnums: int | tuple[int, ...] = ()
) -> Any:
    """The class of a block under a rematerialisation policy.

    Args:
      block: class of the block.
      remat: key of REMAT.
      static_argnums: positions of arguments that are not arrays, counting self.
    """
    if remat == "none":
        return block
    return nn.remat(block, policy=REMAT[remat], static_argnums=static_argnums)


def repeat(
    block: type[nn.Module],
    fields: Mapping[str, Any],
    names: Sequence[str],
    y: Float[Array, "b *dims"],
    skips: Sequence[Float[Array, "b *dims2"]] | None,
    context: Any,
    remat: Remat,
) -> tuple[Float[Array, "b *dims"], list[Float[Array, "b *dims"]]]:
    """Apply blocks of one shape in sequence, each with its own parameters.

    SCAN_FROM blocks or more become one loop, whose compile time does not grow with their number;
    their parameters are stacked along a leading axis "stack", under the name of the first block
    with "_stack" behind it. On a CPU the loop is unrolled: that takes 6% less time with the
    kernels of imagen_jax/native, and many times less where XLA convolves. To be called within a
    compact module.

    Args:
      block: class of a block that maps (y, skip or None, context) to a y of the same shape.
      fields: fields of the block.
      names: one name for each block.
      y: input of the first block.
      skips: one more input for each block, in their order, or None.
      context: input that all blocks share.
      remat: key of REMAT.

    Returns:
      (output of the last block, outputs of all).
    """
    if len(names) < SCAN_FROM:
        outputs = []
        for i, name in enumerate(names):
            skip = None if skips is None else skips[i]
            y = rematerialised(block, remat)(**fields, name=name)(y, skip, context)
            outputs.append(y)
        return y, outputs

    class Step(nn.Module):
        @nn.compact
        def __call__(self, y: Any, skip: Any, context: Any) -> Any:
            y = block(**fields, name="block")(y, skip, context)
            return y, y

    loop: Any = nn.scan(
        rematerialised(Step, remat),
        variable_axes={"params": 0, TEXT_CACHE: 0},
        split_rngs={"params": True, "dropout": True},
        in_axes=(0, nn.broadcast),
        length=len(names),
        unroll=len(names) if chips.platform() == "cpu" else 1,
        metadata_params={nn.PARTITION_NAME: "stack"},
    )
    stacked = None if skips is None else jax.vmap(constrain)(jnp.stack(skips))
    y, outputs_stack = loop(name=f"{names[0]}_stack")(y, stacked, context)
    outputs_stack = jax.vmap(constrain)(outputs_stack)
    return y, [constrain(outputs_stack[i]) for i in range(len(names))]
