"""A whole cascade on disk, a work directory or a small directory to ship; read stage by stage.

An exported cascade is cascade.json (config and encoder record) with one <stage>.safetensors each,
holding the averaged weights.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import flax.linen as nn
import flax.traverse_util
import jax
import numpy as np
import safetensors.numpy
from jax.sharding import Mesh
from ml_collections import ConfigDict

from imagen_jax.config import fingerprint
from imagen_jax.data.records import differences
from imagen_jax.errors import UserError
from imagen_jax.sharding import make_mesh, state_shardings
from imagen_jax.stage import Stage, make_stage
from imagen_jax.workdir import ema_digest, read_record, restore_ema, stage_directory

DEMO = Path(__file__).parent / "demo"
EXPORT_DTYPES = ("float16", "float32")


@dataclasses.dataclass(frozen=True)
class Pretrained:
    """A trained cascade, its weights still on disk.

    Attributes:
      stages: of the cascade, lowest resolution first.
      encoder: record of the text encoder that they were trained with: name and fingerprint.
      source: split -> description of the data that they were trained on.
      config: of the cascade and all of its stages.
      read: (stage, shapes with shardings) -> weights.
      digest: stage -> hash of its weights.
    """

    stages: tuple[Stage, ...]
    encoder: Mapping[str, Any]
    source: Mapping[str, Any]
    config: Mapping[str, Any]
    read: Callable[[Stage, Any], Any] = dataclasses.field(repr=False)
    digest: Callable[[Stage], str] = dataclasses.field(repr=False)

    def weights(self, stage: Stage, mesh: Mesh | None = None, dtype: str | None = None) -> Any:
        """Averaged weights of a stage, laid out on a mesh by sharding.LOGICAL_AXIS_RULES.

        Args:
          stage: one of stages.
          mesh: None is the first device alone.
          dtype: to cast them to; None is float32.

        Raises:
          FileNotFoundError: they are not there.
          UserError: they do not fit the network or the mesh, or are damaged.
        """
        mesh = make_mesh(devices=jax.devices()[:1]) if mesh is None else mesh
        boxed = jax.eval_shape(stage.init, jax.random.key(0))
        shapes = jax.tree.map(
            lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding),
            nn.unbox(boxed),
            state_shardings(boxed, mesh),
        )
        params = self.read(stage, shapes)
        return params if dtype is None else jax.tree.map(lambda leaf: leaf.astype(dtype), params)

    def fingerprint(self, stage: Stage) -> str:
        """16 hexadecimal digits that are equal for stages that make equal images: the same
        weights, network, diffusion process and text encoder."""
        section = self.config["stages"][stage.name]
        said = {name: section[name] for name in ("resolution", "low_res", "network", "schedule")}
        return fingerprint(
            said
            | {"parametrization": stage.parametrization, "weights": self.digest(stage)}
            | {"text": self.config["text"], "encoder": self.encoder["fingerprint"]}
        )


def open_cascade(
    path: str | Path | None, ema_decay: float | None = None, best: bool = False
) -> Pretrained:
    """What a directory holds, without its weights.

    Args:
      path: work directory or exported cascade; None is the cascade in the package.
      ema_decay: of a work directory: which average, one of train.extra_ema_decays of every stage;
        None is the main one.
      best: of a work directory: every stage's best checkpoint (train.best_metric), not its newest.

    Raises:
      FileNotFoundError: nothing there, or a stage that is not trained yet, or not validated.
      UserError: stages trained with different encoders, or an exported cascade was asked for
        another average or checkpoint than the one that it has.
    """
    directory = DEMO if path is None else Path(path)
    if (directory / "cascade.json").is_file():
        if ema_decay is not None or best:
            raise UserError(f"the cascade in {directory} was exported with one average alone")
        return _open_exported(directory)
    if path is None:
        raise FileNotFoundError(
            "the package has no pretrained cascade; pass --workdir with one that you trained "
            "(bash launch/quickstart.sh trains a small one)"
        )
    if not directory.is_dir():
        raise FileNotFoundError(f"no work directory {directory}; imagen train makes one")
    return _open_workdir(directory, ema_decay, best)


def export_cascade(
    workdir: str | Path | None,
    output: str | Path,
    ema_decay: float | None = None,
    dtype: str = "float16",
    best: bool = False,
) -> list[Path]:
    """Writes the averaged weights of every stage of a cascade as safetensors.

    Args:
      workdir: of imagen train; or what open_cascade takes.
      output: directory that the cascade goes to.
      ema_decay: see open_cascade.
      dtype: that they are written in, one of EXPORT_DTYPES; float32 loses nothing.
      best: see open_cascade.

    Returns:
      Paths of the written files.

    Raises:
      FileNotFoundError, UserError: as open_cascade, or weights that the dtype cannot hold.
    """
    if dtype not in EXPORT_DTYPES:
        raise UserError(f"dtype is {dtype!r}; choices: {', '.join(EXPORT_DTYPES)}")
    cascade = open_cascade(workdir, ema_decay, best)
    written = {}
    for stage in cascade.stages:
        flat = flat_weights(cascade.weights(stage))
        written[stage.name] = {name: value.astype(dtype) for name, value in flat.items()}
        for name, value in written[stage.name].items():
            if not np.isfinite(value).all():
                raise UserError(f"{stage.name}: {name} does not fit {dtype}")
    output = Path(output)
    output.mkdir(parents=True, exist_ok=True)
    paths = [output / "cascade.json"]
    record = {"config": cascade.config, "encoder": cascade.encoder, "source": cascade.source}
    paths[0].write_text(json.dumps(record, indent=2) + "\n")
    for name, weights in written.items():
        paths.append(output / f"{name}.safetensors")
        safetensors.numpy.save_file(weights, paths[-1])
    return paths


def flat_weights(params: Any) -> dict[str, np.ndarray]:
    """Weights by their names, "conv_in/conv/kernel", as NumPy arrays."""
    return flax.traverse_util.flatten_dict(jax.device_get(params), sep="/")


def abstract_params(stage: Stage) -> Any:
    """Shapes and dtypes of a stage's parameters."""
    return nn.unbox(jax.eval_shape(stage.init, jax.random.key(0)))


