"""Weights of a whole cascade: from a work directory, or as a small directory to ship.

An exported cascade is cascade.json (config and encoder record) with one <stage>.safetensors each,
holding the averaged weights in float16.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import flax.linen as nn
import flax.traverse_util
import jax
import jax.numpy as jnp
import numpy as np
import safetensors.numpy
from ml_collections import ConfigDict

from imagen_jax.data.records import differences
from imagen_jax.stage import Stage, make_stage
from imagen_jax.workdir import read_record, restore_ema, stage_directory

DEMO = Path(__file__).parent / "demo"


def load_stages(path: str | Path | None) -> tuple[list[tuple[Stage, Any]], dict[str, Any]]:
    """Stages with their averaged weights, lowest resolution first, and what they were trained on.

    Args:
      path: work directory or exported cascade; None is the cascade in the package.

    Returns:
      (stages with weights, {"encoder": ..., "source": ...} of the embeddings' manifest).

    Raises:
      FileNotFoundError: nothing there, or a stage without a checkpoint.
      ValueError: stages trained with different encoders, or weights that do not fit the config.
    """
    directory = DEMO if path is None else Path(path)
    if (directory / "cascade.json").is_file():
        return _load_exported(directory)
    if path is None:
        raise FileNotFoundError(
            "the package has no pretrained cascade; pass --workdir with one that you trained "
            "(bash launch/quickstart.sh trains a small one)"
        )
    if not directory.is_dir():
        raise FileNotFoundError(f"no work directory {directory}; imagen train makes one")
    return _load_workdir(directory)


def export_cascade(
    workdir: str | Path, output: str | Path, ema_decay: float | None = None
) -> list[Path]:
    """Writes the newest averaged weights of every stage of a work directory, in float16.

    Args:
      workdir: of imagen train.
      output: directory that the cascade goes to.
      ema_decay: which average: one of train.extra_ema_decays of every stage; None is the main one.

    Returns:
      Paths of the written files.

    Raises:
      FileNotFoundError, ValueError: as load_stages.
    """
    stages, origin = _load_workdir(Path(workdir), ema_decay)
    output = Path(output)
    output.mkdir(parents=True, exist_ok=True)
    record = read_record(workdir, stages[0][0].name)
    config = record["config"]
    for stage, _ in stages[1:]:
        config["stages"] |= read_record(workdir, stage.name)["config"]["stages"]
    paths = [output / "cascade.json"]
    paths[0].write_text(json.dumps({"config": config} | origin, indent=2) + "\n")
    for stage, params in stages:
        flat = flax.traverse_util.flatten_dict(jax.device_get(params), sep="/")
        half = {name: np.asarray(value, np.float16) for name, value in flat.items()}
        for name, value in half.items():
            if not np.isfinite(value).all():
                raise ValueError(f"{stage.name}: {name} does not fit float16")
        paths.append(output / f"{stage.name}.safetensors")
        safetensors.numpy.save_file(half, paths[-1])
    return paths


def _load_exported(directory: Path) -> tuple[list[tuple[Stage, Any]], dict[str, Any]]:
    record = json.loads((directory / "cascade.json").read_text())
    config = ConfigDict(record["config"])
    stages = []
    for name in config.cascade:
        stage = make_stage(config, name)
        path = directory / f"{name}.safetensors"
        if not path.is_file():
            raise FileNotFoundError(f"the cascade in {directory} lacks {path.name}")
        flat = safetensors.numpy.load_file(path)
        params = flax.traverse_util.unflatten_dict(
            {key: jnp.asarray(value, jnp.float32) for key, value in flat.items()}, sep="/"
        )
        _check_shapes(stage, params, path)
        stages.append((stage, params))
    return stages, {key: record[key] for key in ("encoder", "source")}


def _check_shapes(stage: Stage, params: Any, path: Path) -> None:
    wanted, found = (jax.tree.map(lambda x: x.shape, p) for p in (abstract_params(stage), params))
    if lines := differences(found, wanted):
        raise ValueError(
            f"the weights in {path} do not fit the network of stage {stage.name!r} (there != "
            f"wanted; {len(lines)} differences):\n  " + "\n  ".join(lines[:5])
        )


def abstract_params(stage: Stage) -> Any:
    """Shapes and dtypes of a stage's parameters."""
    return nn.unbox(jax.eval_shape(stage.init, jax.random.key(0)))


def _load_workdir(
    workdir: Path, ema_decay: float | None = None
) -> tuple[list[tuple[Stage, Any]], dict[str, Any]]:
    records = [json.loads(p.read_text()) for p in sorted(workdir.glob("*/stage.json"))]
    if not records:
        raise FileNotFoundError(f"no trained stage under {workdir}; imagen train makes them")
    encoders = {r["stage"]: r["encoder"] for r in records}
    names = records[0]["config"]["cascade"]
    stages = []
    device = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    for name in names:
        record = read_record(workdir, name)
        if record["encoder"] != encoders[names[0]]:
            raise ValueError(
                f"the stages under {workdir} were trained with different text encoders: {encoders}"
            )
        stage = make_stage(ConfigDict(record["config"]), name)
        shapes = jax.tree.map(
            lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=device),
            abstract_params(stage),
        )
        params, _ = restore_ema(stage_directory(workdir, name), shapes, ema_decay)
        stages.append((stage, params))
    origin = read_record(workdir, names[0])
    return stages, {key: origin[key] for key in ("encoder", "source")}
