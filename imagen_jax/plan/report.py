"""A plan: what one compiled program needs, how long it takes at best, and whether it fits."""

from __future__ import annotations

import dataclasses
import json
from typing import Any

from imagen_jax.chips import GIB, Chip
from imagen_jax.plan import cost, hlo
from imagen_jax.plan.products import untuned_convolutions
from imagen_jax.plan.programs import Program

WORST = 8
"""Arrays and kernels that a report lists."""


@dataclasses.dataclass(frozen=True)
class Plan:
    """All figures are of one device unless they say otherwise; on TPUs a device is a chip.

    Attributes:
      stage: its name in the config.
      job: "train", "sample" or "embed".
      where: topology, or this machine's kind of device.
      devices: devices of the mesh.
      mesh: sizes of the axes that are longer than 1.
      settings: config values that decide memory and time: batch size, accumulation, remat.
      parameters: parameters of the network.
      compile_seconds: seconds of compilation.
      memory: bytes by kind: arguments, temp (activations and other intermediate arrays), code.
      memory_limit: bytes of main memory; None where it is not known.
      flops: products run, FLOP.
      model_flops: products that the mathematics asks for, FLOP.
      hbm_bytes: moved to and from the main memory.
      collectives: kind -> times it runs, bytes sent within the slice, and between slices.
      terms: seconds that each of compute, memory and links takes if nothing else did.
      images: images of one call, all devices together.
      calls: calls of the program, for the whole job: train steps; 1 for other jobs.
      padding: arrays by how many bytes their padding wastes: [waste, bytes, what].
      kernels: kernels by traffic with the main memory: [bytes, what].
      source: source of the chip's rates.
      untuned: convolutions whose scratch memory is not counted, see products.untuned_convolutions.
    """

    stage: str
    job: str
    where: str
    devices: int
    mesh: dict[str, int]
    settings: dict[str, Any]
    parameters: int
    compile_seconds: float
    memory: dict[str, int]
    memory_limit: float | None
    flops: float
    model_flops: float
    hbm_bytes: float
    collectives: dict[str, dict[str, float]]
    terms: dict[str, float]
    images: int
    calls: int
    padding: list[tuple[int, int, str]]
    kernels: list[tuple[float, str]]
    source: str
    untuned: int

    @property
    def total_memory(self) -> int:
        """Bytes of main memory in use at the peak."""
        return sum(self.memory.values())

    @property
    def fits(self) -> bool:
        """True if that is less than the device has, or if that is unknown."""
        return self.memory_limit is None or self.total_memory <= self.memory_limit

    @property
    def seconds(self) -> float | None:
        """Least time of one call: the longest term, the others hidden behind it."""
        return max(self.terms.values()) if self.terms else None

    @property
    def mfu(self) -> float | None:
        """Bound on model FLOPs utilisation (Chowdhery et al. 2022, PaLM, appendix B)."""
        if not self.terms:
            return None
        peak = self.flops / self.terms["compute"]
        return self.model_flops / (max(self.terms.values()) * peak)

    def to_json(self) -> str:
        """Everything, with what follows from it."""
        figures = dataclasses.asdict(self) | {
            "total_memory": self.total_memory,
            "fits": self.fits,
            "seconds": self.seconds,
            "mfu_bound": self.mfu,
        }
        return json.dumps(figures, indent=1)


def make_plan(program: Program, chip: Chip | None, slice_devices: int | None = None) -> Plan:
    """Reads the figures of a compiled program.

    Args:
      program: the compiled program.
      chip: the rates of its devices; None where they are not known, which leaves out the times.
      slice_devices: devices of one slice, where it spans several.
    """
    module = hlo.parse(program.compiled.as_text())
    counted = cost.program_cost(module, slice_devices)
    analysed = program.compiled.memory_analysis()
    memory = dict(program.arguments)
    # Arguments as the program lays them out: padding is what the shapes alone do not tell.
    memory["padding"] = max(0, analysed.argument_size_in_bytes - sum(program.arguments.values()))
    memory["results"] = analysed.output_size_in_bytes - analysed.alias_size_in_bytes
    memory["temp"] = analysed.temp_size_in_bytes
    memory["code"] = analysed.generated_code_size_in_bytes
    terms = {}
    if chip is not None:
        inside = sum(values[1] for values in counted.links.values())
        between = sum(values[2] for values in counted.links.values())
        terms = {
            "compute": counted.flops / chip.flops,
            "memory": counted.hbm_bytes / chip.hbm_rate,
            "links": inside / chip.link_rate,
            "network": between / chip.network_rate,
        }
    kernels = sorted(((size, name) for name, size in counted.kernels.items()), reverse=True)
    return Plan(
        stage=program.stage,
        job=program.job,
        where=program.where,
        devices=program.mesh.size,
        mesh={name: size for name, size in program.mesh.shape.items() if size > 1},
        settings=program.settings,
        parameters=program.parameters,
        compile_seconds=program.seconds,
        memory={kind: size for kind, size in memory.items() if size},
        memory_limit=None if chip is None else chip.hbm_bytes,
        flops=counted.flops,
        model_flops=program.model_flops / program.mesh.size,
        hbm_bytes=counted.hbm_bytes,
        collectives={
            kind: {"times": times, "bytes": inside, "between_slices": between}
            for kind, (times, inside, between) in counted.links.items()
        },
        terms=terms,
        images=program.images,
        calls=program.calls,
        padding=padding_waste(module)[:WORST],
        kernels=[(size, name) for size, name in kernels[:WORST]],
        source="" if chip is None else chip.source,
        untuned=sum(map(untuned_convolutions, module.computations.values())),
    )


