"""Tries meshes, rematerialisation policies and accumulation, and ranks what fits."""

from __future__ import annotations

import dataclasses
import itertools
import sys
from collections.abc import Collection, Iterator, Mapping, Sequence

from tqdm import tqdm

from imagen_jax import sharding
from imagen_jax.chips import GIB
from imagen_jax.models.stack import REMAT
from imagen_jax.plan.jobs import Target
from imagen_jax.plan.programs import train_program
from imagen_jax.plan.report import Plan, make_plan
from imagen_jax.stage import Stage
from imagen_jax.stage_config import MeshConfig

ACCUMULATION = (1, 2, 4)
TERMS = ("compute", "memory", "links", "network")
"""Of the least time of a step, as report.Plan has them."""


def meshes(devices: int) -> Iterator[dict[str, int]]:
    """Meshes worth trying: parameters divided over all devices, over fewer, with copies, and
    output channels divided over 2 or 4."""
    for tensor in (1, 2, 4):
        for copies in (1, 4, 16):
            if devices % (tensor * copies) == 0 and devices >= tensor * copies:
                yield {"data": copies, "fsdp": devices // (tensor * copies), "tensor": tensor}


def choices(
    stage: Stage, devices: int, fixed: Collection[str] = ()
) -> list[tuple[dict[str, int], str, tuple[int, ...]]]:
    """Candidates of a search: the stage's own mesh and policy first.

    Args:
      fixed: those of "mesh", "remat" and "accumulation" that keep the stage's value.

    Returns:
      (axes of the mesh, policy, accumulations from the fewest parts on) each.

    Raises:
      UserError: the stage's own mesh does not fit the devices.
    """
    tried = [_longer(sharding.mesh_sizes(stage.mesh.axes(), devices))]
    if "mesh" not in fixed:
        tried += [axes for axes in map(_longer, meshes(devices)) if axes not in tried]
    policy = stage.network.remat
    policies = [policy]
    if "remat" not in fixed and stage.network.has_field("remat"):
        policies += [name for name in REMAT if name != policy]
    parts = (stage.train.accumulation,) if "accumulation" in fixed else ACCUMULATION
    return [(axes, remat, parts) for axes, remat in itertools.product(tried, policies)]


def search(
    stage: Stage, target: Target, effort: str, fixed: Collection[str] = ()
) -> tuple[list[Plan], list[str]]:
    """Compiles the train step for every choice, with a progress bar and a line for each plan.

    Where a mesh and policy fit without accumulation, more of it is not tried: it only costs. Ctrl-C
    ends the search when the compilation under way ends; what was compiled is ranked.

    Args:
      stage: whose batch size stays as it is.
      target: devices; where their rates are not known, plans are ranked by FLOPs.
      effort: key of programs.EFFORT.
      fixed: see choices.

    Returns:
      (plans: those that fit first, the fastest of them first; what could not be compiled, and why)

    Raises:
      UserError: the stage's own mesh does not fit the devices.
    """
    plans: list[Plan] = []
    failed: list[str] = []
    with tqdm(choices(stage, len(target.devices), fixed), desc="plans", unit="choice") as progress:
        try:
            for axes, remat, parts in progress:
                for accumulation in parts:
                    name = f"{_shown(axes)} remat {remat} accumulation {accumulation}"
                    progress.set_postfix_str(name)
                    try:
                        changed = with_choice(stage, axes, remat, accumulation)
                        mesh = sharding.make_mesh(axes, target.devices)
                        program = train_program(changed, mesh, target.name, effort)
                        plan = make_plan(program, target.chip, target.slice_devices)
                    except Exception as error:  # the compiler has many ways of refusing
                        failed.append(f"{name}: {str(error).splitlines()[0][:200]}")
                        progress.write(failed[-1], file=sys.stderr)
                        continue
                    plans.append(plan)
                    progress.write(_row(plan), file=sys.stderr)
                    if plan.fits:
                        break
        except KeyboardInterrupt:
            failed.append(f"{name} and what follows it: stopped")
    plans.sort(key=_rank)
    return plans, failed


def _rank(plan: Plan) -> tuple[bool, float, float]:
    """Sort key: programs that fit first, then by the estimated time where there is one, else by the
    longest term of time, then by their sum."""
    estimated = None if plan.estimate is None else plan.estimate.seconds
    return not plan.fits, estimated or plan.seconds or plan.flops, sum(plan.terms.values())


def with_choice(stage: Stage, axes: dict[str, int], remat: str, accumulation: int) -> Stage:
    """The stage with another mesh, policy and accumulation."""
    return dataclasses.replace(
        stage,
        network=stage.network.with_remat(remat),
        mesh=MeshConfig(**axes),
        train=dataclasses.replace(stage.train, accumulation=accumulation),
    )


def format_ranking(plans: Sequence[Plan], failed: Sequence[str]) -> str:
    """A table of plans, the best first."""
    header = f"{'mesh':<30}{'remat':<10}{'parts':>5}{'GiB':>7}  fits"
    if any(plan.terms for plan in plans):
        header += "".join(f"{name:>9}" for name in TERMS) + f"{'MFU':>6}"
    if any(plan.estimate for plan in plans):
        header += f"{'estimate':>10}{'MFU':>6}"
    return "\n".join([header, *map(_row, plans), *(f"not compiled: {line}" for line in failed)])


def _row(plan: Plan) -> str:
    """A plan's line of the table."""
    line = f"{_shown(plan.mesh):<30}{plan.settings['remat']:<10}{plan.settings['accumulation']:>5}"
    line += f"{plan.total_memory / GIB:7.2f}  {'yes' if plan.fits else 'no':<4}"
    if plan.mfu is not None:
        line += "".join(f"{plan.terms[name] * 1e3:6.0f} ms" for name in TERMS) + f"{plan.mfu:6.0%}"
    if plan.estimate is not None:
        seconds = plan.estimate.seconds
        line += f"{seconds * 1e3:7.0f} ms{plan.utilisation(seconds):6.0%}"
    return line


def _longer(axes: Mapping[str, int]) -> dict[str, int]:
    """Without the axes of length 1."""
    return {name: size for name, size in axes.items() if size > 1}


def _shown(axes: Mapping[str, int]) -> str:
    """Axes of a mesh as --mesh takes them."""
    return " ".join(f"{name}={size}" for name, size in axes.items()) or "one device"
