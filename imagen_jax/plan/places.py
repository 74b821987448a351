"""Kernels of a compiled program by what they compute and by where in the network they stand."""

from __future__ import annotations

import collections
import re
from collections.abc import Iterator

from imagen_jax.plan.collectives import COLLECTIVES
from imagen_jax.plan.hlo import Computation, Instruction, Module
from imagen_jax.plan.products import PALLAS

OPTIMISER = "optimiser"
"""Scope in train/step.py: updates of parameters, of the optimiser's state and of averages."""

LAYOUT = {
    "bitcast", "broadcast", "concatenate", "constant", "copy", "copy-done", "copy-start",
    "dynamic-slice", "dynamic-update-slice", "fusion", "get-tuple-element", "pad", "parameter",
    "reshape", "slice", "slice-done", "slice-start", "transpose", "tuple",
}  # fmt: skip
"""Instructions that compute nothing; a kernel of these alone only moves numbers."""

_SOFTMAX = {"reduce_max", "sub", "exp", "reduce_sum", "div", "stop_gradient"}
_NOISE = re.compile(
    r"while|body|cond|closed_call|checkpoint|rematted_computation|block|branch_\d+_fun|jit\(.*\)"
)
_NETWORK = re.compile(r"(?:\w+\()*([A-Z]\w+)\)*")


def category(module: Module, instruction: Instruction) -> str:
    """Kind of work of a kernel: convolutions, dense layers, attention's products, softmax, norms,
    other elementwise, copies and layout, collectives, custom calls (Pallas kernels), or optimiser
    and EMA.

    Whatever is fused into a product counts as the product. Attention's products are those written
    as an einsum; dense layers are all others.
    """
    parts = list(_parts(module, instruction))
    product = next((part for part in parts if part.opcode in ("convolution", "dot")), None)
    if product is None and any(p.opcode.removesuffix("-start") in COLLECTIVES for p in parts):
        return "collectives"
    if place(module, instruction) == OPTIMISER:
        return "optimiser and EMA"
    if any(part.custom_call_target == PALLAS for part in parts):
        return "custom calls"
    if product is not None:
        name = _op_name(product)
        if "->" in name:
            return "attention's products"
        convolves = "conv_general_dilated" in name or (not name and "size=" in product.attributes)
        return "convolutions" if convolves else "dense layers"
    if all(part.opcode in LAYOUT for part in parts):
        return "copies and layout"
    *scopes, primitive = _name(module, instruction).split("/")
    if any("->" in scope for scope in scopes):  # as sums, for a single query
        return "attention's products"
    if any("norm" in scope for scope in scopes):
        return "norms"
    if any(scope.startswith("vmap(") for scope in scopes):  # of jax.nn.dot_product_attention
        return "softmax"
    attends = bool(scopes) and scopes[-1].endswith(("attention", "pool"))
    return "softmax" if attends and primitive in _SOFTMAX else "other elementwise"


def place(module: Module, instruction: Instruction) -> str:
    """Part of the program that a kernel belongs to.

    Returns:
      The network's part by its name (down_2, middle, up_3, conditioning, layers), "optimiser",
      "around the network" for all else that has a name in the source, or "unnamed".
    """
    name = _name(module, instruction)
    if not name:
        return "unnamed"
    scopes = [scope for scope in name.split("/")[:-1] if not _NOISE.fullmatch(scope)]
    if OPTIMISER in scopes:
        return OPTIMISER
    networks = [i for i, scope in enumerate(scopes) if _NETWORK.fullmatch(scope)]
    if not networks:
        return "around the network"
    inside = [scope for scope in scopes[networks[-1] + 1 :] if scope != "encoder"]
    if not inside:
        return "between blocks"
    if found := re.match(r"(?:down|up)_\d+", inside[0]):
        return found[0]
    return "middle" if inside[0].startswith("middle") else re.sub(r"_\d+.*", "", inside[0])


def _name(module: Module, instruction: Instruction) -> str:
    """An instruction's name in the source; without one, the commonest of what is fused into it."""
    if name := _op_name(instruction):
        return name
    names = collections.Counter(filter(None, map(_op_name, _parts(module, instruction))))
    return names.most_common(1)[0][0] if names else ""


def _op_name(instruction: Instruction) -> str:
    found = re.search(r'op_name="([^"]*)"', instruction.attributes)
    return found[1] if found and "/" in found[1] else ""


def _parts(module: Module, instruction: Instruction) -> Iterator[Instruction]:
    """The instruction, and all that is fused into it."""
    yield instruction
    called = instruction.attribute("calls")
    body: Computation | None = module.computations.get(called) if called else None
    for part in body.instructions.values() if body else ():
        yield from _parts(module, part)
