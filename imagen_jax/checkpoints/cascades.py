"""A whole cascade on disk, opened without its weights: a work directory, or a directory to ship.

An exported cascade is cascade.json (config and encoder record) with one <stage>.safetensors each,
holding the averaged weights.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import flax.linen as nn
import flax.traverse_util
import jax
import numpy as np
import safetensors.numpy
from jax.sharding import Mesh
from ml_collections import ConfigDict
from tqdm import tqdm

from imagen_jax.checkpoints.reading import (
    RECORD,
    best_checkpoint,
    checkpoint_steps,
    ema_digest,
    newest_checkpoint,
    restore_ema,
    stage_directory,
)
from imagen_jax.errors import UserError
from imagen_jax.files import (
    atomic_path,
    differences,
    fingerprint,
    local_path,
    read_json,
    write_json,
)
from imagen_jax.sharding import make_mesh, state_shardings
from imagen_jax.stage import Stage, make_stage
from imagen_jax.tensor_files import open_safetensors

SHIPPED = Path(__file__).parent.parent / "demo"
"""The small cascade that comes with the package."""
EXPORTED = "cascade.json"
EXPORT_DTYPES = ("float16", "float32")


@dataclasses.dataclass(frozen=True)
class Pretrained:
    """A trained cascade, its weights still on disk.

    Which checkpoint a stage's weights come from is settled when this is made: a training that goes
    on does not change it.

    Attributes:
      stages: lowest resolution first.
      encoder: record of the text encoder that they were trained with: name and fingerprint.
      source: split -> description of the data that they were trained on.
      config: config of the cascade and its stages.
      license: attribution of weights that others trained, under a licence of theirs; or None.
      read: (stage, shapes with dtypes and shardings) -> weights.
      digest: stage -> hash of the weights that `read` returns.
    """

    stages: tuple[Stage, ...]
    encoder: Mapping[str, Any]
    source: Mapping[str, Any]
    config: Mapping[str, Any]
    license: Mapping[str, str] | None
    read: Callable[[Stage, Any], Any] = dataclasses.field(repr=False)
    digest: Callable[[Stage], str] = dataclasses.field(repr=False)

    def weights(self, stage: Stage, mesh: Mesh | None = None, dtype: str | None = None) -> Any:
        """Return the averaged weights of a stage, laid out by sharding.LOGICAL_AXIS_RULES.

        Args:
          stage: one of stages.
          mesh: None is the first device alone.
          dtype: to cast them to; None is float32.

        Raises:
          UserError: they are not there, do not fit the network or the mesh, or are damaged.
        """
        mesh = make_mesh(devices=jax.devices()[:1]) if mesh is None else mesh
        boxed = jax.eval_shape(stage.init, jax.random.key(0))
        shapes = jax.tree.map(
            lambda leaf, sharding: jax.ShapeDtypeStruct(
                leaf.shape, dtype or leaf.dtype, sharding=sharding
            ),
            nn.unbox(boxed),
            state_shardings(boxed, mesh),
        )
        return self.read(stage, shapes)

    def fingerprint(self, stage: Stage) -> str:
        """Return 16 hexadecimal digits, equal for stages that make equal images: the same weights,
        network, diffusion process and text encoder."""
        section = self.config["stages"][stage.name]
        said = {name: section[name] for name in ("resolution", "network", "schedule")}
        said |= {"low_res": stage.low_res, "parametrization": stage.parametrization}
        said |= {"text": self.config["text"], "encoder": self.encoder["fingerprint"]}
        said["weights"] = self.digest(stage)
        return fingerprint(said)[:16]


def open_cascade(
    path: str | Path | None, ema_decay: float | None = None, best: bool = False
) -> Pretrained:
    """Open what a directory holds, without its weights.

    Args:
      path: work directory or exported cascade; None is the cascade in the package. Of a work
        directory, the stages that are trained so far; those that are not are reported.
      ema_decay: EMA to read from a work directory, one of train.extra_ema_decays of every stage;
        None is the main one.
      best: read the best checkpoint of every stage (train.best_metric), not the newest.

    Raises:
      UserError: nothing is there, no stage is trained or validated yet, stages were trained with
        different encoders, or an exported cascade was asked for another average or checkpoint than
        the one that it has.
    """
    directory = SHIPPED if path is None else local_path(path)
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
        return _open_exported(directory)
    if (directory / RECORD).is_file():
        raise UserError(
            f"{directory} is the folder of one stage; give the work directory, {directory.parent}"
        )
    return _open_workdir(directory, records, ema_decay, best)


def export_cascade(
    workdir: str | Path | None,
    output: str | Path,
    ema_decay: float | None = None,
    dtype: str = "float16",
    best: bool = False,
) -> list[Path]:
    """Write the averaged weights of every stage of a cascade as safetensors.

    Args:
      workdir: work directory of imagen train, or any place that open_cascade takes.
      output: directory that the cascade goes to.
      ema_decay: see open_cascade.
      dtype: dtype that they are written in, one of EXPORT_DTYPES; float32 loses nothing.
      best: see open_cascade.

    Returns:
      Paths of the written files.

    Raises:
      UserError: as open_cascade, weights that the dtype cannot hold, or an output that has such
        files, or is a work directory.
    """
    if dtype not in EXPORT_DTYPES:
        raise UserError(f"dtype is {dtype!r}; choices: {', '.join(EXPORT_DTYPES)}")
    cascade = open_cascade(workdir, ema_decay, best)
    record_path, *paths = new_files(
        output, [EXPORTED, *(f"{stage.name}.safetensors" for stage in cascade.stages)]
    )
    weights = []
    for stage in cascade.stages:
        flat = flat_weights(cascade.weights(stage))
        weights.append({name: value.astype(dtype) for name, value in flat.items()})
        for name, value in weights[-1].items():
            if not np.isfinite(value).all():
                raise UserError(f"{stage.name}: {name} does not fit {dtype}")
    record_path.parent.mkdir(parents=True, exist_ok=True)
    for path, of_stage in zip(paths, weights, strict=True):
        with atomic_path(path) as temporary:
            safetensors.numpy.save_file(of_stage, temporary)
    # Last: where it is, the weights are.
    write_json(
        record_path,
        {"config": cascade.config, "encoder": cascade.encoder, "source": cascade.source}
        | ({} if cascade.license is None else {"license": cascade.license}),
    )
    return [record_path, *paths]


def new_files(output: str | Path, names: Sequence[str]) -> list[Path]:
    """Return paths of files to be written into a directory.

    Raises:
      UserError: one of them is there already, or the directory is a work directory: exported
        weights would hide those that training writes later.
    """
    output = local_path(output)
    if stages := sorted(record.parent.name for record in output.glob(f"*/{RECORD}")):
        raise UserError(
            f"{output} is a work directory, with the stages {', '.join(stages)}; export into a "
            "directory of its own (--output)"
        )
    paths = [output / name for name in names]
    if found := [path.name for path in paths if path.exists()]:
        raise UserError(
            f"{output} has {', '.join(found)} already; choose another --output, or remove what is "
            "there"
        )
    return paths


def flat_weights(params: Any) -> dict[str, np.ndarray]:
    """Return weights by their names, "conv_in/conv/kernel", as NumPy arrays."""
    return flax.traverse_util.flatten_dict(jax.device_get(params), sep="/")


def abstract_params(stage: Stage) -> Any:
    """Return shapes and dtypes of a stage's parameters."""
    return nn.unbox(jax.eval_shape(stage.init, jax.random.key(0)))


