"""Reads tensors from files of torch.save, without torch and without running code of the file.

Such a file is a pickle whose tensors name storages that lie beside it: as entries of a zip archive,
or, in files of torch before 1.6, one after another behind the pickle. Only the few functions that
rebuild tensors are known here; a pickle that names anything else is refused.
"""

from __future__ import annotations

import collections
import io
import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np

from imagen_jax.errors import UserError

DTYPES: dict[str, Any] = {
    "FloatStorage": np.float32, "DoubleStorage": np.float64, "HalfStorage": np.float16,
    "BFloat16Storage": ml_dtypes.bfloat16, "LongStorage": np.int64, "IntStorage": np.int32,
    "ShortStorage": np.int16, "CharStorage": np.int8, "ByteStorage": np.uint8,
    "BoolStorage": np.bool_,
}  # fmt: skip
LEGACY_MAGIC = 0x1950A86A20F9469CFC6C


class _Storage(NamedTuple):
    """A name of a storage: what it holds is read where it is known how."""

    dtype: Any
    key: str
    length: int


class _Tensor(NamedTuple):
    """A strided view of a storage, in elements."""

    storage: _Storage
    offset: int
    shape: tuple[int, ...]
    stride: tuple[int, ...]


class _Unpickler(pickle.Unpickler):
    """Knows tensors and ordered dictionaries, and nothing else."""

    def find_class(self, module: str, name: str) -> Any:
        """The stand-in of a name in the pickle."""
        if module == "torch" and name in DTYPES:
            return DTYPES[name]
        known: dict[tuple[str, str], Any] = {
            ("collections", "OrderedDict"): collections.OrderedDict,
            ("torch._utils", "_rebuild_tensor_v2"): lambda storage, offset, shape, stride, *_: (
                _Tensor(storage, offset, tuple(shape), tuple(stride))
            ),
            ("torch._utils", "_rebuild_parameter"): lambda tensor, *_: tensor,
        }
        if (module, name) not in known:
            raise UserError(
                f"the pickle asks for {module}.{name}; only tensors in dictionaries are read: save "
                "the state_dict of the network, not the network"
            )
        return known[module, name]

    def persistent_load(self, pid: Any) -> _Storage:
        """The storage of ("storage", type, key, device, number of elements, ...)."""
        kind, dtype, key, _, count, *_ = pid
        if kind != "storage":
            raise UserError(f"the pickle refers to a {kind!r}, which is no storage")
        return _Storage(dtype, str(key), int(count))


def read_torch_file(path: str | Path) -> dict[str, np.ndarray]:
    """The tensors of a state_dict, by their names; those of nested dictionaries joined by ".".

    Raises:
      UserError: no file of torch.save, damaged, or it holds other things than tensors.
    """
    try:
        if zipfile.is_zipfile(path):
            return _read_zip(path)
        return _read_legacy(path)
    except (pickle.UnpicklingError, KeyError, EOFError, IndexError, zipfile.BadZipFile) as error:
        raise UserError(f"{path} is no file of torch.save, or damaged: {error}") from error


def _read_zip(path: str | Path) -> dict[str, np.ndarray]:
    with zipfile.ZipFile(path) as archive:
        (pickled,) = [name for name in archive.namelist() if name.endswith("/data.pkl")] or [""]
        if not pickled:
            raise UserError(f"{path} is a zip archive, but not of torch.save: it has no data.pkl")
        root = pickled.removesuffix("data.pkl")
        if (
            f"{root}byteorder" in archive.namelist()
            and archive.read(f"{root}byteorder") != b"little"
        ):
            raise UserError(f"{path} was saved on a big-endian machine, which is not read")
        tree = _Unpickler(io.BytesIO(archive.read(pickled))).load()
        return _tensors(path, tree, lambda storage: archive.read(f"{root}data/{storage.key}"))


def _read_legacy(path: str | Path) -> dict[str, np.ndarray]:
    with open(path, "rb") as file:
        if _Unpickler(file).load() != LEGACY_MAGIC:
            raise UserError(f"{path} is no file of torch.save")
        for _ in range(2):  # version of the protocol, and facts of the machine
            _Unpickler(file).load()
        tree = _Unpickler(file).load()
        keys = _Unpickler(file).load()
        dtypes = {view.storage.key: view.storage.dtype for _, view in _flatten(path, tree)}
        contents = {}
        for key in keys:
            count = int.from_bytes(file.read(8), "little")
            contents[str(key)] = file.read(count * np.dtype(dtypes[str(key)]).itemsize)
    return _tensors(path, tree, lambda storage: contents[storage.key])


def _flatten(path: str | Path, tree: Any, prefix: str = "") -> list[tuple[str, _Tensor]]:
    if not isinstance(tree, dict):
        raise UserError(f"{path} holds a {type(tree).__name__}, not a dictionary of tensors")
    found: list[tuple[str, _Tensor]] = []
    for name, value in tree.items():
        if isinstance(value, _Tensor):
            found.append((f"{prefix}{name}", value))
        elif isinstance(value, dict):
            found += _flatten(path, value, f"{prefix}{name}.")
    return found


def _tensors(
    path: str | Path, tree: Any, read: Callable[[_Storage], bytes]
) -> dict[str, np.ndarray]:
    result = {}
    for name, (storage, offset, shape, stride) in _flatten(path, tree):
        values = np.frombuffer(read(storage), storage.dtype)
        last = offset + sum((n - 1) * step for n, step in zip(shape, stride, strict=True))
        if len(values) != storage.length or (0 not in shape and not 0 <= last < len(values)):
            raise UserError(f"{path} is damaged: {name!r} reaches beyond its storage")
        strides = [step * values.itemsize for step in stride]
        view = np.lib.stride_tricks.as_strided(values[offset:], shape, strides, writeable=False)
        result[name] = np.ascontiguousarray(view).reshape(shape)
    return result
