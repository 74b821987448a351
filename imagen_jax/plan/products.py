"""FLOPs of a convolution or a matrix product of a compiled program."""

from __future__ import annotations

import json
import math
import re

from imagen_jax.errors import UserError
from imagen_jax.flops import window_pairs
from imagen_jax.native.winograd import INPUTS, OUTPUTS
from imagen_jax.plan.hlo import Computation, Instruction, Shape

PRODUCTS = {"convolution", "dot", "custom-call"}
"""Instructions that may be products; on GPUs many are calls of NVIDIA's libraries, on CPUs of our
own kernels."""

ATTENTION = {"attention_forward": 2, "attention_gradients": 5}
"""Number of products in our CPU kernels of attention, forward and backward."""

PALLAS = "tpu_custom_call"
"""Function that a Pallas kernel of a TPU is a call of."""


def instruction_flops(computation: Computation, instruction: Instruction) -> float:
    """FLOPs of a convolution or a matrix product of a compiled program; 0 for a call of something
    else.

    Raises:
      UserError: a convolution that does not say which axes are which.
    """
    left, right = _operands(computation, instruction)
    out = instruction.shapes[0].dims if instruction.shapes else ()
    text = instruction.attributes
    if instruction.opcode == "dot":
        return _matrix_flops(left, out, re.search(r"lhs_contracting_dims=\{([\d,]*)\}", text))
    if instruction.opcode == "convolution":
        return _convolution_flops(instruction, left, right, out)
    target = instruction.custom_call_target
    if target.startswith("winograd_"):  # of images and a kernel, or of two images
        window = out if target == "winograd_kernel_gradient" else right
        batch, height, width = left[:3]
        tiles = batch * math.ceil(height / OUTPUTS) * math.ceil(width / OUTPUTS)
        return 2.0 * tiles * INPUTS**2 * math.prod(window[2:])
    if target in ATTENTION:  # from queries to keys [batch, positions, heads, channels]
        return 2.0 * ATTENTION[target] * math.prod(left) * right[1]
    if target == PALLAS:
        return pallas_cost(computation, instruction).get("flops", 0.0)
    if target.startswith("__cublas$"):
        axes = re.search(r'"lhs_contracting_dimensions":\[([\d,"]*)\]', text)
        return _matrix_flops(left, out, axes)
    # cuDNN's calls describe the forward convolution, and leave out the array that they return.
    if target == "__cudnn$convBackwardInput":
        return _convolution_flops(instruction, out, right, left)
    if target == "__cudnn$convBackwardFilter":
        return _convolution_flops(instruction, left, out, right)
    if target.startswith("__cudnn$conv"):
        return _convolution_flops(instruction, left, right, out)
    return 0.0


def pallas_cost(computation: Computation, instruction: Instruction) -> dict[str, float]:
    """Costs of a Pallas kernel, as far as they are known.

    Most state theirs. JAX's splash attention does not: it is two products forward, four for the
    gradients of keys and values, and one more, or three alone, for those of queries.

    Returns:
      "flops", "bytes_accessed", and "filled", the part of a matrix unit's 128 lanes that heads
      fill; each where it is known.
    """
    found = re.search(r'"cost_estimate":\s*(\{[^}]*\})', instruction.attributes)
    if found is not None:
        return {key: float(value) for key, value in json.loads(found[1]).items()}
    splash = re.match(r"splash_m[hq]a_(fwd|dq|dkv)_", instruction.name)
    if splash is None:
        return {}
    shapes = [
        shape for name in instruction.operands for shape in computation.instructions[name].shapes
    ]
    queries, keys = [shape.dims for shape in shapes if len(shape.dims) > 3][:2]
    channels = min(queries[-2:])  # which come last, or before the positions
    made = sum(len(shape.dims) > 3 for shape in instruction.shapes)
    count = {"fwd": 2, "dq": 3, "dkv": 2 + made}[splash[1]]
    flops = 2.0 * count * math.prod(queries) * max(keys[-2:])
    return {"flops": flops, "filled": min(1.0, channels / 128)}


def untuned_convolutions(computation: Computation) -> int:
    """Calls of cuDNN's convolutions of which the compiler has not chosen the algorithm, so that it
    does not know the scratch memory they take: it chooses by trying them on the card."""
    return sum(
        instruction.custom_call_target.startswith("__cudnn$conv")
        and '"algo_id":"-1"' in instruction.attributes
        for instruction in computation.instructions.values()
    )


def _operands(computation: Computation, instruction: Instruction) -> list[tuple[int, ...]]:
    """Sizes of the first two operands; () for one that is missing or is a tuple."""
    shapes: list[tuple[Shape, ...]] = [
        computation.instructions[name].shapes for name in instruction.operands[:2]
    ]
    dims = [found[0].dims if len(found) == 1 else () for found in shapes]
    return [*dims, (), ()][:2]


def _matrix_flops(
    left: tuple[int, ...], out: tuple[int, ...], contracted: re.Match[str] | None
) -> float:
    axes = re.findall(r"\d+", contracted[1]) if contracted else []
    return 2.0 * math.prod(out) * math.prod(left[int(axis)] for axis in axes)


def _convolution_flops(
    instruction: Instruction, lhs: tuple[int, ...], rhs: tuple[int, ...], out: tuple[int, ...]
) -> float:
    """FLOPs of the convolution of `lhs` with the kernel `rhs` that gives `out`."""
    text = instruction.attributes
    labels = re.search(r"dim_labels=(\w+)_(\w+)->(\w+)", text)
    if labels is None:
        raise UserError(f"convolution {instruction.name} has no dim_labels")
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
