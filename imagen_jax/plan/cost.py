"""Cost of one run of a compiled program on one device, counted from its text.

The compiler's own cost_analysis() counts the body of a loop once, however often it runs, and its
"optimal_seconds" can be negative; this counts by itself:

* FLOPs: convolutions and matrix products, every one as often as it runs.
* Traffic with the main memory: for each kernel (an instruction that is not fused into another),
  what it reads and writes there, padded as it lies in memory. What a kernel only takes a slice of
  counts as the slice, and so does what is updated in place. Arrays in the chip's own memory are
  free.
* Collectives: bytes that a device sends over its links, by the usual ring counts.
"""

from __future__ import annotations

import collections
import dataclasses
import functools
import math
import re

from imagen_jax.errors import UserError
from imagen_jax.plan.collectives import COLLECTIVES, bytes_sent, is_repeated, replica_group
from imagen_jax.plan.hlo import Computation, Instruction, Module, Shape
from imagen_jax.plan.products import PRODUCTS, instruction_flops

FREE = {
    "parameter", "constant", "tuple", "get-tuple-element", "bitcast", "after-all", "partition-id",
    "replica-id", "while", "call", "conditional", "opt-barrier", "domain",
}  # fmt: skip


@dataclasses.dataclass
class Cost:
    """Of one run on one device.

    Attributes:
      flops: floating-point operations of products.
      hbm_bytes: read from and written to the main memory.
      links: kind of collective -> [how often it runs, bytes sent within a slice, bytes sent
        between slices].
      kernels: description -> bytes that it moves to and from the main memory.
    """

    flops: float = 0.0
    hbm_bytes: float = 0.0
    links: dict[str, list[float]] = dataclasses.field(
        default_factory=lambda: collections.defaultdict(lambda: [0.0, 0.0, 0.0])
    )
    kernels: dict[str, float] = dataclasses.field(
        default_factory=lambda: collections.defaultdict(float)
    )

    def add(self, other: Cost, times: float) -> None:
        """Adds another cost, so many times."""
        self.flops += times * other.flops
        self.hbm_bytes += times * other.hbm_bytes
        for kind, values in other.links.items():
            for i, value in enumerate(values):
                self.links[kind][i] += times * value
        for name, value in other.kernels.items():
            self.kernels[name] += times * value


def program_cost(module: Module, slice_devices: int | None = None) -> Cost:
    """Cost of a run of the program on one device.

    Args:
      module: as hlo.parse reads it.
      slice_devices: devices of one slice, where the program spans several; None for one slice.
    """
    return Counter(module, slice_devices).of(module.entry, kernels=True)


