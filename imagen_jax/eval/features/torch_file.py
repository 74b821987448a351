"""Tensors from files of torch.save, without torch and without running code of the file.

Such a file is a pickle whose tensors name storages that lie beside it: as entries of a zip archive,
or, in files of torch before 1.6, one after another behind the pickle. Only the few functions that
rebuild tensors are known here; a pickle that names anything else is refused. Nothing is allocated
by what the file says of itself: storages are parts of the file, and tensors are views of storages.
"""

from __future__ import annotations

import io
import math
import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import ml_dtypes
import numpy as np

from imagen_jax.errors import UserError
from imagen_jax.files import given_file

DTYPES: dict[str, Any] = {
    "FloatStorage": np.float32, "DoubleStorage": np.float64, "HalfStorage": np.float16,
    "BFloat16Storage": ml_dtypes.bfloat16, "LongStorage": np.int64, "IntStorage": np.int32,
    "ShortStorage": np.int16, "CharStorage": np.int8, "ByteStorage": np.uint8,
    "BoolStorage": np.bool_,
}  # fmt: skip
LEGACY_MAGIC = 0x1950A86A20F9469CFC6C
MAX_PICKLE = 2**24
"""Bytes of a pickle: one describes a tensor in some 300, and can make 64 of each of its own."""


class _Dtype(NamedTuple):
    """Stand-in for a class of storages, by its key in DTYPES."""

    name: str

    @property
    def dtype(self) -> np.dtype:
        return np.dtype(DTYPES[self.name])


class _Storage(NamedTuple):
    """A name of a storage: what it holds is read where it is known how."""

    dtype: np.dtype
    key: str
    length: int


class _Tensor(NamedTuple):
    """A strided view of a storage, in elements."""

    storage: _Storage
    offset: int
    shape: tuple[int, ...]
    stride: tuple[int, ...]


def _dictionary(*pairs: Any) -> dict[Any, Any]:
    return dict(*pairs)


def _rebuild_tensor(storage: Any, offset: Any, shape: Any, stride: Any, *_: Any) -> _Tensor:
    tensor = _Tensor(storage, offset, tuple(shape), tuple(stride))
    numbers = (offset, *tensor.shape, *tensor.stride)
    if not isinstance(storage, _Storage) or len(tensor.shape) != len(tensor.stride):
        raise UserError("a tensor has no storage, or not one stride for each axis")
    if not all(type(n) is int and 0 <= n < 2**62 for n in numbers):
        raise UserError(
            f"a tensor has the offset, shape and stride {numbers}: none may be negative"
        )
    return tensor


def _rebuild_parameter(tensor: Any, *_: Any) -> Any:
    return tensor


_KNOWN: dict[tuple[str, str], Any] = {
    ("collections", "OrderedDict"): _dictionary,
    ("torch._utils", "_rebuild_tensor_v2"): _rebuild_tensor,
    ("torch._utils", "_rebuild_parameter"): _rebuild_parameter,
}


class _Unpickler(pickle._Unpickler):  # type: ignore[name-defined]
    """Knows tensors and dictionaries, and nothing else.

    In Python: the one in C makes room for as many objects as a pickle of a few bytes can count to.
    """

    dispatch: ClassVar[Any] = dict(pickle._Unpickler.dispatch)  # type: ignore[attr-defined]

    def find_class(self, module: str, name: str) -> Any:
        """The stand-in of a name in the pickle."""
        if module == "torch" and name in DTYPES:
            return _Dtype(name)
        if (module, name) not in _KNOWN:
            raise UserError(
                f"the pickle asks for {module}.{name}; only tensors in dictionaries are read: save "
                "the state_dict of the network, not the network"
            )
        return _KNOWN[module, name]

    def persistent_load(self, pid: Any) -> _Storage:
        """The storage of ("storage", type, key, device, number of elements, ...)."""
        kind, of, key, _, count, *_ = pid
        if kind != "storage" or not isinstance(of, _Dtype):
            raise UserError(f"the pickle refers to a {kind!r}, which is no storage")
        return _Storage(of.dtype, str(key), int(count))

    def load_build(self) -> None:
        """Drops what would be set on an object: of a state_dict, versions of its layers."""
        self.stack.pop()  # type: ignore[attr-defined]

    dispatch[pickle.BUILD[0]] = load_build