def _open_exported(directory: Path) -> Pretrained:
    record = json.loads((directory / "cascade.json").read_text())
    config = ConfigDict(record["config"])

    def file_of(stage: Stage) -> Path:
        path = directory / f"{stage.name}.safetensors"
        if not path.is_file():
            raise FileNotFoundError(f"the cascade in {directory} lacks {path.name}")
        return path

    def read(stage: Stage, shapes: Any) -> Any:
        path = file_of(stage)
        flat = safetensors.numpy.load_file(path)
        params = flax.traverse_util.unflatten_dict(flat, sep="/")
        wanted, found = (jax.tree.map(lambda x: x.shape, tree) for tree in (shapes, params))
        if lines := differences(found, wanted):
            raise UserError(
                f"the weights in {path} do not fit the network of stage {stage.name!r} (there != "
                f"wanted; {len(lines)} differences):\n  " + "\n  ".join(lines[:5])
            )
        return jax.tree.map(
            lambda leaf, shape: jax.device_put(leaf.astype(np.float32), shape.sharding),
            params,
            shapes,
        )

    return Pretrained(
        stages=tuple(make_stage(config, name) for name in config.cascade),
        encoder=record["encoder"],
        source=record["source"],
        config=record["config"],
        read=read,
        digest=lambda stage: hashlib.sha256(file_of(stage).read_bytes()).hexdigest(),
    )


def _open_workdir(workdir: Path, ema_decay: float | None, best: bool) -> Pretrained:
    found = [json.loads(p.read_text()) for p in sorted(workdir.glob("*/stage.json"))]
    if not found:
        raise FileNotFoundError(f"no trained stage under {workdir}; imagen train makes them")
    names = found[0]["config"]["cascade"]
    records = {name: read_record(workdir, name) for name in names}
    encoders = {name: record["encoder"] for name, record in records.items()}
    if any(encoder != encoders[names[0]] for encoder in encoders.values()):
        raise UserError(
            f"the stages under {workdir} were trained with different text encoders: {encoders}"
        )
    sections = {name: record["config"]["stages"][name] for name, record in records.items()}

    def read(stage: Stage, shapes: Any) -> Any:
        return restore_ema(stage_directory(workdir, stage.name), shapes, ema_decay, best)[0]

    return Pretrained(
        stages=tuple(make_stage(ConfigDict(records[name]["config"]), name) for name in names),
        encoder=encoders[names[0]],
        source=records[names[0]]["source"],
        config=records[names[0]]["config"] | {"stages": sections},
        read=read,
        digest=lambda stage: ema_digest(stage_directory(workdir, stage.name), ema_decay, best),
    )
