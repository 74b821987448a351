"""Reads the text of a compiled program (XLA's HLO): computations, instructions, shapes, layouts."""

from __future__ import annotations

import dataclasses
import math
import re

from imagen_jax.errors import UserError

DTYPE_BITS = {
    "pred": 8, "s4": 4, "u4": 4, "s8": 8, "u8": 8, "s16": 16, "u16": 16, "bf16": 16, "f16": 16,
    "s32": 32, "u32": 32, "f32": 32, "s64": 64, "u64": 64, "f64": 64, "c64": 64, "token": 0,
    "opaque": 0, "f8e4m3fn": 8, "f8e5m2": 8,
}  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Shape:
    """One array of a program.

    Attributes:
      dtype: XLA's name of it.
      dims: sizes of the axes.
      order: axes from the fastest to the slowest in memory.
      tile: sizes that the fastest axes are padded to multiples of, slowest of them first.
      on_chip: it lives in the chip's own memory, not in the main memory.
    """

    dtype: str
    dims: tuple[int, ...]
    order: tuple[int, ...]
    tile: tuple[int, ...]
    on_chip: bool

    @property
    def size(self) -> int:
        """Bytes of the values."""
        return math.prod(self.dims) * DTYPE_BITS[self.dtype] // 8

    @property
    def padded(self) -> int:
        """Bytes that it takes in memory, padded to whole tiles."""
        dims = [self.dims[axis] for axis in reversed(self.order)] or [1]
        for back, tile in enumerate(reversed(self.tile), start=1):
            if back <= len(dims):
                dims[-back] = -(-dims[-back] // tile) * tile
        return math.prod(dims) * DTYPE_BITS[self.dtype] // 8


@dataclasses.dataclass(frozen=True)
class Instruction:
    """One line of a computation: its result, what it does, to what."""

    name: str
    shapes: tuple[Shape, ...]
    opcode: str
    operands: tuple[str, ...]
    attributes: str
    literal: str

    def attribute(self, key: str) -> str | None:
        """Name that an attribute such as calls= or body= refers to."""
        found = re.search(rf"\b{key}=%?([\w.\-]+)", self.attributes)
        return found[1] if found else None

    @property
    def custom_call_target(self) -> str:
        """Function that a custom call calls; empty for other instructions."""
        found = re.search(r'custom_call_target="([^"]*)"', self.attributes)
        return found[1] if found else ""


@dataclasses.dataclass(frozen=True)
class Computation:
    """A function of the program: its instructions by name, in order, and the name of its result."""

    name: str
    instructions: dict[str, Instruction]
    root: str

    def parameter(self, index: int) -> str | None:
        """Name of a parameter."""
        for instruction in self.instructions.values():
            if instruction.opcode == "parameter" and instruction.literal == str(index):
                return instruction.name
        return None

    def users(self, name: str) -> list[Instruction]:
        """Instructions that read it."""
        return [i for i in self.instructions.values() if name in i.operands]


@dataclasses.dataclass(frozen=True)
class Module:
    """All computations of a program, and the name of the one it starts with."""

    computations: dict[str, Computation]
    entry: str


_SHAPE = re.compile(r"(\w+)\[([\d,]*)\](?:\{([\d,]*)(?::([^}]*))?\})?")
_HEADER = re.compile(r"^(ENTRY )?%?([\w.\-]+) \(.*\) -> .* \{$")
_LINE = re.compile(r"^\s+(ROOT )?%?([\w.\-]+) = (.*)$")
_END = re.compile(r"^\}(?:, execution_thread=.*)?$")


def parse_shapes(text: str) -> tuple[Shape, ...]:
    """All arrays of a result type: one, or those of a tuple.

    Raises:
      UserError: an element type that is not known here.
    """
    shapes = []
    for dtype, dims, order, layout in _SHAPE.findall(text):
        if dtype not in DTYPE_BITS:
            raise UserError(f"unknown element type {dtype!r} in {text!r}")
        sizes = tuple(int(d) for d in dims.split(",") if d)
        tile = re.search(r"T\(([\d,*]+)\)", layout)
        space = re.search(r"S\((\d+)\)", layout)
        shapes.append(
            Shape(
                dtype,
                sizes,
                tuple(int(d) for d in order.split(",") if d) or tuple(reversed(range(len(sizes)))),
                tuple(int(t) for t in tile[1].split(",") if t.isdigit()) if tile else (),
                space is not None and space[1] != "0",
            )
        )
    return tuple(shapes)


def _closing(text: str, start: int) -> int:
    """Position of the parenthesis that closes the one at `start`."""
    depth = 0
    for i in range(start, len(text)):
        depth += (text[i] == "(") - (text[i] == ")")
        if depth == 0:
            return i
    raise UserError(f"unbalanced parentheses in {text!r}")


def _parse_instruction(name: str, text: str) -> Instruction:
    end = _closing(text, 0) + 1 if text.startswith("(") else text.index(" ")
    result, rest = text[:end], text[end:].lstrip()
    opening = rest.index("(")
    closing = _closing(rest, opening)
    inside = rest[opening + 1 : closing]
    return Instruction(
        name,
        parse_shapes(result),
        rest[:opening],
        tuple(re.findall(r"%([\w.\-]+)", inside)),
        rest[closing + 1 :],
        inside,
    )


def parse(text: str) -> Module:
    """Reads `compiled.as_text()`.

    Raises:
      UserError: it has no entry computation.
    """
    computations: dict[str, Computation] = {}
    entry = name = root = ""
    texts: dict[str, str] = {}
    for line in text.splitlines():
        if header := _HEADER.match(line):
            name, texts, root = header[2], {}, ""
            entry = name if header[1] else entry
        elif name and _END.match(line):
            instructions = {key: _parse_instruction(key, texts[key]) for key in texts}
            computations[name] = Computation(name, instructions, root)
            name = ""
        elif name and (found := _LINE.match(line)):
            last = found[2]
            texts[last] = found[3]
            root = last if found[1] else root
        elif name and texts:  # metadata of Pallas kernels has lines of its own
            texts[last] += line
    if not entry:
        raise UserError("this is no HLO text: it has no ENTRY computation")
    return Module(computations, entry)
