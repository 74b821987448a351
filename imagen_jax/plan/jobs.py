"""From what is asked on the command line to the program that is compiled."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
from ml_collections import ConfigDict

from imagen_jax import sharding
from imagen_jax.chips import CHIPS, Chip, local_chip
from imagen_jax.errors import UserError
from imagen_jax.models.stack import REMAT
from imagen_jax.plan.programs import Program, embed_program, sample_program, train_program
from imagen_jax.plan.topology import topology_devices
from imagen_jax.stage import Stage, make_stage
from imagen_jax.stage_config import MeshConfig
from imagen_jax.text.t5 import T5Config


@dataclasses.dataclass(frozen=True)
class Target:
    """Devices to compile for.

    Attributes:
      name: topology, or kind of this machine's devices.
      chip: their rates; None where they are not known.
      slice_devices: devices of one slice; None where there is one slice.
    """

    name: str
    devices: Sequence[Any]
    chip: Chip | None
    slice_devices: int | None

    @property
    def tpu(self) -> bool:
        """True if the TPU compiler compiles; it alone takes an effort."""
        return bool(self.devices[0].platform == "tpu")


@dataclasses.dataclass(frozen=True)
class Job:
    """A stage with the changes asked for, and the compilation of its program."""

    stage: Stage
    compile: Callable[[], Program]


def where_to(topology: str | None, slices: int = 1) -> Target:
    """The devices of a topology, or of this machine.

    Raises:
      UserError: a topology that does not exist, or slices without one.
    """
    if topology is None:
        if slices > 1:
            raise UserError("slices need a topology, such as --topology v5e:16x16")
        return Target(jax.devices()[0].device_kind, jax.devices(), local_chip(), None)
    devices = topology_devices(topology, slices)
    name = topology if slices == 1 else f"{slices} slices of {topology}"
    chip = CHIPS[topology.partition(":")[0]]
    return Target(name, devices, chip, len(devices) // slices if slices > 1 else None)


def make_job(
    config: ConfigDict,
    stage_name: str | None,
    target: Target,
    *,
    job: str,
    mesh: Sequence[str] | None = None,
    batch: int | None = None,
    remat: str | None = None,
    accumulation: int | None = None,
    effort: str = "full",
) -> Job:
    """A program to compile.

    Args:
      config: as load_config returns it.
      stage_name: key in config.stages; None for the only one.
      target: devices.
      job: "train", "sample" or "embed".
      mesh: "AXIS=SIZE" each; None is the config's.
      batch: examples; None is the config's for training, and one for each device otherwise.
      remat: key of models.stack.REMAT; None is the config's.
      accumulation: parts of a batch; None is the config's.
      effort: key of programs.EFFORT; of compiling for a TPU.

    Raises:
      UserError: an unknown stage, axis or policy, or sizes that do not divide.
    """
    stage = make_stage(config, stage_name)
    if remat is not None:
        if remat not in REMAT:
            raise UserError(f"remat is {remat!r}; choices: {', '.join(REMAT)}")
        stage = stage.with_network(stage.network.with_remat(remat))
    changes: dict[str, Any] = {
        name: value
        for name, value in (
            ("batch_size", batch if job == "train" else None),
            ("accumulation", accumulation),
        )
        if value is not None
    }
    stage = dataclasses.replace(stage, train=dataclasses.replace(stage.train, **changes))
    if mesh is not None:
        stage = dataclasses.replace(stage, mesh=MeshConfig(**_axes(mesh)))
    if job == "train":
        made = sharding.make_mesh(stage.mesh.axes(), target.devices)
        return Job(stage, functools.partial(train_program, stage, made, target.name, effort))
    made = sharding.make_mesh({"data": -1}, target.devices)
    batch = batch or made.size
    if job == "sample":
        return Job(
            stage, functools.partial(sample_program, stage, made, target.name, batch, effort)
        )
    encoder = t5_of_width(stage.text.width)
    length = stage.text.max_length
    program = functools.partial(embed_program, encoder, made, target.name, batch, length, effort)
    return Job(stage, program)


def _axes(mesh: Sequence[str]) -> dict[str, int]:
    axes = {}
    for part in mesh:
        name, _, size = part.partition("=")
        if name not in sharding.MESH_AXES or not size.lstrip("-").isdigit():
            raise UserError(
                f"mesh axis {part!r} must be NAME=SIZE with a name of "
                f"{', '.join(sharding.MESH_AXES)}"
            )
        axes[name] = int(size)
    return axes


def t5_of_width(width: int) -> T5Config:
    """Sizes of the T5 v1.1 encoder whose token states have this width (Raffel et al. 2020; the
    published v1.1 configs of T5X).

    Raises:
      UserError: there is none.
    """
    sizes = {  # heads, MLP, layers
        512: (6, 1024, 8),
        768: (12, 2048, 12),
        1024: (16, 2816, 24),
        2048: (32, 5120, 24),
        4096: (64, 10240, 24),
    }
    if width not in sizes:
        raise UserError(f"no T5 v1.1 encoder is {width} wide; widths: {sorted(sizes)}")
    heads, mlp, layers = sizes[width]
    return T5Config(32128, width, heads, 64, mlp, layers, dtype="bfloat16")
