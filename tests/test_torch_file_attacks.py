"""Files of torch.save that are made to read memory, fill it or run code are one clear error."""

from __future__ import annotations

import collections
import io
import pickle
import resource
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from imagen_jax.errors import UserError
from imagen_jax.eval.features.torch_file import read_torch_file


class Named:
    """A name in a pickle: torch's own, or another."""

    def __init__(self, module: str, name: str):
        self.module, self.name = module, name


class Storage:
    def __init__(self, key: str, length: Any, kind: str = "FloatStorage"):
        self.key, self.length, self.kind = key, length, kind


class Call:
    """A call of a function of torch._utils."""

    def __init__(self, function: str, *args: Any):
        self.function, self.args = function, args


def pickled(value: Any) -> bytes:
    """`value` with Storage and Call as torch.save would write them, which is not installed."""

    class Pickler(pickle._Pickler):  # type: ignore[name-defined]
        def persistent_id(self, found: Any) -> Any:
            if isinstance(found, Storage):
                kind = Named("torch", found.kind)
                return ("storage", kind, found.key, "cpu", found.length)
            return None

        def save(self, found: Any, save_persistent_id: bool = True) -> None:
            if isinstance(found, Named):
                self.write(f"c{found.module}\n{found.name}\n".encode())
            elif isinstance(found, Call):
                self.write(f"ctorch._utils\n{found.function}\n".encode())
                self.save(found.args)
                self.write(pickle.REDUCE)
            else:
                super().save(found, save_persistent_id)

    file = io.BytesIO()
    Pickler(file, 2).dump(value)
    return file.getvalue()


def tensor(offset: Any, shape: Any, stride: Any, storage: Any = None) -> Call:
    storage = Storage("0", 4) if storage is None else storage
    return Call("_rebuild_tensor_v2", storage, offset, shape, stride, False, {})


@pytest.fixture
def write(tmp_path: Path) -> Callable[..., Path]:
    def write(
        value: Any, storages: dict[str, bytes] | None = None,
        compression: int = zipfile.ZIP_STORED,
    ) -> Path:  # fmt: skip
        content = value if isinstance(value, bytes) else pickled(value)
        storages = {"0": np.arange(4, dtype=np.float32).tobytes()} if storages is None else storages
        with zipfile.ZipFile(tmp_path / "file.pth", "w", compression) as archive:
            archive.writestr("archive/data.pkl", content)
            for key, data in storages.items():
                archive.writestr(f"archive/data/{key}", data)
        return tmp_path / "file.pth"

    return write


def test_views_of_a_storage_are_read(write: Callable[..., Path]) -> None:
    tree = collections.OrderedDict(
        whole=tensor(0, (2, 2), (2, 1)), turned=tensor(0, (2, 2), (1, 2)),
        part=tensor(1, (2,), (2,)), number=tensor(3, (), ()), none=tensor(0, (0, 5), (5, 1)),
    )  # fmt: skip
    found = read_torch_file(
        write({"state": tree, "parameter": Call("_rebuild_parameter", tree["part"])})
    )
    expected = {
        "state.whole": [[0, 1], [2, 3]], "state.turned": [[0, 2], [1, 3]], "state.part": [1, 3],
        "state.number": 3, "state.none": np.zeros((0, 5)), "parameter": [1, 3],
    }  # fmt: skip
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        np.testing.assert_array_equal(found[name], value)
        assert not found[name].flags.writeable or not found[name].size


@pytest.mark.parametrize(
    ("offset", "shape", "stride"),
    [
        (0, (2, 2), (-1000, 1000)),  # the last element lies inside, others in foreign memory
        (0, (2, 2), (-(2**40), 2**40)),
        (-3, (2,), (3,)),
        (0, (-1, -4), (1, 1)),
        (2**63, (1,), (1,)),
        (0, (2,), (2**61,)),
        (0, (5,), (1,)),
        (4, (1,), (1,)),
        (0, (2**20, 2**20), (0, 0)),  # a number that would become a terabyte
        (0, (2,), (1.0,)),
        (0, ("2",), (1,)),
        (0, (True, 2), (1, 1)),
        (0, (2, 2), (1,)),
        (0, (1,) * 70, (1,) * 70),
    ],
)
def test_tensors_that_leave_their_storage(
    write: Callable[..., Path], offset: Any, shape: Any, stride: Any
) -> None:
    with pytest.raises(UserError, match=r"file\.pth"):
        read_torch_file(write({"w": tensor(offset, shape, stride)}))


def nested(depth: int) -> dict[str, Any]:
    tree: dict[str, Any] = {}
    for _ in range(depth):
        tree = {"a": tree}
    return tree


def laughs(depth: int) -> dict[str, Any]:
    """2**depth tensors in a few hundred bytes."""
    tree: dict[str, Any] = {"w": tensor(0, (1,), (1,))}
    for _ in range(depth):
        tree = {"a": tree, "b": tree}
    return tree


def circle() -> dict[str, Any]:
    tree: dict[str, Any] = {}
    tree["a"] = tree
    return tree


