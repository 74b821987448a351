"""Tries meshes, rematerialisation policies and accumulation, and ranks what fits."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterator, Sequence

from tqdm import tqdm

from imagen_jax import sharding
from imagen_jax.models.stack import REMAT
from imagen_jax.plan.jobs import Target
from imagen_jax.plan.programs import train_program
from imagen_jax.plan.report import Plan, make_plan
from imagen_jax.stage import Stage
from imagen_jax.stage_config import MeshConfig

ACCUMULATION = (1, 2, 4)


def meshes(devices: int) -> Iterator[dict[str, int]]:
    """Meshes worth trying: parameters divided over all devices, over fewer, with copies, and
    output channels divided over 2 or 4."""
    for tensor in (1, 2, 4):
        for copies in (1, 4, 16):
            if devices % (tensor * copies) == 0 and devices >= tensor * copies:
                yield {"data": copies, "fsdp": devices // (tensor * copies), "tensor": tensor}


def search(stage: Stage, target: Target, effort: str) -> tuple[list[Plan], list[str]]:
    """Compiles the train step for every choice, with a progress bar.

    Where a mesh and policy fit without accumulation, more of it is not tried: it only costs.

    Args:
      stage: whose batch size stays as it is.
      target: devices; where their rates are not known, plans are ranked by FLOPs.
      effort: key of programs.EFFORT.

    Returns:
      (plans: those that fit first, the fastest of them first; what could not be compiled, and why)
    """
    plans: list[Plan] = []
    failed: list[str] = []
    choices = list(itertools.product(meshes(len(target.devices)), REMAT))
    with tqdm(choices, desc="plans", unit="choice") as progress:
        for axes, remat in progress:
            for accumulation in ACCUMULATION:
                name = f"{axes} remat {remat} accumulation {accumulation}"
                progress.set_postfix_str(name)
                try:
                    changed = with_choice(stage, axes, remat, accumulation)
                    mesh = sharding.make_mesh(axes, target.devices)
                    program = train_program(changed, mesh, target.name, effort)
                    plan = make_plan(program, target.chip, target.slice_devices)
                except Exception as error:  # the compiler has many ways of refusing
                    failed.append(f"{name}: {str(error).splitlines()[0][:200]}")
                    continue
                plans.append(plan)
                if plan.fits:
                    break
    plans.sort(key=lambda plan: (not plan.fits, plan.seconds or plan.flops))
    return plans, failed


def with_choice(stage: Stage, axes: dict[str, int], remat: str, accumulation: int) -> Stage:
    """The stage with another mesh, policy and accumulation."""
    return dataclasses.replace(
        stage,
        network=stage.network.clone(remat=remat),
        mesh=MeshConfig(**axes),
        train=dataclasses.replace(stage.train, accumulation=accumulation),
    )


def format_ranking(plans: Sequence[Plan], failed: Sequence[str]) -> str:
    """A table of plans, the best first."""
    lines = [f"{'mesh':<32}{'remat':<10}{'parts':>6}{'GiB':>8}  fits {'ms':>7}{'MFU':>6}"]
    for plan in plans:
        mesh = " ".join(f"{name}={size}" for name, size in plan.mesh.items())
        line = f"{mesh:<32}{plan.settings['remat']:<10}{plan.settings['accumulation']:>6}"
        line += f"{plan.total_memory / 2**30:8.2f}  {'yes' if plan.fits else 'no':<4}"
        if plan.seconds is not None and plan.mfu is not None:
            line += f" {plan.seconds * 1e3:7.0f}{plan.mfu:6.0%}"
        lines.append(line)
    return "\n".join([*lines, *(f"not compiled: {line}" for line in failed)])
