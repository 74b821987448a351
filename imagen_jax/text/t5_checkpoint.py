"""Reads the encoder of a T5 checkpoint: T5X in all its layouts, and Hugging Face safetensors.

T5X writes a checkpoint of a step as a directory, in one of these layouts:
  legacy       `checkpoint`, flax's msgpack of {"optimizer": {"target": tree}}; a leaf is an array,
               or describes a TensorStore array in a directory beside it, such as
               `target.encoder.layers_0.attention.query.kernel/`
  placeholder  the same, but a leaf is the text "PLACEHOLDER://<directory>"
  Orbax        `state/` with `_METADATA` and one OCDBT database of zarr arrays
Each with the parameters of every layer by themselves (t5x.examples.t5), or scanned: stacked on axis
1, with attention kernels [width, layers, heads, head_width] (t5x.examples.scalable_t5).

Only the encoder and its embedding are read, with TensorStore, each process only what its devices
hold. A damaged checkpoint is an error: TensorStore would read zeros for a chunk that is missing.
Checkpoints of Hugging Face are read by t5_hugging_face.py.
"""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import flax.serialization
import flax.traverse_util
import jax
import ml_dtypes
import numpy as np
import tensorstore as ts

from imagen_jax.errors import UserError
from imagen_jax.files import parse_json
from imagen_jax.paths import local_path
from imagen_jax.text import t5_hugging_face
from imagen_jax.text.leaves import Index, Leaf, first_line
from imagen_jax.text.t5 import ACTIVATIONS, Params, T5Config, config_of

PLACEHOLDER = "PLACEHOLDER://"
SCANNED = "encoder/encoder/"
GIN = "config.gin"
MAX_LAYERS = 1000
MAX_COMPRESSION = 16
"""Numbers of two bytes in a stored byte: weights hardly shrink, bombs do by thousands."""
Shardings = Callable[[str, tuple[int, ...]], jax.sharding.Sharding | None]
"""Name and shape of a parameter -> where it goes; None for the default device."""


Take = Callable[[str, np.ndarray], np.ndarray]
"""Name and values of a parameter -> what becomes of it."""


def load_t5_encoder(
    path: str | Path,
    shardings: Shardings = lambda name, shape: None,
    take: Take | None = None,
) -> tuple[T5Config, Params]:
    """The encoder of a checkpoint.

    Args:
      path: directory of one step of T5X (`checkpoint_1000000`), local or gs://; or the local
        directory or file of Hugging Face safetensors.
      shardings: sharding of each parameter, by its name in T5X ("encoder/layers_0/mlp/wo/kernel").
      take: called with every parameter as a whole, in the order of their names, before the next one
        is read. None reads only what this process's devices hold.

    Returns:
      (config, params): sizes from the shapes, and what they do not say from config.json or
      config.gin, with dtype float32; parameters in T5X's names, in the dtype they were saved in.

    Raises:
      UserError: there is no checkpoint; it is damaged, or holds something else than a T5 encoder;
        the message names the file or the parameter.
    """
    try:
        leaves, config = _open(str(path))
    except (UserError, OSError):
        raise
    except Exception as error:  # of descriptions that are not what they should be, nearly anything
        raise UserError(
            f"{path} is no T5 checkpoint, or damaged: {type(error).__name__}: {first_line(error)}"
        ) from error
    flat = {
        name: _materialise(name, leaves[name], shardings(name, leaves[name].shape), take)
        for name in sorted(leaves, key=lambda name: name.split("/"))
    }
    return config, flax.traverse_util.unflatten_dict(flat, sep="/")