BAD = {
    "a storage that is a text": ({"w": tensor(0, (1,), (1,), "0")}, None),
    "a storage that is missing": ({"w": tensor(0, (1,), (1,), Storage("9", 4))}, None),
    "a storage that is shorter": ({"w": tensor(0, (1,), (1,), Storage("0", 8))}, None),
    "a storage of no number": ({"w": tensor(0, (1,), (1,), Storage("0", "many"))}, None),
    "bytes that are no numbers": ({"w": tensor(0, (1,), (1,))}, {"0": b"12345"}),
    "a class that is no storage": (
        {"w": tensor(0, (1,), (1,), Storage("0", 4, "FloatTensor"))}, None,
    ),
    "one dictionary in two places": (laughs(60), None),
    "a dictionary in itself": (circle(), None),
    "a text of gigabytes": (b"\x80\x04\x8d" + (2**40).to_bytes(8, "little") + b"x.", None),
    "an attribute of a function": (b"\x80\x02ctorch._utils\n_rebuild_tensor_v2\n}b.", None),
    "os.system": (b"cos\nsystem\n(S'touch ran'\ntR.", None),
    "a name with dots": (b"\x80\x04\x8c\x05torch\x8c\x0cos.path.join\x93.", None),
    "nothing": (b"", None),
    "no end": (b"\x80\x02}", None),
    "a deep pickle": (b"(" * 100_000 + b"." , None),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD)
def test_damaged_and_hostile_files_are_one_error(
    write: Callable[..., Path], name: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    value, storages = BAD[name]
    path = write(value, storages)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(UserError, match=r"file\.pth"):
        read_torch_file(path)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss < before + 200_000  # kB
    assert not (tmp_path / "ran").exists()


def legacy(value: Any, tmp_path: Path) -> Path:
    (tmp_path / "file.pth").write_bytes(pickle.dumps(value, 2))
    return tmp_path / "file.pth"


def test_what_is_wrong_is_said(
    write: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = tensor(0, (1,), (1,))
    for value, message in (
        (b"\x80\x02(U\x06moduleNNNNtQ.", "the pickle refers to a 'module', which is no storage"),
        ({"a": {"b": one}, "a.b": one}, "it holds two tensors 'a.b'"),
        (
            {"w": tensor(0, (2,), (-1,))},
            r"a tensor has the offset, .* \(0, 2, -1\): none",
        ),
        ({"w": tensor(4, (1,), (1,))}, "it is damaged: 'w' reaches beyond its storage"),
        (
            {"w": tensor(0, (1,), (1,), Storage("0", 8))},
            "it is damaged: the storage of",
        ),
    ):
        with pytest.raises(UserError, match=rf"file\.pth: {message}"):
            read_torch_file(write(value))
    with zipfile.ZipFile(write({"w": one}), "a") as archive:
        archive.writestr("archive/byteorder", "big")
    with pytest.raises(UserError, match="it was saved on a big-endian machine, which is not read"):
        read_torch_file(tmp_path / "file.pth")
    with pytest.raises(UserError, match=r"file\.pth: it is no file of torch\.save"):
        read_torch_file(legacy(5, tmp_path))
    kinds = ("FloatStorage", "IntStorage")
    twice = {kind: tensor(0, (1,), (1,), Storage("0", 1024, kind)) for kind in kinds}
    with pytest.raises(UserError, match=r"its storages hold more than the \d+ bytes of the file"):
        read_torch_file(write(twice, {"0": bytes(4096)}))
    monkeypatch.setattr("imagen_jax.eval.features.torch_file.MAX_PICKLE", 9)
    with pytest.raises(UserError, match=r"data\.pkl has \d+ bytes; at most 9 are read"):
        read_torch_file(write({"w": one}))


def test_deep_dictionaries_are_read(write: Callable[..., Path]) -> None:
    deep = b"\x80\x02" + b"}X\x01\x00\x00\x00a" * 50_000 + b"}" + b"s" * 50_000 + b"."
    assert read_torch_file(write(deep)) == {}


def test_a_memo_of_gigabytes_is_not_made(write: Callable[..., Path]) -> None:
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    assert read_torch_file(write(b"\x80\x02}r\xff\xff\xff\x7f.")) == {}
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss < before + 200_000  # kB


def test_zip_archives_that_unfold(write: Callable[..., Path]) -> None:
    value = {"w": tensor(0, (1,), (1,), Storage("0", 2**24))}
    path = write(value, {"0": bytes(2**26)}, zipfile.ZIP_DEFLATED)
    assert path.stat().st_size < 2**20
    with pytest.raises(UserError, match="is compressed, which"):
        read_torch_file(path)
    # One part of the file, in many entries.
    many = {f"w{i}": tensor(0, (1,), (1,), Storage(str(i), 2**18)) for i in range(50)}
    path = write(many, {str(i): bytes(2**20 if i == 0 else 1) for i in range(50)})
    content = path.read_bytes()
    with zipfile.ZipFile(path) as archive:
        first = archive.getinfo("archive/data/0").header_offset
        directory = bytearray(content[archive.start_dir :])
    for i in range(1, 50):
        name = f"archive/data/{i}".encode()
        at = directory.index(name + b"PK" if i < 49 else name) - 46
        directory[at + 20 : at + 28] = (2**20).to_bytes(4, "little") * 2
        directory[at + 42 : at + 46] = first.to_bytes(4, "little")
    path.write_bytes(content[: archive.start_dir] + directory)
    with pytest.raises(UserError, match=r"file\.pth"):
        read_torch_file(path)
