"""Estimated time of one run of a compiled TPU program, by the compiler's own cost model.

For nearly every kernel the TPU compiler writes down how many cycles it expects it to take
("estimated_cycles"). These are added up here, and what it says nothing of is modelled:

* Loops count as often as they run, conditionals as their dearest branch, and a fusion as the one
  kernel it is, whatever is fused into it.
* A Pallas kernel takes the longer of its operations at the peak of products and its bytes at the
  bandwidth of the main memory, both as products.pallas_cost knows them: kernels that state nothing
  and are not splash attention count by their operands and results alone. Heads narrower than a
  matrix unit's 128 lanes fill only a part of it.
* A collective takes the bytes that a device sends, divided by the bandwidth of the links or of the
  network; any other copy the bytes that it moves, divided by the bandwidth of the main memory.
* Asynchronous collectives and copies run beside the kernels between their start and their end, one
  after another on the links, the network and the memory; what is not over by then is waited for,
  and that wait is what counts.
* An estimate that overflowed is left out and counted.

It is no measurement: ranks and shares are what it is for.
"""

from __future__ import annotations

import dataclasses
import functools
import re
from collections.abc import Collection, Iterable

from imagen_jax.chips import Chip
from imagen_jax.plan import cost
from imagen_jax.plan.collectives import phase
from imagen_jax.plan.hlo import Instruction, Module
from imagen_jax.plan.places import category, place
from imagen_jax.plan.products import PALLAS, pallas_cost

SATURATED = 2**53
"""Cycles beyond which an estimate is an overflow (2^63), not a time."""

DEAREST = 10
"""Kernels that an estimate lists."""


@dataclasses.dataclass(frozen=True)
class Kernel:
    """One kernel, or the wait for one asynchronous copy, and all that are like it.

    Attributes:
      name: name of the instruction, or of the first of them.
      result: type and sizes of its largest result.
      category, place: see places.py.
      seconds: time of one run.
      times: number of runs of all of them.
    """

    name: str
    result: str
    category: str
    place: str
    seconds: float
    times: int

    @property
    def total(self) -> float:
        """Seconds of all its runs."""
        return self.seconds * self.times


@dataclasses.dataclass(frozen=True)
class Estimate:
    """Estimated seconds of one run of a program on one device.

    Attributes:
      seconds: all of it.
      by_category, by_place: the same seconds, divided; see places.py.
      modelled: seconds of what the compiler had no estimate of.
      hidden: seconds of asynchronous collectives and copies that kernels hide.
      saturated: kernels that are left out, since their estimate overflowed.
      unstated: Pallas kernels that do not state their operations.
      kernels: the dearest of them.
    """

    seconds: float
    by_category: dict[str, float]
    by_place: dict[str, float]
    modelled: float
    hidden: float
    saturated: int
    unstated: int
    kernels: list[Kernel]


def estimate(module: Module, chip: Chip, slice_devices: int | None = None) -> Estimate | None:
    """Estimated time of a run of the program on one device.

    Args:
      module: as hlo.parse reads it, with instructions in the order in which they run.
      chip: rates of the device.
      slice_devices: see cost.program_cost.

    Returns:
      None where the compiler says nothing of cycles, or the chip's clock is not known.
    """
    if chip.clock is None:
        return None
    timer = _Timer(module, chip, chip.clock, slice_devices)
    seconds = timer.length(module.entry)
    if not timer.stated:
        return None
    timer.count(module.entry, 1)
    kernels = sorted(
        (
            Kernel(
                instruction.name,
                cost.result(instruction),
                category(module, instruction),
                place(module, instruction),
                timer.seconds[instruction.name],
                times,
            )
            for instruction, times in timer.runs.values()
        ),
        key=lambda kernel: -kernel.total,
    )
    return Estimate(
        seconds=seconds,
        by_category=_sums((kernel.category, kernel.total) for kernel in kernels),
        by_place=_sums((kernel.place, kernel.total) for kernel in kernels),
        modelled=sum(kernel.total for kernel in kernels if kernel.name not in timer.stated),
        hidden=sum(timer.hidden.get(kernel.name, 0.0) * kernel.times for kernel in kernels),
        saturated=len(timer.saturated & timer.runs.keys()),
        unstated=len(timer.unstated & timer.runs.keys()),
        kernels=_alike(kernels)[:DEAREST],
    )


def _alike(kernels: Iterable[Kernel]) -> list[Kernel]:
    """Kernels that differ in their name alone as one, under the first name; the dearest first.
    Layers that are not in a loop have such kernels."""
    found: dict[tuple[object, ...], Kernel] = {}
    for kernel in kernels:
        key = (kernel.result, kernel.category, kernel.place, kernel.seconds)
        times = kernel.times + (found[key].times if key in found else 0)
        found[key] = dataclasses.replace(found.get(key, kernel), times=times)
    return sorted((k for k in found.values() if k.total), key=lambda kernel: -kernel.total)