def padding_waste(module: hlo.Module) -> list[tuple[int, int, str]]:
    """Arrays in the main memory by the bytes that padding to whole tiles wastes: the vector
    registers of a TPU hold 8 sublanes of 128 lanes.

    Returns:
      (wasted bytes, bytes of the values, description), the worst first, each shape once.
    """
    worst: dict[tuple[str, tuple[int, ...]], tuple[int, int, str]] = {}
    fused = {
        i.attribute("calls")
        for c in module.computations.values()
        for i in c.instructions.values()
        if i.opcode == "fusion"
    }
    for computation in module.computations.values():
        if computation.name in fused:
            continue
        for instruction in computation.instructions.values():
            if instruction.opcode in ("tuple", "get-tuple-element", "while", "bitcast"):
                continue
            for shape in instruction.shapes:
                if not shape.on_chip and shape.padded > shape.size:
                    found = (
                        shape.padded - shape.size, shape.size, cost.describe(instruction)
                    )  # fmt: skip
                    key = (shape.dtype, shape.dims)
                    worst[key] = max(worst.get(key, found), found)
    return sorted(worst.values(), reverse=True)


def format_plan(plan: Plan) -> str:
    """The plan as a page of text."""
    mesh = " x ".join(f"{name} {size}" for name, size in plan.mesh.items()) or "one device"
    settings = ", ".join(f"{name} {value}" for name, value in plan.settings.items())
    lines = [
        f"{plan.stage}: {plan.job} on {plan.where} ({plan.devices} devices: {mesh})",
        f"{plan.parameters / 1e6:,.0f}M parameters, {settings}; compiled in "
        f"{plan.compile_seconds:.0f} s",
        "",
        "memory of a device, GiB",
    ]
    for kind, size in plan.memory.items():
        lines.append(f"  {kind:<12}{size / GIB:8.2f}  {_bar(size, plan)}")
    lines.append(f"  {'total':<12}{plan.total_memory / GIB:8.2f}")
    if plan.memory_limit is not None:
        verdict = "fits" if plan.fits else "DOES NOT FIT"
        lines[-1] += f"  of {plan.memory_limit / GIB:.1f}: {verdict}"
    if plan.untuned:
        lines.append(
            f"  not counted: scratch memory of {plan.untuned} convolutions, which cuDNN chooses by "
            "trying on the card"
        )
    lines += [
        "",
        "work of a device in one " + ("step" if plan.job == "train" else "call"),
        f"  products    {plan.flops / 1e12:10.4g} TFLOP, of which the model asks for "
        f"{plan.model_flops / 1e12:.4g}",
        f"  main memory {plan.hbm_bytes / 1e9:10.1f} GB",
    ]
    for kind, values in plan.collectives.items():
        between = values["between_slices"]
        lines.append(
            f"  {kind:<18}{(values['bytes'] + between) / 1e9:5.2f} GB sent, {values['times']:.0f} x"
            + (f", {between / 1e9:.2f} GB of it between slices" if between else "")
        )
    if plan.terms:
        assert plan.seconds is not None
        assert plan.mfu is not None
        terms = ", ".join(f"{name} {t * 1e3:.0f} ms" for name, t in plan.terms.items() if t)
        hours = plan.calls * plan.seconds / 3600
        lines += [
            "",
            f"at best (rates: {plan.source})",
            f"  {terms}",
            f"  {plan.seconds * 1e3:.0f} ms a {'step' if plan.job == 'train' else 'call'}, "
            f"{_pace(plan.images, plan.seconds)}, MFU {plan.mfu:.0%}",
        ]
        if plan.job == "train":
            lines.append(
                f"  {plan.calls:,} steps: {hours / 24:,.1f} days, "
                f"{hours * plan.devices:,.0f} chip-hours"
            )
    lines += ["", "kernels that move most"]
    lines += [f"  {size / 1e9:7.2f} GB  {name[:88]}" for size, name in plan.kernels]
    if plan.padding:
        lines += ["", "arrays that padding wastes most of"]
        lines += [
            f"  {waste / 1e6:7.1f} MB beside {size / 1e6:.1f}  {name[:80]}"
            for waste, size, name in plan.padding
        ]
    return "\n".join(lines)


def _pace(images: int, seconds: float) -> str:
    """Return images a second, or seconds an image where those are more."""
    if images < seconds:
        return f"{seconds / images:.1f} s an image"
    return f"{images / seconds:,.0f} images/s"


def _bar(size: int, plan: Plan) -> str:
    whole = plan.memory_limit or plan.total_memory
    return "#" * min(40, round(40 * size / whole))