def read_torch_file(path: str | Path) -> dict[str, np.ndarray]:
    """The tensors of a state_dict, by their names; those of nested dictionaries joined by ".".

    Returns:
      Views of the file's content, which cannot be written.

    Raises:
      UserError: no such file, no file of torch.save, damaged, or it holds something else than
        tensors.
    """
    with given_file(path, "file of weights") as local, open(local, "rb") as file:
        try:
            content = file.read()
            if zipfile.is_zipfile(io.BytesIO(content)):
                return _read_zip(content)
            return _read_legacy(content)
        except UserError as error:
            raise UserError(f"{path}: {error}") from error
        except Exception as error:  # damaged pickles make Python raise nearly anything
            raise UserError(
                f"{path} is no file of torch.save, or damaged: {type(error).__name__}: {error}"
            ) from error


def _read_zip(content: bytes) -> dict[str, np.ndarray]:
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        pickles = [name for name in archive.namelist() if name.endswith("/data.pkl")]
        if len(pickles) != 1:
            raise UserError(f"a zip archive, but not of torch.save: it has {len(pickles)} data.pkl")
        root = pickles[0].removesuffix("data.pkl")

        def read(name: str, most: int = len(content)) -> bytes:
            entry = archive.getinfo(name)
            if entry.compress_type != zipfile.ZIP_STORED:
                raise UserError(f"its entry {name} is compressed, which torch.save never does")
            if entry.file_size > most:
                raise UserError(
                    f"its entry {name} has {entry.file_size} bytes; at most {most} are read"
                )
            return archive.read(entry)

        order = f"{root}byteorder"
        if order in archive.namelist() and read(order) != b"little":
            raise UserError("it was saved on a big-endian machine, which is not read")
        tree = _Unpickler(io.BytesIO(read(pickles[0], MAX_PICKLE))).load()
        return _tensors(tree, lambda storage: read(f"{root}data/{storage.key}"), len(content))


def _read_legacy(content: bytes) -> dict[str, np.ndarray]:
    pickles = io.BytesIO(content[:MAX_PICKLE])
    if _Unpickler(pickles).load() != LEGACY_MAGIC:
        raise UserError("it is no file of torch.save")
    for _ in range(2):  # version of the protocol, and facts of the machine
        _Unpickler(pickles).load()
    tree = _Unpickler(pickles).load()
    keys = _Unpickler(pickles).load()
    file = io.BytesIO(content)
    file.seek(pickles.tell())
    sizes = {view.storage.key: view.storage.dtype.itemsize for _, view in _flatten(tree)}
    contents = {}
    for key in keys:
        count = int.from_bytes(file.read(8), "little")
        contents[str(key)] = file.read(count * sizes[str(key)])
    return _tensors(tree, lambda storage: contents[storage.key], len(content))


def _flatten(tree: Any) -> list[tuple[str, _Tensor]]:
    found: dict[str, _Tensor] = {}
    seen: set[int] = set()
    left = [("", tree)]
    while left:
        prefix, node = left.pop()
        if not isinstance(node, dict):
            raise UserError(f"it holds a {type(node).__name__}, not a dictionary of tensors")
        if id(node) in seen:  # or a few of them could stand for a million
            raise UserError("it holds one dictionary in two places")
        seen.add(id(node))
        for key, value in node.items():
            name = f"{prefix}{key}"
            if isinstance(value, _Tensor) and name in found:
                raise UserError(f"it holds two tensors {name!r}")
            if isinstance(value, _Tensor):
                found[name] = value
            elif isinstance(value, dict):
                left.append((f"{name}.", value))
    return list(found.items())


def _tensors(tree: Any, read: Callable[[_Storage], bytes], size: int) -> dict[str, np.ndarray]:
    result: dict[str, np.ndarray] = {}
    storages: dict[_Storage, np.ndarray] = {}
    for name, (storage, offset, shape, stride) in _flatten(tree):
        if storage not in storages:
            storages[storage] = values = np.frombuffer(read(storage), storage.dtype)
            if sum(of.nbytes for of in storages.values()) > size:
                raise UserError(f"its storages hold more than the {size} bytes of the file")
            if len(values) != storage.length:
                raise UserError(
                    f"it is damaged: the storage of {name!r} holds {len(values)} numbers, not "
                    f"{storage.length}"
                )
        values = storages[storage]
        count = math.prod(shape)
        last = offset + sum((n - 1) * step for n, step in zip(shape, stride, strict=True))
        if count > len(values) or (count and last >= len(values)):
            raise UserError(f"it is damaged: {name!r} reaches beyond its storage")
        if not count:
            result[name] = np.zeros(shape, storage.dtype)
            continue
        strides = [step * values.itemsize for step in stride]
        result[name] = np.lib.stride_tricks.as_strided(
            values[offset:], shape, strides, writeable=False
        )
    return result
