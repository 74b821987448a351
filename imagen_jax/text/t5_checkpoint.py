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
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import flax.serialization
import flax.traverse_util
import jax
import numpy as np
import tensorstore as ts

from imagen_jax.errors import UserError
from imagen_jax.text.t5 import Params, T5Config, config_of

PLACEHOLDER = "PLACEHOLDER://"
SCANNED = "encoder/encoder/"
Index = tuple[slice, ...]


@dataclass(frozen=True)
class Leaf:
    """A parameter that is not read yet.

    Attributes:
      shape: its shape.
      read: the part at an index of whole-number slices, as a NumPy array.
    """

    shape: tuple[int, ...]
    read: Callable[[Index], np.ndarray]


Shardings = Callable[[str, tuple[int, ...]], jax.sharding.Sharding | None]
"""Name and shape of a parameter -> where it goes; None for the default device."""


def load_t5_encoder(
    path: str | Path, shardings: Shardings = lambda name, shape: None
) -> tuple[T5Config, Params]:
    """The encoder of a checkpoint.

    Args:
      path: directory of one step of T5X (`checkpoint_1000000`), local or gs://; or the local
        directory or file of Hugging Face safetensors.
      shardings: sharding of each parameter, by its name in T5X ("encoder/layers_0/mlp/wo/kernel").

    Returns:
      (config, params): sizes as read from the shapes, with dtype float32; parameters in T5X's
      names, in the dtype they were saved in.

    Raises:
      UserError: there is no checkpoint; it is damaged, or holds something else than a T5 encoder;
        the message names the file or the parameter.
    """
    leaves = _leaves(str(path))
    flat = {
        name: _materialise(name, leaf, shardings(name, leaf.shape)) for name, leaf in leaves.items()
    }
    params = flax.traverse_util.unflatten_dict(flat, sep="/")
    return config_of(params), params


def _materialise(name: str, leaf: Leaf, sharding: jax.sharding.Sharding | None) -> jax.Array:
    if sharding is None:
        sharding = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    try:
        return jax.make_array_from_callback(leaf.shape, sharding, lambda index: leaf.read(index))  # type: ignore[arg-type]
    except ValueError as error:
        raise UserError(f"parameter {name} cannot be read: {_first_line(error)}") from error


def _first_line(error: Exception) -> str:
    return str(error).splitlines()[0][:500]


