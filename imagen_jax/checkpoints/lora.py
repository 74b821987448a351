"""Changes of weights that train.lora_rank trained: files of a few megabytes, and what they change.

A file of safetensors holds the factors of every changed kernel as <stage>/<name of the kernel>/a
and .../b, see train.lora, and what they were trained on.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import flax.traverse_util
import jax
import jax.numpy as jnp
import numpy as np
import safetensors.numpy
from tqdm import tqdm

from imagen_jax.checkpoints.exported import EXPORT_DTYPES, cast_weights, check_dtype
from imagen_jax.checkpoints.pretrained import Pretrained
from imagen_jax.checkpoints.reading import (
    RECORD,
    checkpoint_steps,
    newest_checkpoint,
    restore_factors,
    stage_directory,
)
from imagen_jax.errors import UserError
from imagen_jax.files import atomic_path, new_file, read_json
from imagen_jax.paths import as_path
from imagen_jax.stage import Stage
from imagen_jax.tensor_files import open_safetensors

FORMAT = "imagen-jax lora"


class Change(NamedTuple):
    """Content of a file.

    Attributes:
      factors: stage -> name of a kernel -> ([(blocks,) inputs, rank], [(blocks,) rank, outputs]).
      trained_on: stage -> fingerprint of the stage whose weights the change was trained on.
      digest: hash of the file.
    """

    factors: dict[str, dict[str, tuple[np.ndarray, np.ndarray]]]
    trained_on: dict[str, str]
    digest: str


def export_lora(workdir: str | Path, output: str | Path, dtype: str = "float16") -> Path:
    """Write the changes that stages of a work directory were trained with, as one file.

    Args:
      workdir: work directory of `imagen train` with stages trained with train.lora_rank.
      output: path of a new file, *.safetensors.
      dtype: dtype that the factors are written in, one of EXPORT_DTYPES; float32 loses nothing.

    Raises:
      UserError: there is no such stage, or it has no checkpoint; the output is there already; or
        factors that the dtype cannot hold.
    """
    check_dtype(dtype)
    path = new_file(output, ".safetensors")
    arrays: dict[str, np.ndarray] = {}
    trained_on: dict[str, str] = {}
    licence: dict[str, str] = {}
    for record_path in sorted(as_path(workdir).glob(f"*/{RECORD}")):
        record = read_json(record_path, "record of a stage")
        stage = record["stage"]
        directory = stage_directory(workdir, stage)
        settings = record["config"]["stages"][stage]["train"]
        if not settings.get("lora_rank") or not checkpoint_steps(directory):
            continue
        for side, factors in restore_factors(newest_checkpoint(directory)).items():
            cast = cast_weights(factors, dtype, stage)
            arrays |= {f"{stage}/{name}/{side}": value for name, value in cast.items()}
        trained_on[stage] = record["init_from"]["fingerprint"]
        if "license" in record:  # of the weights that are changed
            licence = {"license": json.dumps(record["license"])}
    if not arrays:
        raise UserError(
            f"{workdir} has no stage with a checkpoint that was trained with train.lora_rank"
        )
    metadata = {"format": FORMAT, "trained_on": json.dumps(trained_on)} | licence
    with atomic_path(path) as temporary:
        safetensors.numpy.save_file(arrays, temporary, metadata)
    return path


def read_lora(path: str | Path) -> Change:
    """Return the content of a file that export_lora wrote.

    Raises:
      UserError: there is no such file, or it is another or damaged.
    """
    factors: dict[str, dict[str, tuple[np.ndarray, np.ndarray]]] = {}
    with open_safetensors(path) as file:
        metadata = file.metadata() or {}
        names = set(file.keys())
        if metadata.get("format") != FORMAT:
            raise UserError(
                f"{path} holds no change of weights that `imagen export --format lora` wrote"
            )
        for name in sorted(names):
            stage, _, rest = name.partition("/")
            kernel, _, side = rest.rpartition("/")
            if side not in ("a", "b") or {f"{stage}/{kernel}/{of}" for of in "ab"} - names:
                raise UserError(f"{path}: {name} is no factor of a pair")
            if side == "b":
                continue
            pair = [file.get_tensor(f"{stage}/{kernel}/{of}") for of in "ab"]
            for factor in pair:
                if factor.dtype not in EXPORT_DTYPES or not np.isfinite(factor).all():
                    raise UserError(
                        f"{path}: the factors of {kernel} must be finite numbers in "
                        f"{' or '.join(EXPORT_DTYPES)}"
                    )
            a, b = (factor.astype(np.float32) for factor in pair)
            if a.ndim != b.ndim or a.ndim < 2 or a.shape[-1] != b.shape[-2]:
                raise UserError(f"{path}: the factors of {kernel} have shapes {a.shape}, {b.shape}")
            factors.setdefault(stage, {})[kernel] = a, b
        try:
            trained_on = dict(json.loads(metadata["trained_on"]))
        except (KeyError, ValueError, TypeError) as error:
            raise UserError(f"{path} does not say what it was trained on") from error
    digest = hashlib.sha256(as_path(path).read_bytes()).hexdigest()
    return Change(factors, trained_on, digest)


def with_lora(cascade: Pretrained, changes: Mapping[str | Path, float]) -> Pretrained:
    """Return a cascade with changed weights, W + strength A B.

    Weights that are not those that a change was trained on are told, and changed all the same.

    Args:
      cascade: the cascade.
      changes: path of a file -> its strength; 1 is as it was trained, 0 leaves all as it is.

    Raises:
      UserError: a strength that is not finite; a file that is not there, is another or damaged, or
        changes a stage that the cascade lacks; or, as weights are read, a kernel that it lacks.
    """
    for path, strength in changes.items():
        if not math.isfinite(strength):
            raise UserError(f"the strength of {path} is {strength}; it must be a finite number")
    read = {path: read_lora(path) for path in changes}
    stages = {stage.name: stage for stage in cascade.stages}
    for path, change in read.items():
        for name in change.factors:
            if name not in stages:
                raise UserError(
                    f"{path} changes a stage {name!r}; the cascade has {', '.join(stages)}"
                )
            if cascade.fingerprint(stages[name]) != change.trained_on.get(name):
                tqdm.write(
                    f"{path} was trained on other weights of stage {name!r}", file=sys.stderr
                )

    def changed(stage: Stage, shapes: Any) -> Any:
        weights = flax.traverse_util.flatten_dict(cascade.read(stage, shapes), sep="/")
        for path, change in read.items():
            for name, (a, b) in change.factors.get(stage.name, {}).items():
                if name not in weights:
                    raise UserError(f"{path} changes {name}, and stage {stage.name!r} has none")
                weights[name] = _plus(path, name, weights[name], changes[path] * a, b)
        return flax.traverse_util.unflatten_dict(weights, sep="/")

    def digest(stage: Stage) -> str:
        parts = [cascade.digest(stage)]
        parts += [f"{change.digest} {changes[path]}" for path, change in read.items()]
        return hashlib.sha256("\n".join(parts).encode()).hexdigest()

    return dataclasses.replace(cascade, read=changed, digest=digest)


def _plus(path: str | Path, name: str, kernel: jax.Array, a: np.ndarray, b: np.ndarray) -> Any:
    """Return a kernel plus the product of two factors, laid out as it was."""
    shape = (*a.shape[:-1], b.shape[-1])
    if math.prod(shape) != kernel.size or shape[-1] != kernel.shape[-1]:
        raise UserError(f"{path} changes {name} by a matrix {shape}; its shape is {kernel.shape}")
    sum_ = jnp.asarray(kernel, jnp.float32) + (a @ b).reshape(kernel.shape)
    return jax.device_put(sum_.astype(kernel.dtype), kernel.sharding)