def _open_exported(directory: Path) -> Pretrained:
    record = read_json(directory / EXPORTED, "description of a cascade")
    try:
        config, encoder, source = ConfigDict(record["config"]), record["encoder"], record["source"]
        stages = tuple(make_stage(config, name) for name in config.cascade)
        _ = encoder["name"], encoder["fingerprint"]
        if not stages or not isinstance(source, dict):
            raise TypeError("no stages, or no source")
    except (KeyError, AttributeError, TypeError, ValueError) as error:
        if isinstance(error, UserError):
            raise
        raise UserError(
            f"{directory / EXPORTED} describes no cascade: {type(error).__name__}: {error}"
        ) from error
    states: dict[str, tuple[int, int]] = {}
    digests: dict[str, str] = {}

    def file_of(stage: Stage) -> Path:
        path = directory / f"{stage.name}.safetensors"
        if not path.is_file():
            raise UserError(f"the cascade in {directory} lacks {path.name}")
        state = (path.stat().st_size, path.stat().st_mtime_ns)
        if states.setdefault(stage.name, state) != state:
            raise UserError(f"{path} has changed since it was read first; run the command again")
        return path

    def read(stage: Stage, shapes: Any) -> Any:
        path = file_of(stage)
        of_network = flax.traverse_util.flatten_dict(shapes, sep="/")
        wanted = {name: of.shape for name, of in of_network.items()}
        with open_safetensors(path) as content:
            parts = {name: content.get_slice(name) for name in content.keys()}  # noqa: SIM118
            found = {name: tuple(part.get_shape()) for name, part in parts.items()}
            if lines := differences(found, wanted):
                raise UserError(
                    f"the weights of stage {stage.name!r} in {directory} do not fit its network "
                    f"(there != wanted; {len(lines)} differences):\n  " + "\n  ".join(lines[:5])
                )
            for name, part in parts.items():
                if part.get_dtype() not in ("F16", "F32"):
                    raise UserError(
                        f"{path.name} in {directory}: {name} is {part.get_dtype()}, not "
                        + " or ".join(EXPORT_DTYPES)
                    )

            def place(name: str, leaf: Any) -> jax.Array:
                # Part by part and cast on the host: all weights are never there twice, or too wide.
                def of_device(index: Any) -> np.ndarray:
                    return np.asarray(parts[name][index or ...]).astype(leaf.dtype)

                return jax.make_array_from_callback(leaf.shape, leaf.sharding, of_device)

            placed = {name: place(name, leaf) for name, leaf in of_network.items()}
        return flax.traverse_util.unflatten_dict(placed, sep="/")

    def digest(stage: Stage) -> str:
        if stage.name not in digests:
            with open(file_of(stage), "rb") as file:
                digests[stage.name] = hashlib.file_digest(file, "sha256").hexdigest()
        return digests[stage.name]

    return Pretrained(
        stages=stages,
        encoder=encoder,
        source=source,
        config=record["config"],
        license=record.get("license"),
        read=read,
        digest=digest,
    )


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
    records = {path.parent.name: json.loads(path.read_text()) for path in paths}
    if not records:
        raise UserError(f"no trained stage under {workdir}; imagen train makes them")
    cascade = max((record["config"]["cascade"] for record in records.values()), key=len)
    trained = [
        name
        for name in cascade
        if name in records and checkpoint_steps(stage_directory(workdir, name))
    ]
    if not trained:
        newest_checkpoint(stage_directory(workdir, next(iter(records))))  # says how to make one
    if missing := [name for name in cascade if name not in trained]:
        tqdm.write(
            f"{workdir}: not trained yet: {', '.join(missing)}; there is {', '.join(trained)}",
            file=sys.stderr,
        )
    first = records[trained[0]]
    encoders = {name: records[name]["encoder"] for name in trained}
    if any(encoder != first["encoder"] for encoder in encoders.values()):
        raise UserError(
            f"the stages under {workdir} were trained with different text encoders: {encoders}"
        )
    choose = best_checkpoint if best else newest_checkpoint
    checkpoints = {name: choose(stage_directory(workdir, name)) for name in trained}
    digests = {name: ema_digest(path, ema_decay) for name, path in checkpoints.items()}
    sections = {name: records[name]["config"]["stages"][name] for name in trained}
    return Pretrained(
        stages=tuple(make_stage(ConfigDict(records[name]["config"]), name) for name in trained),
        encoder=first["encoder"],
        source=first["source"],
        config=first["config"] | {"cascade": trained, "stages": sections},
        license=first.get("license"),
        read=lambda stage, shapes: _cast(
            restore_ema(checkpoints[stage.name], _cast(shapes, "float32"), ema_decay), shapes
        ),
        digest=lambda stage: digests[stage.name],
    )
