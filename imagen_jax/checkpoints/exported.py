"""A cascade to ship: cascade.json, and the averaged weights of each stage as <stage>.safetensors.

cascade.json holds the config, the record of the text encoder and the source of the data. Some
cascades have a safety checker and a watermark, see safety.py.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import flax.traverse_util
import jax
import numpy as np
import safetensors.numpy
from ml_collections import ConfigDict

from imagen_jax.checkpoints.pretrained import Pretrained
from imagen_jax.checkpoints.reading import RECORD
from imagen_jax.checkpoints.safety import safety_of
from imagen_jax.errors import UserError
from imagen_jax.files import (
    LOCK,
    atomic_path,
    differences,
    only_writer,
    output_folder,
    read_json,
    write_json,
)
from imagen_jax.low_noise import from_records
from imagen_jax.paths import local_copy, version_of
from imagen_jax.stage import Stage, check_stage_names, make_stage
from imagen_jax.tensor_files import open_safetensors

EXPORTED = "cascade.json"
UNFINISHED = ".unfinished"
"""File beside those of an export while it is written, with their names; a kill leaves it there."""
EXPORT_DTYPES = ("float16", "float32")


@contextlib.contextmanager
def description(record: Path) -> Iterator[None]:
    """Raise a UserError where what a record holds is of another form than the block wants."""
    try:
        yield
    except UserError:
        raise
    except (KeyError, AttributeError, TypeError, ValueError) as error:
        raise UserError(
            f"{record} describes no cascade: {type(error).__name__}: {error}"
        ) from error


def open_exported(directory: Path) -> Pretrained:
    """Open an exported cascade, without its weights.

    Raises:
      UserError: its record describes no cascade; and of weights that are read later: they are not
        there, have changed since, do not fit the network, or are damaged.
    """
    record = read_json(directory / EXPORTED, "description of a cascade")
    with description(directory / EXPORTED):
        config, encoder, source = ConfigDict(record["config"]), record["encoder"], record["source"]
        check_stage_names(config.cascade)
        stages = tuple(make_stage(config, name) for name in config.cascade)
        _ = encoder["name"], encoder["fingerprint"]
        x0_errors = from_records(record.get("x0_errors", {}), directory / EXPORTED)
        if not stages or not isinstance(source, dict):
            raise TypeError("no stages, or no source")
        safety = safety_of(directory, record)
    versions: dict[str, Any] = {}
    copies, opened = contextlib.ExitStack(), dict[str, Path]()  # kept as long as the functions are
    digests: dict[str, str] = {}

    def file_of(stage: Stage) -> Path:
        path = directory / f"{stage.name}.safetensors"
        if not path.is_file():
            raise UserError(f"the cascade in {directory} lacks {path.name}")
        version = version_of(path)
        if versions.setdefault(stage.name, version) != version:
            raise UserError(f"{path} has changed since it was read first; run the command again")
        if stage.name not in opened:
            opened[stage.name] = copies.enter_context(local_copy(path))
        return opened[stage.name]

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
                    f"(there != wanted; {len(lines)} differences): " + "; ".join(lines[:5])
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
        x0_errors=x0_errors,
        read=read,
        digest=digest,
        safety=safety,
    )


def write_exported(cascade: Pretrained, output: str | Path, dtype: str) -> list[Path]:
    """Write the averaged weights of every stage as safetensors; see cascades.export_cascade."""
    check_dtype(dtype)
    names = [EXPORTED, *(f"{stage.name}.safetensors" for stage in cascade.stages)]
    copied = [] if cascade.safety is None else cascade.safety.files
    names += [path.name for path in copied]
    with new_files(output, names) as (record_path, *paths):
        weights = []
        for stage in cascade.stages:
            flat = flat_weights(cascade.weights(stage))
            weights.append(cast_weights(flat, dtype, stage.name))
        for path, of_stage in zip(paths, weights, strict=False):
            with atomic_path(path) as temporary:
                safetensors.numpy.save_file(of_stage, temporary)
        for path, source in zip(paths[len(weights) :], copied, strict=True):
            with atomic_path(path) as temporary:
                temporary.write_bytes(source.read_bytes())
        record = {"config": cascade.config, "encoder": cascade.encoder, "source": cascade.source}
        if cascade.license is not None:
            record["license"] = cascade.license
        if cascade.safety is not None:
            record |= cascade.safety.record()
        if cascade.x0_errors:
            record["x0_errors"] = {
                name: dataclasses.asdict(errors) for name, errors in cascade.x0_errors.items()
            }
        write_json(record_path, record)  # last: where it is, the weights are
    return [record_path, *paths]


@contextlib.contextmanager
def new_files(output: str | Path, names: Sequence[str]) -> Iterator[list[Path]]:
    """Yield paths of files to be written into a directory by the block, and by nobody else.

    Of a block that fails none of them stays, nor does a directory that was not there. What one left
    that was killed is removed by the next.

    Raises:
      UserError: one of them is there already, another process writes there, or the directory is a
        work directory: exported weights would hide those that training writes later.
    """
    output = output_folder(output)
    if stages := sorted(record.parent.name for record in output.glob(f"*/{RECORD}")):
        raise UserError(
            f"{output} is a work directory, with the stages {', '.join(stages)}; export into a "
            "directory of its own (--output)"
        )
    paths = [output / name for name in names]
    there = output.is_dir()
    mark = output / UNFINISHED
    with only_writer(output, "imagen export or import"):
        _remove_unfinished(output)
        if found := [path.name for path in paths if path.exists()]:
            (output / LOCK).unlink(missing_ok=True)
            raise UserError(
                f"{output} has {', '.join(found)} already; choose another --output, or remove what "
                "is there"
            )
        try:
            write_json(mark, {"files": list(names)})
            yield paths
        except BaseException:
            for path in (*paths, mark):
                path.unlink(missing_ok=True)
            if not there:
                (output / LOCK).unlink(missing_ok=True)
                with contextlib.suppress(OSError):  # somebody has put something there
                    output.rmdir()
            raise
        # Nothing but the files is passed on. Who waits for this lock finds them.
        mark.unlink()
        (output / LOCK).unlink(missing_ok=True)


def _remove_unfinished(output: Path) -> None:
    """Remove the files of a call of `new_files` that was killed; the lock of `output` is held."""
    for begun in output.glob(f"{UNFINISHED}.*.tmp"):
        begun.unlink()
    mark = output / UNFINISHED
    if not mark.is_file():
        return
    names = read_json(mark, "list of files that were being written")["files"]
    if not all((output / name).is_file() for name in names):
        left = sorted(
            path.name
            for path in output.iterdir()
            if path.name in names
            or (path.suffix == ".tmp" and any(path.name.startswith(f"{name}.") for name in names))
        )
        for name in left:
            (output / name).unlink()
        if left:
            print(
                f"{output} has what an export or import left that was killed; removed: "
                + ", ".join(left),
                file=sys.stderr,
            )
    mark.unlink()


def check_dtype(dtype: str) -> None:
    """Raise a UserError unless weights are exported in this dtype."""
    if dtype not in EXPORT_DTYPES:
        raise UserError(f"dtype is {dtype!r}; choices: {', '.join(EXPORT_DTYPES)}")


def cast_weights(
    weights: Mapping[str, np.ndarray], dtype: str, stage: str
) -> dict[str, np.ndarray]:
    """Return weights of a stage, by name, in another dtype.

    Raises:
      UserError: one does not fit it; the message has its name.
    """
    cast = {}
    for name, value in weights.items():
        with np.errstate(over="ignore"):  # told below
            cast[name] = value.astype(dtype)
        if not np.isfinite(cast[name]).all():
            raise UserError(f"{stage}: {name} does not fit {dtype}")
    return cast


def flat_weights(params: Any) -> dict[str, np.ndarray]:
    """Return weights by their names, "conv_in/conv/kernel", as NumPy arrays."""
    return flax.traverse_util.flatten_dict(jax.device_get(params), sep="/")
