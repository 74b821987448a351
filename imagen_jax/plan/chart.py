"""Memory and time of a plan as an image."""

from __future__ import annotations

from pathlib import Path

from imagen_jax.chips import GIB
from imagen_jax.plan.report import Plan


def draw(plan: Plan, path: str | Path) -> None:
    """Writes an image: memory by kind against what there is, the terms of the least time, and the
    estimated time by category where there is one."""
    from matplotlib.figure import Figure

    panels = 2 if plan.estimate is None else 3
    figure = Figure(figsize=(4.5 * panels, 3.6), layout="constrained")
    memory, time, *rest = figure.subplots(1, panels)
    figure.suptitle(f"{plan.stage}: {plan.job} on {plan.where}, {plan.devices} devices")
    kinds = list(plan.memory)
    memory.barh(kinds, [size / GIB for size in plan.memory.values()], color="#4878a8")
    memory.barh(["total"], [plan.total_memory / GIB], color="#223a52")
    if plan.memory_limit is not None:
        memory.axvline(plan.memory_limit / GIB, color="#b03030")
        memory.set_title(
            f"{plan.total_memory / GIB:.1f} of {plan.memory_limit / GIB:.1f} GiB: "
            + ("fits" if plan.fits else "does not fit"),
            fontsize=10,
        )
    memory.set_xlabel("GiB of a device")
    memory.invert_yaxis()
    if plan.terms and plan.seconds is not None and plan.mfu is not None:
        names = [name for name, seconds in plan.terms.items() if seconds]
        time.barh(names, [plan.terms[name] * 1e3 for name in names], color="#5f9e6e")
        time.barh(
            ["model alone"],
            [plan.model_flops / plan.flops * plan.terms["compute"] * 1e3],
            color="#b8cfbd",
        )
        time.set_title(f"MFU {plan.mfu:.0%} at best", fontsize=10)
        time.invert_yaxis()
    else:
        time.set_axis_off()
    axis = "ms of a " + ("step" if plan.job == "train" else "call")
    time.set_xlabel(axis)
    if plan.estimate is not None:
        (estimated,) = rest
        parts = plan.estimate.by_category
        estimated.barh(list(parts), [s * 1e3 for s in parts.values()], color="#b8864b")
        estimated.invert_yaxis()
        estimated.set_xlabel(axis)
        estimated.set_title(
            f"{plan.estimate.seconds * 1e3:,.0f} ms by the cost model, MFU "
            f"{plan.utilisation(plan.estimate.seconds):.0%}",
            fontsize=10,
        )
    figure.savefig(path, dpi=120, format="png")
