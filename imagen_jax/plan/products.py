"""FLOPs of a convolution or a matrix product of a compiled program."""

from __future__ import annotations

import math
import re

from imagen_jax.flops import window_pairs
from imagen_jax.plan.hlo import Computation, Instruction


def instruction_flops(computation: Computation, instruction: Instruction) -> float:
    """FLOPs of a convolution or a matrix product of a compiled program.

    Raises:
      ValueError: a convolution that does not say which axes are which.
    """
    lhs, rhs = (computation.instructions[name].shapes[0].dims for name in instruction.operands[:2])
    out = instruction.shapes[0].dims
    text = instruction.attributes
    if instruction.opcode == "dot":
        found = re.search(r"lhs_contracting_dims=\{([\d,]*)\}", text)
        axes = [int(axis) for axis in (found[1] if found else "").split(",") if axis]
        return 2.0 * math.prod(out) * math.prod(lhs[axis] for axis in axes)
    labels = re.search(r"dim_labels=(\w+)_(\w+)->(\w+)", text)
    if labels is None:
        raise ValueError(f"convolution {instruction.name} has no dim_labels")
    of_lhs, of_rhs, of_out = labels.groups()
    inside = re.search(r"window=\{([^}]*)\}", text)
    window = dict(re.findall(r"(\w+)=(\S+)", inside[1] if inside else ""))
    spatial = sorted(label for label in of_lhs if label.isdigit())

    def values(key: str, otherwise: str) -> list[int]:
        """One number for each spatial axis; of padding, that in front."""
        texts = window[key].split("x") if key in window else [otherwise] * len(spatial)
        return [int(text.split("_")[0]) for text in texts]

    rows = zip(
        spatial,
        values("stride", "1"),
        values("pad", "0_0"),
        values("lhs_dilate", "1"),
        values("rhs_dilate", "1"),
        strict=True,
    )
    pairs = math.prod(
        window_pairs(
            lhs[of_lhs.index(axis)], rhs[of_rhs.index(axis)], out[of_out.index(axis)], *numbers
        )
        for axis, *numbers in rows
    )
    groups = re.search(r"batch_group_count=(\d+)", text)
    batch, features = out[of_out.index("b")], out[of_out.index("f")]
    inputs = rhs[of_rhs.index("i")]
    return 2.0 * batch * features * inputs * pairs / (int(groups[1]) if groups else 1)