def _open(path: str) -> tuple[dict[str, Leaf], T5Config]:
    """Parameters that are not read yet, and sizes, checked to fit together and the files."""
    local = Path(path)
    if "://" not in path and not local.exists():
        hub = re.fullmatch(r"[\w.-]+/[\w.-]+", path) is not None
        raise UserError(
            f"no T5 checkpoint at {path}: there is no such file or directory"
            + hub
            * "; a model of the Hugging Face hub must be downloaded first (hf download "
            "NAME --local-dir DIR), and DIR given"
        )
    if local.suffix == ".safetensors":
        local = local_path(path)
    hugging_face = local.suffix == ".safetensors" or (
        local.is_dir() and any(local.glob("*.safetensors"))
    )
    leaves = t5_hugging_face.read_leaves(local) if hugging_face else _leaves(path)
    config = config_of(_abstract(leaves))
    if hugging_face:
        return leaves, t5_hugging_face.read_config(local, config)
    if "://" not in path:
        _check_stored(local, leaves)
    return leaves, dataclasses.replace(
        config, mlp_activations=_gin_activations(path, config.mlp_activations)
    )


def _abstract(leaves: Mapping[str, Leaf]) -> Params:
    shapes = {name: jax.ShapeDtypeStruct(leaf.shape, np.float32) for name, leaf in leaves.items()}
    return flax.traverse_util.unflatten_dict(shapes, sep="/")


def _check_stored(path: Path, leaves: Mapping[str, Leaf]) -> None:
    """Raises UserError where arrays say that they are far larger than what is stored of them."""
    stored = sum(file.stat().st_size for file in path.rglob("*") if file.is_file())
    most = MAX_COMPRESSION * stored + 2**24
    for name, leaf in leaves.items():
        size = 2 * max(math.prod(leaf.shape), leaf.chunk)
        most -= 2 * math.prod(leaf.shape)
        if size > MAX_COMPRESSION * stored + 2**24 or most < 0:
            raise UserError(
                f"parameter {name} is of shape {leaf.shape}, in chunks of {leaf.chunk:,} numbers, "
                f"but all of {path} has {stored:,} bytes"
            )


def _gin_activations(path: str, of_shapes: tuple[str, ...]) -> tuple[str, ...]:
    """Activations that the config.gin of a training beside its checkpoint says, if there is one.

    Without it, a gated MLP is taken for that of version 1.1, mT5 and ByT5: of UL2's T5X checkpoints
    the weights have the same shapes.
    """
    if "://" in path:
        return of_shapes
    for file in (Path(path) / GIN, Path(path).absolute().parent / GIN):
        if not file.is_file():
            continue
        found = re.findall(r"mlp_activations\s*=\s*\(([^)]*)\)", file.read_text("utf-8", "replace"))
        names = tuple(re.findall(r"\w+", found[-1])) if found else of_shapes
        if len(names) != len(of_shapes) or not set(names) <= set(ACTIVATIONS):
            raise UserError(
                f"{file}: mlp_activations are {names}, with weights for {len(of_shapes)}; choices: "
                f"{', '.join(ACTIVATIONS)}"
            )
        return names
    return of_shapes


def _materialise(
    name: str, leaf: Leaf, sharding: jax.sharding.Sharding | None, take: Take | None
) -> jax.Array:
    if sharding is None:
        sharding = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    try:
        if take is not None:
            whole = take(name, np.asarray(leaf.read(tuple(slice(0, n) for n in leaf.shape))))
            return jax.make_array_from_callback(leaf.shape, sharding, lambda index: whole[index])  # type: ignore[arg-type]
        return jax.make_array_from_callback(leaf.shape, sharding, lambda index: leaf.read(index))  # type: ignore[arg-type]
    except (ValueError, MemoryError) as error:
        raise UserError(f"parameter {name} cannot be read: {first_line(error)}") from error


