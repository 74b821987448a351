"""A plan: what one compiled program needs, how long it takes at best, and whether it fits."""

from __future__ import annotations

import dataclasses
import itertools
import json
from typing import Any

from imagen_jax.chips import GIB, Chip
from imagen_jax.plan import cost, hlo
from imagen_jax.plan.estimate import Estimate, estimate
from imagen_jax.plan.products import untuned_convolutions
from imagen_jax.plan.programs import Program

WORST = 8
"""Arrays and kernels that a report lists by their bytes; half as many beside an estimate."""


@dataclasses.dataclass(frozen=True)
class Plan:
    """All figures are of one device unless they say otherwise; on TPUs a device is a chip.

    Attributes:
      stage: its name in the config.
      job: "train", "sample" or "embed".
      where: topology, or this machine's kind of device.
      devices: devices of the mesh.
      chips: chips that they are on.
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
      estimate: estimated time of one call; None but for TPUs and full effort.
      price: price of a chip-hour, in the user's currency; None where the user gives none.
    """

    stage: str
    job: str
    where: str
    devices: int
    chips: int
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
    estimate: Estimate | None
    price: float | None = None

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
        return None if self.seconds is None else self.utilisation(self.seconds)

    def utilisation(self, seconds: float) -> float:
        """Model FLOPs utilisation of a call that takes so many seconds."""
        peak = self.flops / self.terms["compute"]
        return self.model_flops / (seconds * peak)

    def chip_hours(self, seconds: float) -> float:
        """Chip-hours of the whole job if a call takes so many seconds."""
        return self.calls * seconds / 3600 * self.chips

    def to_json(self) -> str:
        """Everything, with what follows from it."""
        figures = dataclasses.asdict(self) | {
            "total_memory": self.total_memory,
            "fits": self.fits,
            "seconds": self.seconds,
            "mfu_bound": self.mfu,
        }
        if self.estimate is not None:
            figures["mfu_estimate"] = self.utilisation(self.estimate.seconds)
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
    quick = program.settings.get("effort") == "quick"  # its schedules are not those that run
    kernels = sorted(((size, name) for name, size in counted.kernels.items()), reverse=True)
    return Plan(
        stage=program.stage,
        job=program.job,
        where=program.where,
        devices=program.mesh.size,
        chips=program.mesh.size // (1 if chip is None else chip.devices),
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
        estimate=None if chip is None or quick else estimate(module, chip, slice_devices),
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
        f"{plan.stage}: {plan.job} on {plan.where} ({plan.devices} devices"
        + (f" of {plan.chips} chips" if plan.chips != plan.devices else "")
        + f": {mesh})",
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
    if plan.seconds is not None:
        terms = ", ".join(f"{name} {t * 1e3:.0f} ms" for name, t in plan.terms.items() if t)
        lines += ["", f"at best (rates: {plan.source})", f"  {terms}", *_pace(plan, plan.seconds)]
        if plan.estimate is not None:
            lines += ["", *_estimated(plan, plan.estimate)]
        elif plan.settings.get("effort") == "quick":
            lines += [
                "",
                "no estimate with effort quick, whose schedules never run: use --effort full",
            ]
    worst = WORST if plan.estimate is None else WORST // 2
    lines += ["", "kernels that move most"]
    lines += [f"  {size / 1e9:7.2f} GB  {name[:88]}" for size, name in plan.kernels[:worst]]
    if plan.padding:
        lines += ["", "arrays that padding wastes most of"]
        lines += [
            f"  {waste / 1e6:7.1f} MB beside {size / 1e6:.1f}  {name[:80]}"
            for waste, size, name in plan.padding[:worst]
        ]
    return "\n".join(lines)


def _pace(plan: Plan, seconds: float) -> list[str]:
    """Time, throughput, utilisation and cost if a call takes so many seconds."""
    if plan.job == "sample":
        pace = f"{seconds / plan.images:.3g} s an image"
    else:
        unit = "captions" if plan.job == "embed" else "images"
        pace = f"{plan.images / seconds:,.0f} {unit}/s"
    lines = [
        f"  {seconds * 1e3:,.0f} ms a {'step' if plan.job == 'train' else 'call'}, {pace}, "
        f"MFU {plan.utilisation(seconds):.0%}"
    ]
    hours = plan.chip_hours(seconds)
    if plan.job == "train":
        days = plan.calls * seconds / 86400
        whole = f"{plan.calls:,} steps: {days:,.1f} days"
    else:
        what, count = ("captions", 10**6) if plan.job == "embed" else ("images", 1000)
        hours *= count / plan.images
        whole = f"{count:,} {what}"
    if plan.job == "train" or plan.price is not None:
        figure = f"{hours:,.0f}" if hours >= 10 else f"{hours:.3g}"
        lines.append(f"  {whole}, {figure} chip-hours")
        if plan.price is not None:
            lines[-1] += f", {hours * plan.price:,.2f} at {plan.price:g} each"
    return lines


def _estimated(plan: Plan, estimated: Estimate) -> list[str]:
    """The compiler's expectation: the time, its shares, and the dearest kernels."""
    lines = [
        "estimated by the compiler's cost model, not measured: for ranks and shares",
        *_pace(plan, estimated.seconds),
    ]
    shares = [
        [
            f"{name:<22}{seconds * 1e3:9.2f} ms {seconds / estimated.seconds:4.0%}"
            for name, seconds in part.items()
        ]
        for part in (estimated.by_category, estimated.by_place)
    ]
    rows = itertools.zip_longest(*shares, fillvalue="")
    lines += [f"  {left:<40}{right}".rstrip() for left, right in rows]
    lines.append(
        f"  {estimated.modelled * 1e3:.2f} ms of it by the chip's rates alone; beside the kernels "
        f"run {estimated.hidden * 1e3:.2f} ms of copies"
    )
    for count, what in (
        (estimated.saturated, "kernels whose estimate overflowed are left out"),
        (estimated.unstated, "Pallas kernels state no operations: by their bytes alone"),
    ):
        if count:
            lines.append(f"  {count} {what}")
    lines += ["", "dearest kernels"]
    for kernel in estimated.kernels:
        lines.append(
            f"  {kernel.total * 1e3:8.2f} ms {kernel.times:5} x {kernel.category:<21}"
            f"{kernel.place:<13} {kernel.result:<24} {kernel.name}"
        )
    return lines


def _bar(size: int, plan: Plan) -> str:
    whole = plan.memory_limit or plan.total_memory
    return "#" * min(40, round(40 * size / whole))