class _Timer:
    """Times every instruction of a program.

    Attributes:
      seconds: instruction -> seconds of one run; of what is asynchronous, by the name of its start,
        those that are waited for.
      hidden: start of something asynchronous -> its seconds beside kernels.
      runs: instruction -> (itself, how often it runs), after `count`.
      stated, saturated, unstated: instructions whose cycles the compiler states; that are left out;
        that are Pallas kernels of unknown operations.
    """

    def __init__(self, module: Module, chip: Chip, clock: float, slice_devices: int | None) -> None:
        self.module, self.chip, self.clock = module, chip, clock
        self.counter = cost.Counter(module, slice_devices)
        self.seconds: dict[str, float] = {}
        self.hidden: dict[str, float] = {}
        self.runs: dict[str, tuple[Instruction, int]] = {}
        self.stated: set[str] = set()
        self.saturated: set[str] = set()
        self.unstated: set[str] = set()
        self.length = functools.cache(self._length)

    def _length(self, name: str) -> float:
        """Seconds of one run of a computation."""
        computation = self.module.computations[name]
        now = 0.0
        free = {"links": 0.0, "network": 0.0, "memory": 0.0}  # seconds at which each is free
        under_way: dict[str, float] = {}  # start -> seconds at which it is over
        for instruction in computation.instructions.values():
            called = self._called(name, instruction)
            ends = phase(self.module, instruction)
            if called is not None:
                now += sum(times * self.length(other) for other, times in called)
            elif ends == "start":
                waits = self._moves(name, instruction)
                over = now
                for where, seconds in waits.items():
                    over = free[where] = max(over, free[where]) + seconds
                under_way[instruction.name] = over
                self.seconds[instruction.name] = 0.0
                self.hidden[instruction.name] = sum(waits.values())
            elif ends == "done":
                start = self._start(name, instruction, under_way.keys())
                if start is None:
                    continue
                waited = max(0.0, under_way.pop(start) - now)
                self.seconds[start] = waited
                self.hidden[start] = max(0.0, self.hidden[start] - waited)
                now += waited
            elif instruction.opcode not in cost.FREE:
                self.seconds[instruction.name] = self._alone(name, instruction)
                now += self.seconds[instruction.name]
        return now

    def _called(self, name: str, instruction: Instruction) -> list[tuple[str, int]] | None:
        """Computations that an instruction runs, and how often; None for a kernel."""
        opcode = instruction.opcode
        if opcode == "while":
            times = cost.trip_count(self.module, self.module.computations[name], instruction)
            return [(instruction.attribute(key) or "", times) for key in ("condition", "body")]
        if opcode == "conditional":
            return [(max(cost.branches(instruction), key=self.length), 1)]
        return [(instruction.attribute("to_apply") or "", 1)] if opcode == "call" else None

    def count(self, name: str, times: int) -> None:
        """Counts the runs of all kernels of a computation that runs so many times."""
        for instruction in self.module.computations[name].instructions.values():
            for other, inside in self._called(name, instruction) or ():
                self.count(other, times * inside)
            if instruction.name in self.seconds:
                before = self.runs.get(instruction.name, (instruction, 0))[1]
                self.runs[instruction.name] = (instruction, before + times)

    def _start(self, name: str, done: Instruction, under_way: Collection[str]) -> str | None:
        """The one of those under way that a "done" ends; None for one from another computation."""
        instructions = self.module.computations[name].instructions
        start = done
        while start.operands:
            start = instructions[start.operands[0]]
            if start.name in under_way:
                return start.name
        return None

    def _alone(self, name: str, instruction: Instruction) -> float:
        """Seconds of a kernel."""
        found = re.search(r'"estimated_cycles":"(\d+)"', instruction.attributes)
        if found is not None and int(found[1]) > 0:
            self.stated.add(instruction.name)
            if int(found[1]) >= SATURATED:
                self.saturated.add(instruction.name)
                return 0.0
            return int(found[1]) / self.clock
        if instruction.opcode == "custom-call":
            return self._custom_call(name, instruction)
        return sum(self._moves(name, instruction).values())

    def _custom_call(self, name: str, instruction: Instruction) -> float:
        if instruction.custom_call_target != PALLAS:
            return 0.0  # buffers and markers of the compiler's own
        computation = self.module.computations[name]
        known = pallas_cost(computation, instruction)
        if "flops" not in known:
            self.unstated.add(instruction.name)
        moved = known.get("bytes_accessed", self.counter.traffic(computation, instruction))
        products = known.get("flops", 0.0) / known.get("filled", 1.0)
        return max(products / self.chip.flops, moved / self.chip.hbm_rate)

    def _moves(self, name: str, instruction: Instruction) -> dict[str, float]:
        """Seconds on the links and the network of what is a collective, else on the memory."""
        computation = self.module.computations[name]
        links = self.counter.alone(computation, instruction).links
        if links:
            inside = sum(values[1] for values in links.values())
            between = sum(values[2] for values in links.values())
            return {
                "links": inside / self.chip.link_rate, "network": between / self.chip.network_rate
            }  # fmt: skip
        if "cross_program_prefetch_index" in instruction.attributes:
            return {}  # the run before has done it
        return {"memory": self.counter.traffic(computation, instruction) / self.chip.hbm_rate}


def _sums(values: Iterable[tuple[str, float]]) -> dict[str, float]:
    """Sums by name, the largest first; without what is nothing."""
    sums: dict[str, float] = {}
    for name, value in values:
        sums[name] = sums.get(name, 0.0) + value
    return {n: s for n, s in sorted(sums.items(), key=lambda item: -item[1]) if s > 0}
