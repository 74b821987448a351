"""A whole cascade on disk: opened without its weights, or exported.

A cascade is a work directory of training, or a directory to ship (exported.py).
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
from ml_collections import ConfigDict
from tqdm import tqdm

from imagen_jax.buckets import BucketPath
from imagen_jax.checkpoints.exported import EXPORTED, description, open_exported, write_exported
from imagen_jax.checkpoints.lora import with_lora
from imagen_jax.checkpoints.pretrained import Pretrained
from imagen_jax.checkpoints.reading import (
    RECORD,
    X0_ERRORS,
    best_checkpoint,
    checkpoint_steps,
    ema_digest,
    newest_checkpoint,
    restore_ema,
    stage_directory,
)
from imagen_jax.checkpoints.safety import safety_of
from imagen_jax.errors import MachineError, UserError
from imagen_jax.files import read_json
from imagen_jax.low_noise import from_records
from imagen_jax.paths import as_path
from imagen_jax.stage import check_stage_names, make_stage

SHIPPED = Path(__file__).parent.parent / "demo"
"""The small cascade that comes with the package."""


def open_cascade(
    path: str | Path | None,
    ema_decay: float | None = None,
    best: bool = False,
    lora: Mapping[str | Path, float] | None = None,
) -> Pretrained:
    """Open what a directory holds, without its weights.

    Args:
      path: work directory or exported cascade; None is the cascade in the package. Of a work
        directory, the stages that are trained so far; those that are not are reported.
      ema_decay: EMA to read from a work directory, one of train.extra_ema_decays of every stage;
        None is the main one.
      best: read the best checkpoint of every stage (train.best_metric), not the newest.
      lora: changes of the weights by their files, see lora.with_lora.

    Raises:
      UserError: nothing is there, no stage is trained or validated yet, stages were trained with
        different encoders, or an exported cascade was asked for another average or checkpoint than
        the one that it has.
    """
    cascade = _open(path, ema_decay, best)
    return with_lora(cascade, lora) if lora else cascade


def _open(path: str | Path | None, ema_decay: float | None, best: bool) -> Pretrained:
    directory = SHIPPED if path is None else as_path(path)
    if not directory.is_dir():
        raise UserError(f"no work directory {directory}; imagen train makes one")
    exported, records = (directory / EXPORTED).is_file(), sorted(directory.glob(f"*/{RECORD}"))
    if exported and records:
        raise UserError(
            f"{directory} holds both an exported cascade ({EXPORTED}) and stages in training "
            f"({', '.join(record.parent.name for record in records)}); move one of them away"
        )
    if exported:
        if ema_decay is not None or best:
            raise UserError(f"the cascade in {directory} was exported with one average alone")
        return open_exported(directory)
    if (directory / RECORD).is_file():
        raise UserError(
            f"{directory} is the folder of one stage; give the work directory, {directory.parent}"
        )
    with description(directory):
        return _open_workdir(directory, records, ema_decay, best)


def export_cascade(
    workdir: str | Path | None,
    output: str | Path,
    ema_decay: float | None = None,
    dtype: str = "float16",
    best: bool = False,
    lora: Mapping[str | Path, float] | None = None,
) -> list[Path]:
    """Write the averaged weights of every stage of a cascade as safetensors.

    Args:
      workdir: work directory of imagen train, or any place that open_cascade takes.
      output: directory that the cascade goes to.
      ema_decay: see open_cascade.
      dtype: dtype that they are written in, one of EXPORT_DTYPES; float32 loses nothing.
      best, lora: see open_cascade.

    Returns:
      Paths of the written files.

    Raises:
      UserError: as open_cascade, weights that the dtype cannot hold, or an output that has such
        files, or is a work directory.
    """
    cascade = open_cascade(workdir, ema_decay, best, lora)
    tell_untrained(cascade)
    return write_exported(cascade, output, dtype)


def tell_untrained(cascade: Pretrained) -> None:
    """Tell the user which stages of a cascade have no weights yet, if any."""
    if cascade.untrained:
        there = ", ".join(stage.name for stage in cascade.stages)
        missing = ", ".join(cascade.untrained)
        tqdm.write(f"not trained yet: {missing}; there is {there}", file=sys.stderr)


def _cast(tree: Any, dtype: Any) -> Any:
    """Return arrays or shapes in a dtype, or in those of another tree."""

    def cast(leaf: Any, to: Any) -> Any:
        if isinstance(leaf, jax.ShapeDtypeStruct):
            return jax.ShapeDtypeStruct(leaf.shape, to, sharding=leaf.sharding)
        return leaf.astype(to)

    if isinstance(dtype, str):
        return jax.tree.map(lambda leaf: cast(leaf, dtype), tree)
    return jax.tree.map(lambda leaf, like: cast(leaf, like.dtype), tree, dtype)


def _open_workdir(
    workdir: Path, paths: Sequence[Path], ema_decay: float | None, best: bool
) -> Pretrained:
    records = {path.parent.name: read_json(path, "record of a stage") for path in paths}
    if not records:
        folders = [] if isinstance(workdir, BucketPath) else [*workdir.iterdir()]
        closed = [at.name for at in folders if at.is_dir() and not os.access(at, os.X_OK)]
        if closed:
            raise MachineError(f"{workdir} has {', '.join(closed)}, which may not be read")
        raise UserError(f"no trained stage under {workdir}; imagen train makes them")
    cascade = max((record["config"]["cascade"] for record in records.values()), key=len)
    check_stage_names(cascade)
    for name in cascade:
        if name not in records and checkpoint_steps(stage_directory(workdir, name)):
            raise UserError(
                f"{stage_directory(workdir, name)} has checkpoints, but no {RECORD}; copy it from "
                "where they were trained"
            )
    trained = [
        name
        for name in cascade
        if name in records and checkpoint_steps(stage_directory(workdir, name))
    ]
    if not trained:
        newest_checkpoint(stage_directory(workdir, next(iter(records))))  # says how to make one
    first = records[trained[0]]
    encoders = {name: records[name]["encoder"] for name in trained}
    if any(encoder != first["encoder"] for encoder in encoders.values()):
        raise UserError(
            f"the stages under {workdir} were trained with different text encoders: {encoders}"
        )
    stages = tuple(make_stage(ConfigDict(records[name]["config"]), name) for name in trained)
    choose = best_checkpoint if best else newest_checkpoint
    checkpoints = {name: choose(stage_directory(workdir, name)) for name in trained}
    digests = {name: ema_digest(path, ema_decay) for name, path in checkpoints.items()}
    sections = {name: records[name]["config"]["stages"][name] for name in trained}
    safety = (safety_of(stage_directory(workdir, name), records[name]) for name in trained)
    return Pretrained(
        stages=stages,
        encoder=first["encoder"],
        source=first["source"],
        config=first["config"] | {"cascade": trained, "stages": sections},
        license=first.get("license"),
        x0_errors=from_records(
            {
                name: read_json(path, "list of errors of x0")
                for name in trained
                if (path := stage_directory(workdir, name) / X0_ERRORS).is_file()
            },
            workdir,
        ),
        read=lambda stage, shapes: _cast(
            restore_ema(checkpoints[stage.name], _cast(shapes, "float32"), ema_decay), shapes
        ),
        digest=lambda stage: digests[stage.name],
        safety=next(filter(None, safety), None),
        untrained=tuple(name for name in cascade if name not in trained),
    )
