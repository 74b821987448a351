"""FLOPs of the convolutions and matrix products that a function asks for: all that counts on a
matrix unit."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jax.interpreters import partial_eval

from imagen_jax.chips import no_platform
from imagen_jax.errors import UserError


@functools.cache
def window_pairs(
    size: int, window: int, out: int, stride: int, pad: int, dilation: int, window_dilation: int
) -> int:
    """Pairs of an output and a window position, along one axis, that meet a value of the input
    (neither padding nor the gaps of a dilated input).

    Args:
      size: size of the input.
      window: positions of the window.
      out: size of the output.
      stride: between the windows of two outputs.
      pad: in front of the input.
      dilation: distance of two values of the input.
      window_dilation: distance of two positions of the window.
    """
    where = np.arange(out)[:, None] * stride + np.arange(window)[None] * window_dilation - pad
    return int(((where >= 0) & (where <= (size - 1) * dilation) & (where % dilation == 0)).sum())


def flops_of(function: Callable[..., Any], *args: Any) -> float:
    """FLOPs of all products that the results of a function need, see jaxpr_flops: of those it was
    written with, whichever way a platform computes them.

    Args:
      args: arrays or their shapes.
    """
    shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), args)
    with jax.sharding.use_abstract_mesh(no_platform()):
        jaxpr = jax.make_jaxpr(function)(*shapes).jaxpr
    needed, _ = partial_eval.dce_jaxpr(jaxpr, [True] * len(jaxpr.outvars))
    return jaxpr_flops(needed)


def jaxpr_flops(jaxpr: Any) -> float:
    """FLOPs of all products of a jaxpr: two for each multiplication with its addition.

    Loops count as often as they run, branches as the dearest.

    Raises:
      UserError: a product within a loop whose length is not known.
    """
    total = 0.0
    for eqn in jaxpr.eqns:
        kind, params = eqn.primitive.name, eqn.params
        if kind == "dot_general":
            (left, _), _ = params["dimension_numbers"]
            contracted = math.prod(eqn.invars[0].aval.shape[axis] for axis in left)
            total += 2.0 * contracted * math.prod(eqn.outvars[0].aval.shape)
        elif kind == "conv_general_dilated":
            total += _convolution(eqn)
        elif kind == "scan":
            total += params["length"] * jaxpr_flops(params["jaxpr"].jaxpr)
        elif kind == "cond":
            total += max(jaxpr_flops(branch.jaxpr) for branch in params["branches"])
        elif kind == "while":
            if jaxpr_flops(params["body_jaxpr"].jaxpr):
                raise UserError("a loop of unknown length contains products")
        else:
            for value in params.values():
                for inner in value if isinstance(value, (tuple, list)) else (value,):
                    inner = getattr(inner, "jaxpr", inner)
                    if hasattr(inner, "eqns"):
                        total += jaxpr_flops(inner)
    return total


def _convolution(eqn: Any) -> float:
    params = eqn.params
    numbers = params["dimension_numbers"]
    lhs, rhs = (v.aval.shape for v in eqn.invars)
    out = eqn.outvars[0].aval.shape
    pairs = 1
    for i, axis in enumerate(numbers.lhs_spec[2:]):
        pairs *= window_pairs(
            lhs[axis],
            rhs[numbers.rhs_spec[2 + i]],
            out[numbers.out_spec[2 + i]],
            params["window_strides"][i],
            params["padding"][i][0],
            params["lhs_dilation"][i],
            params["rhs_dilation"][i],
        )
    batch, features = (out[axis] for axis in numbers.out_spec[:2])
    inputs = rhs[numbers.rhs_spec[1]]  # of one group
    return 2.0 * batch * features * inputs * pairs / params["batch_group_count"]