def _leaves(path: str) -> dict[str, Leaf]:
    """All parameters of the encoder by T5X's names, whatever the layout."""
    store = ts.KvStore.open(_kvstore(path)).result()
    if (metadata := store.read("state/_METADATA").result()).state == "value":
        leaves = dict(_orbax(path, parse_json(metadata.value, f"{path}/state/_METADATA")))
    elif (msgpack := store.read("checkpoint").result()).state == "value":
        leaves = dict(_msgpack(path, msgpack.value))
    elif (msgpack := store.read("state/checkpoint").result()).state == "value":
        leaves = dict(_msgpack(f"{path}/state", msgpack.value))
    else:
        raise UserError(
            f"no T5 checkpoint in {path}: it has no file `checkpoint`, `state/_METADATA` or "
            "*.safetensors (pytorch_model.bin and GGUF are not read). Give the directory of one "
            "step, such as .../checkpoint_1000000"
        )
    if any(name.startswith(SCANNED) for name in leaves):
        leaves = dict(_unscan(leaves))
    return leaves


def _kvstore(path: str) -> dict[str, Any]:
    """TensorStore's description of a directory."""
    if path.startswith("gs://"):
        bucket, _, prefix = path.removeprefix("gs://").partition("/")
        return {"driver": "gcs", "bucket": bucket, "path": prefix.rstrip("/") + "/"}
    if "://" in path:
        raise UserError(f"{path}: only local paths and gs:// are read")
    return {"driver": "file", "path": str(Path(path).absolute()) + "/"}


def _wanted(name: str) -> bool:
    return name.startswith(("encoder/", "token_embedder/"))


def _within(name: str, relative: str) -> str:
    """A path that a checkpoint names, which must not lead out of its directory.

    Raises:
      UserError: it would.
    """
    parts = relative.rstrip("/").split("/")
    if relative.startswith("/") or "\\" in relative or any(p in ("", ".", "..") for p in parts):
        raise UserError(f"parameter {name}: the checkpoint names the path {relative!r}, which is "
                         "not a plain path inside it")  # fmt: skip
    return "/".join(parts)


def _msgpack(path: str, content: bytes) -> Iterator[tuple[str, Leaf]]:
    """Leaves of the legacy and placeholder layouts."""
    try:
        tree = flax.serialization.msgpack_restore(content)
    except Exception as error:  # of msgpack, many kinds
        raise UserError(f"{path}/checkpoint is damaged: {first_line(error)}") from error
    tree = tree.get("optimizer", tree) if isinstance(tree, dict) else {}
    target = tree.get("target") if isinstance(tree, dict) else None
    if not isinstance(target, dict):
        raise UserError(f"{path}/checkpoint holds no optimizer/target: it is no T5X checkpoint")

    def is_leaf(_: Any, value: Any) -> bool:
        return not isinstance(value, dict) or "driver" in value

    flat = flax.traverse_util.flatten_dict(target, is_leaf=is_leaf, sep="/")
    for name, value in flat.items():
        if not _wanted(name):
            continue
        if isinstance(value, dict):
            if value.get("driver") != "zarr":
                raise UserError(f"parameter {name}: driver {value.get('driver')!r} is not zarr")
            relative = _within(name, str(value.get("kvstore", {}).get("path", "")))
            shape = value.get("metadata", {}).get("shape")
            yield name, _zarr(name, path, relative, shape)
        elif isinstance(value, str) and value.startswith(PLACEHOLDER):
            relative = _within(name, value.removeprefix(PLACEHOLDER))
            yield name, _zarr(name, path, relative, None)
        elif isinstance(value, np.ndarray | jax.Array):
            yield name, _in_memory(name, np.asarray(value))
        else:
            raise UserError(f"parameter {name} is neither an array nor a path: {value!r}")


def _in_memory(name: str, array: np.ndarray) -> Leaf:
    if array.dtype.kind != "f" and array.dtype != ml_dtypes.bfloat16:
        raise UserError(f"parameter {name} is of dtype {array.dtype}: weights are floats")
    return Leaf(array.shape, lambda index: array[index])


def _zarr(name: str, path: str, relative: str, shape: list[int] | None) -> Leaf:
    base = _kvstore(path)
    kvstore = {**base, "path": f"{base['path']}{relative}/"}
    return _tensorstore(name, {"driver": "zarr", "kvstore": kvstore}, shape)