class Counter:
    """Costs of the computations and instructions of one program.

    Args:
      module, slice_devices: see program_cost.
    """

    def __init__(self, module: Module, slice_devices: int | None = None) -> None:
        self.module = module
        self.slice_devices = slice_devices
        self.of = functools.cache(self._of)

    def _of(self, name: str, kernels: bool) -> Cost:
        """Cost of a computation; with `kernels`, its instructions are kernels of their own."""
        cost = Cost()
        computation = self.module.computations[name]
        for instruction in computation.instructions.values():
            opcode = instruction.opcode
            if opcode == "while":
                times = trip_count(self.module, computation, instruction)
                for key in ("body", "condition"):
                    cost.add(self.of(instruction.attribute(key), kernels), times)
            elif opcode == "conditional":
                made = [self.of(branch, kernels) for branch in branches(instruction)]
                cost.add(max(made, key=lambda c: (c.flops, c.hbm_bytes)), 1)
            elif opcode == "call":
                cost.add(self.of(instruction.attribute("to_apply"), kernels), 1)
            else:
                cost.add(self.alone(computation, instruction), 1)
            if kernels and opcode not in FREE and not opcode.endswith("-done"):
                moved = self.traffic(computation, instruction)
                cost.hbm_bytes += moved
                if moved:
                    cost.kernels[describe(instruction)] += moved
        return cost

    def alone(self, computation: Computation, instruction: Instruction) -> Cost:
        """FLOPs and collectives of one instruction and of what is fused into it."""
        cost = Cost()
        if instruction.opcode in PRODUCTS:
            cost.flops += instruction_flops(computation, instruction)
        self._count_links(cost, computation, instruction)
        called = instruction.attribute("calls")
        if called is not None and (
            instruction.opcode == "fusion" or instruction.opcode.endswith("-start")
        ):
            cost.add(self.of(called, False), 1)
        return cost

    def traffic(self, computation: Computation, instruction: Instruction) -> float:
        """Bytes that a kernel moves to and from the main memory."""
        called = instruction.attribute("calls")
        body = self.module.computations.get(called) if called else None
        total = 0.0
        for i, operand in enumerate(instruction.operands):
            shapes = computation.instructions[operand].shapes
            if len(shapes) != 1 or shapes[0].on_chip:
                continue
            whole = float(shapes[0].padded)
            if body is not None and (name := body.parameter(i)) is not None:
                total += min(whole, self._read(body, name, shapes[0]))
            elif instruction.opcode in ("dynamic-slice", "slice", "gather"):
                total += min(whole, sum(s.padded for s in instruction.shapes)) if i == 0 else whole
            elif instruction.opcode == "dynamic-update-slice" and i == 0:
                continue
            else:
                total += whole
        return total + self._written(computation, instruction, body)

    def _read(self, body: Computation, name: str, shape: Shape) -> float:
        """Bytes of a parameter that a fusion reads."""
        total = 0.0
        for user in body.users(name):
            if user.opcode in ("dynamic-slice", "slice") and user.operands[0] == name:
                total += _scaled(user.shapes[0], shape)
            elif user.opcode == "dynamic-update-slice" and user.operands[0] == name:
                continue
            elif user.opcode in ("bitcast", "copy") and user.operands == (name,):
                total += self._read(body, user.name, shape)
            elif user.opcode == "fusion" and (inner := self._body(user)) is not None:
                index = user.operands.index(name)
                parameter = inner.parameter(index)
                total += self._read(inner, parameter, shape) if parameter else shape.padded
            else:
                return float(shape.padded)
        return total

    def _written(
        self, computation: Computation, instruction: Instruction, body: Computation | None
    ) -> float:
        if body is not None and instruction.opcode == "fusion":
            return self._results(body, body.root)
        if instruction.opcode == "dynamic-update-slice":
            update = computation.instructions[instruction.operands[1]].shapes[0]
            return 0.0 if instruction.shapes[0].on_chip else float(update.padded)
        if instruction.opcode.endswith("-start"):  # (inputs, outputs, state): the second is made
            made = instruction.shapes[1:2] if len(instruction.shapes) > 1 else instruction.shapes
            if instruction.opcode == "copy-start":
                made = instruction.shapes[:1]
            return float(sum(s.padded for s in made if not s.on_chip))
        return float(sum(s.padded for s in instruction.shapes if not s.on_chip))

    def _results(self, body: Computation, name: str) -> float:
        """Bytes that a fusion writes for one of its results."""
        made = body.instructions[name]
        if made.opcode == "tuple":
            return sum(self._results(body, operand) for operand in made.operands)
        if made.shapes[0].on_chip:
            return 0.0
        if made.opcode == "bitcast":
            inner = body.instructions[made.operands[0]]
            if inner.opcode in ("dynamic-update-slice", "fusion", "bitcast"):
                return min(float(made.shapes[0].padded), self._results(body, inner.name))
        if made.opcode == "dynamic-update-slice":
            return float(body.instructions[made.operands[1]].shapes[0].padded)
        if made.opcode == "fusion" and (inner_body := self._body(made)) is not None:
            return self._results(inner_body, inner_body.root)
        return float(sum(s.padded for s in made.shapes if not s.on_chip))

    def _body(self, instruction: Instruction) -> Computation | None:
        called = instruction.attribute("calls")
        return self.module.computations.get(called) if called else None

    def _count_links(self, cost: Cost, computation: Computation, instruction: Instruction) -> None:
        opcode = instruction.opcode.removesuffix("-start")
        if opcode not in COLLECTIVES or instruction.opcode.endswith("-done"):
            return
        if is_repeated(computation):
            return
        group, spans = replica_group(instruction.attributes, self.slice_devices)
        sent_in = sum(computation.instructions[o].shapes[0].size for o in instruction.operands)
        kind = opcode
        if opcode == "all-reduce" and computation.name.startswith("all-reduce-scatter"):
            kind = "reduce-scatter"  # one kernel of both: only a slice is kept
        sent = bytes_sent(kind, sent_in, group)
        values = cost.links[kind]
        values[0] += 1
        values[2 if spans else 1] += sent


def branches(instruction: Instruction) -> list[str]:
    """Names of the computations that a conditional chooses from."""
    found = re.search(r"branch_computations=\{([^}]*)\}", instruction.attributes)
    if found:
        return re.findall(r"%([\w.\-]+)", found[1])
    return re.findall(r"(?:true|false)_computation=%([\w.\-]+)", instruction.attributes)


def _scaled(taken: Shape, whole: Shape) -> float:
    """Padded bytes of what is taken of an array."""
    return whole.padded * math.prod(taken.dims) / max(1, math.prod(whole.dims))


def describe(instruction: Instruction) -> str:
    """Description of a kernel: its result and its place in the source."""
    source = re.search(r'op_name="([^"]*)"', instruction.attributes)
    where = source[1] if source else instruction.name
    for noise in (r"jit\(\w+\)/", "while/body/", "closed_call/", "checkpoint/", "block/"):
        where = re.sub(noise, "", where)
    return f"{instruction.opcode} {result(instruction)} {where}"


def result(instruction: Instruction) -> str:
    """Type and sizes of an instruction's largest result."""
    shape = max(instruction.shapes, key=lambda s: s.size, default=None)
    return "" if shape is None else f"{shape.dtype}[{','.join(map(str, shape.dims))}]"


def trip_count(module: Module, computation: Computation, loop: Instruction) -> int:
    """Trip count of a loop.

    Raises:
      UserError: its condition does not compare a counter with a constant.
    """
    known = re.search(r'known_trip_count[^0-9]*?"?n"?[^0-9]*(\d+)', loop.attributes)
    if known:
        return int(known[1])
    condition = module.computations[loop.attribute("condition") or ""]
    root = condition.instructions[condition.root]
    sides = [condition.instructions[name] for name in root.operands]
    limit = next((s for s in sides if s.opcode == "constant"), None)
    counter = next((s for s in sides if s.opcode == "get-tuple-element"), None)
    if root.opcode != "compare" or limit is None or counter is None:
        raise UserError(f"loop {loop.name} runs for a number of times that is not known")
    start = 0
    index = re.search(r"index=(\d+)", counter.attributes)
    state = computation.instructions[loop.operands[0]]
    if index and state.opcode == "tuple":
        first = computation.instructions[state.operands[int(index[1])]]
        if first.opcode == "constant":
            start = int(first.literal)
    steps = int(limit.literal) - start
    return steps + ("direction=LE" in root.attributes)
