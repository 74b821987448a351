"""Weights of installed packages are those that were pinned, to the byte."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from typing import Any

import pytest

from imagen_jax.errors import UserError
from imagen_jax.eval.features import mobilenet
from imagen_jax.eval.features.network import load_network
from imagen_jax.text import minilm
from imagen_jax.text.encoder import load_encoder
from imagen_jax.weight_packages import WeightPackage

USERS: dict[str, tuple[WeightPackage, Any]] = {
    "minilm": (minilm.PACKAGE, lambda: load_encoder("minilm")),
    "minilm-random": (minilm.PACKAGE, lambda: load_encoder("minilm-random")),
    "minilm-words": (minilm.PACKAGE, lambda: load_encoder("minilm-words")),
    "mobilenet-v2": (mobilenet.PACKAGE, lambda: load_network("mobilenet-v2")),
}
"""Name -> (package that it comes from, function that loads it)."""


def install(package: WeightPackage, folder: Path) -> dict[str, Path]:
    """Lays the package's files out in a folder of modules; name -> path."""
    root = folder / "brings_weights"
    record = folder / f"{package.name.replace('-', '_')}-{package.version}.dist-info"
    root.mkdir(parents=True)
    record.mkdir()
    (record / "METADATA").write_text(f"Name: {package.name}\nVersion: {package.version}\n")
    paths = {}
    for path in package.files():
        paths[path.name] = root / path.name
        paths[path.name].symlink_to(path)
    lines = [f"{path.relative_to(folder)},," for path in paths.values()]
    (record / "RECORD").write_text("\n".join(lines) + "\n")
    return paths


@pytest.mark.parametrize("name", USERS)
def test_a_changed_byte_is_told(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package, load = USERS[name]
    paths = install(package, tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    assert package.files() == list(paths.values())
    for path in paths.values():
        original = path.resolve()
        content = bytearray(original.read_bytes())
        content[len(content) // 2] ^= 1
        path.unlink()
        path.write_bytes(content)
        with pytest.raises(UserError) as error:
            load()
        said = str(error.value)
        assert said.startswith(f"{path} is not the file of {package.name} {package.version}")
        assert f"pip install --no-deps --force-reinstall {package.name}==" in said
        path.unlink()
        path.symlink_to(original)


def test_files_are_hashed_again_only_where_they_changed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hashed: list[str] = []
    digest = hashlib.file_digest
    monkeypatch.setattr(
        "hashlib.file_digest", lambda file, kind: hashed.append(file.name) or digest(file, kind)
    )
    paths = install(mobilenet.PACKAGE, tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    (path,) = paths.values()
    mobilenet.PACKAGE.files()
    mobilenet.PACKAGE.files()
    assert hashed.count(str(path)) == 1
    content = path.read_bytes()
    path.unlink()
    path.write_bytes(content)
    os.utime(path, ns=(1, 1))
    mobilenet.PACKAGE.files()
    assert hashed.count(str(path)) == 2


def test_missing_files_say_how_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (path,) = install(mobilenet.PACKAGE, tmp_path).values()
    path.unlink()
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(UserError, match=r"are not installed .*pip install --no-deps fdet-"):
        load_network("mobilenet-v2")