def _orbax(path: str, metadata: dict[str, Any]) -> Iterator[tuple[str, Leaf]]:
    """Leaves of an Orbax checkpoint in an OCDBT database."""
    driver = "zarr3" if metadata.get("use_zarr3") else "zarr"
    base = {"driver": "ocdbt", "base": _kvstore(f"{path}/state")}
    for entry in metadata["tree_metadata"].values():
        top, *keys = (str(key["key"]) for key in entry["key_metadata"])
        name = "/".join(keys)
        if top != "target" or not _wanted(name):
            continue
        kvstore = {**base, "path": ".".join([top, *keys]) + "/"}
        yield name, _tensorstore(name, {"driver": driver, "kvstore": kvstore}, None)


def _tensorstore(name: str, spec: dict[str, Any], shape: list[int] | None) -> Leaf:
    """A stored array; a chunk that is missing is an error, not zeros.

    Raises:
      UserError: it cannot be opened, or has another shape than the checkpoint says.
    """
    try:
        store = ts.open({**spec, "fill_missing_data_reads": False}, open=True).result()
    except ValueError as error:
        raise UserError(f"parameter {name} cannot be opened: {first_line(error)}") from error
    if shape is not None and tuple(shape) != store.shape:
        raise UserError(
            f"parameter {name}: the checkpoint says {tuple(shape)}, the stored array has the shape "
            f"{store.shape}"
        )
    chunk = math.prod(n or 0 for n in store.chunk_layout.read_chunk.shape or ())
    return Leaf(tuple(store.shape), lambda index: store[index].read().result(), chunk)


def _unscan(leaves: dict[str, Leaf]) -> Iterator[tuple[str, Leaf]]:
    """Leaves of every layer by themselves from leaves stacked on axis 1."""
    for name, leaf in leaves.items():
        if not name.startswith(SCANNED):
            yield name, leaf
            continue
        rest = name.removeprefix(SCANNED)
        if len(leaf.shape) < 2:
            raise UserError(f"parameter {name} of shape {leaf.shape} has no axis of layers")
        if leaf.shape[1] > MAX_LAYERS:
            raise UserError(
                f"parameter {name} of shape {leaf.shape} is of {leaf.shape[1]} layers; at most "
                f"{MAX_LAYERS} are read"
            )
        for layer in range(leaf.shape[1]):
            yield f"encoder/layers_{layer}/{rest}", _layer(name, leaf, layer)


def _layer(name: str, leaf: Leaf, layer: int) -> Leaf:
    """One layer of a stacked parameter; heads and their channels become one axis."""
    shape = leaf.shape[:1] + leaf.shape[2:]
    if len(shape) < 3:
        return Leaf(shape, lambda index: leaf.read(_at(index, layer))[:, 0], leaf.chunk)
    heads_first = name.endswith("/out/kernel")
    if heads_first:  # [heads, head_width, width]
        joined, head_width = (shape[0] * shape[1], shape[2]), shape[1]
    else:  # [width, heads, head_width]
        joined, head_width = (shape[0], shape[1] * shape[2]), shape[2]

    def read(index: Index) -> np.ndarray:
        axis = 0 if heads_first else 1
        start, stop, _ = index[axis].indices(joined[axis])
        # Whole heads are read, and what was not asked for is cut off.
        first, last = start // head_width, -(-stop // head_width)
        heads = slice(first, last)
        if heads_first:
            part = leaf.read((heads, slice(layer, layer + 1), slice(None), index[1]))[:, 0]
            part = part.reshape(-1, part.shape[-1])
            return part[start - first * head_width : stop - first * head_width]
        part = leaf.read((index[0], slice(layer, layer + 1), heads, slice(None)))[:, 0]
        part = part.reshape(part.shape[0], -1)
        return part[:, start - first * head_width : stop - first * head_width]

    return Leaf(joined, read, leaf.chunk)


def _at(index: Index, layer: int) -> Index:
    return (index[0], slice(layer, layer + 1), *index[1:])