def _leaves(path: str) -> dict[str, Leaf]:
    """All parameters of the encoder by T5X's names, whatever the layout."""
    local = Path(path)
    if local.suffix == ".safetensors" or (local.is_dir() and any(local.glob("*.safetensors"))):
        return _safetensors(local)
    store = ts.KvStore.open(_kvstore(path)).result()
    if (metadata := store.read("state/_METADATA").result()).state == "value":
        leaves = dict(_orbax(path, json.loads(metadata.value)))
    elif (msgpack := store.read("checkpoint").result()).state == "value":
        leaves = dict(_msgpack(path, msgpack.value))
    elif (msgpack := store.read("state/checkpoint").result()).state == "value":
        leaves = dict(_msgpack(f"{path}/state", msgpack.value))
    else:
        raise UserError(
            f"no T5 checkpoint in {path}: it has no file `checkpoint`, `state/_METADATA` or "
            "*.safetensors. Give the directory of one step, such as .../checkpoint_1000000"
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
        raise UserError(f"{path}/checkpoint is damaged: {_first_line(error)}") from error
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
            yield name, _in_memory(np.asarray(value))
        else:
            raise UserError(f"parameter {name} is neither an array nor a path: {value!r}")


def _in_memory(array: np.ndarray) -> Leaf:
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
        raise UserError(f"parameter {name} cannot be opened: {_first_line(error)}") from error
    if shape is not None and tuple(shape) != store.shape:
        raise UserError(
            f"parameter {name}: the checkpoint says {tuple(shape)}, the stored array has the shape "
            f"{store.shape}"
        )
    return Leaf(tuple(store.shape), lambda index: store[index].read().result())


def _unscan(leaves: dict[str, Leaf]) -> Iterator[tuple[str, Leaf]]:
    """Leaves of every layer by themselves from leaves stacked on axis 1."""
    for name, leaf in leaves.items():
        if not name.startswith(SCANNED):
            yield name, leaf
            continue
        rest = name.removeprefix(SCANNED)
        if len(leaf.shape) < 2:
            raise UserError(f"parameter {name} of shape {leaf.shape} has no axis of layers")
        for layer in range(leaf.shape[1]):
            yield f"encoder/layers_{layer}/{rest}", _layer(name, leaf, layer)


def _layer(name: str, leaf: Leaf, layer: int) -> Leaf:
    """One layer of a stacked parameter; heads and their channels become one axis."""
    shape = leaf.shape[:1] + leaf.shape[2:]
    if len(shape) < 3:
        return Leaf(shape, lambda index: leaf.read(_at(index, layer))[:, 0])
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

    return Leaf(joined, read)


def _at(index: Index, layer: int) -> Index:
    return (index[0], slice(layer, layer + 1), *index[1:])


HUGGING_FACE = (
    (r"shared\.weight", "token_embedder/embedding"),
    (r"encoder\.final_layer_norm\.weight", "encoder/encoder_norm/scale"),
    (r"encoder\.block\.0\.layer\.0\.SelfAttention\.relative_attention_bias\.weight",
     "encoder/relpos_bias/rel_embedding"),
    (r"encoder\.block\.(\d+)\.layer\.0\.SelfAttention\.q\.weight",
     r"encoder/layers_\1/attention/query/kernel"),
    (r"encoder\.block\.(\d+)\.layer\.0\.SelfAttention\.k\.weight",
     r"encoder/layers_\1/attention/key/kernel"),
    (r"encoder\.block\.(\d+)\.layer\.0\.SelfAttention\.v\.weight",
     r"encoder/layers_\1/attention/value/kernel"),
    (r"encoder\.block\.(\d+)\.layer\.0\.SelfAttention\.o\.weight",
     r"encoder/layers_\1/attention/out/kernel"),
    (r"encoder\.block\.(\d+)\.layer\.0\.layer_norm\.weight",
     r"encoder/layers_\1/pre_attention_layer_norm/scale"),
    (r"encoder\.block\.(\d+)\.layer\.1\.DenseReluDense\.(wi|wi_0|wi_1|wo)\.weight",
     r"encoder/layers_\1/mlp/\2/kernel"),
    (r"encoder\.block\.(\d+)\.layer\.1\.layer_norm\.weight",
     r"encoder/layers_\1/pre_mlp_layer_norm/scale"),
)  # fmt: skip
"""Names of transformers' T5EncoderModel -> T5X's; matrices are transposed but for the embedding."""


def _t5x_name(name: str) -> str | None:
    """T5X's name of a tensor of transformers; None for the decoder and for copies."""
    for pattern, replacement in HUGGING_FACE:
        if match := re.fullmatch(pattern, name):
            return match.expand(replacement)
    return None


def _tensor(part: Any, turned: bool) -> Leaf:
    """A tensor of safetensors, transposed or as it is."""
    shape = tuple(part.get_shape())
    if turned:
        return Leaf(shape[::-1], lambda index: part[index[::-1]].T)
    return Leaf(shape, lambda index: part[index])


def _safetensors(path: Path) -> dict[str, Leaf]:
    from safetensors import safe_open

    leaves: dict[str, Leaf] = {}
    for file in sorted(path.glob("*.safetensors")) if path.is_dir() else [path]:
        try:
            content = safe_open(str(file), framework="numpy")
        except Exception as error:  # SafetensorError is no ValueError
            raise UserError(f"{file} is damaged: {_first_line(error)}") from error
        for key in content.keys():  # noqa: SIM118
            name = _t5x_name(key)
            if name is None:
                continue
            turned = name.endswith(("/kernel", "/rel_embedding"))
            leaves[name] = _tensor(content.get_slice(key), turned)
    if "token_embedder/embedding" not in leaves:
        raise UserError(f"{path} holds no T5 encoder: there is no tensor `shared.weight`")
    return leaves
