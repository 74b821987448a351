"""Compiled code is kept in a directory of the user alone, and loaded from nowhere else."""

from __future__ import annotations

import os
import shutil
import tempfile
import warnings
from pathlib import Path
from typing import Any

import pytest

from imagen_jax.caches import cache_directory, check_private
from imagen_jax.errors import UserError
from imagen_jax.files import given_file
from imagen_jax.native import compiling


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache"


def permissions(path: Path) -> int:
    return path.stat().st_mode & 0o777


def test_the_cache_directory_is_private(cache: Path) -> None:
    before = os.umask(0o002)
    try:
        directory = cache_directory("native")
    finally:
        os.umask(before)
    assert directory.parent == cache / "imagen-jax"
    assert permissions(directory) == permissions(directory.parent) == 0o700


@pytest.mark.parametrize("shared", ["imagen-jax", "native"])
def test_a_directory_that_others_may_write_is_not_used(cache: Path, shared: str) -> None:
    ours = cache_directory("native")
    (ours if shared == "native" else ours.parent).chmod(0o777)
    with pytest.warns(UserWarning, match=f"{shared}.* can be written by others"):
        directory = cache_directory("native")
    assert not directory.is_relative_to(cache)
    assert permissions(directory) == 0o700


def test_a_directory_of_someone_else_is_not_used(
    cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if os.getuid() == 0:
        os.chown(cache_directory("native"), 12345, -1)
    else:
        cache_directory("native")
        monkeypatch.setattr(os, "getuid", lambda: 12345)
    with pytest.warns(UserWarning, match="belongs to another user"):
        assert not cache_directory("native").is_relative_to(cache)


def test_a_relative_path_is_ignored(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert cache_directory("native").is_relative_to(tmp_path / "home" / ".cache")
    assert not (tmp_path / "relative").exists()


@pytest.mark.parametrize("home", ["/proc/none", "/dev/null"])
def test_a_home_that_cannot_be_written(home: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setenv("HOME", home)
    with pytest.warns(UserWarning, match=r"is kept in .* only: .*Set XDG_CACHE_HOME"):
        directory = cache_directory("native")
    (directory / "file").write_text("it can be written")


def test_no_home_at_all(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setattr(os.path, "expanduser", lambda path: path)
    with pytest.warns(UserWarning, match="there is no home directory"):
        assert permissions(cache_directory("compiled")) == 0o700


def test_a_temporary_directory_of_someone_else_is_not_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setenv("XDG_CACHE_HOME", "/dev/null")
    planted = tmp_path / f"imagen-jax-{os.getuid()}"
    planted.mkdir(mode=0o777)
    planted.chmod(0o777)
    with pytest.warns(UserWarning, match="is kept in"):
        assert not cache_directory("native").is_relative_to(planted)


@pytest.mark.skipif(not any(map(shutil.which, compiling.COMPILERS)), reason="needs a C++ compiler")
def test_a_library_that_others_may_write_is_compiled_again(
    cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "sources").mkdir()
    (tmp_path / "sources" / "small.cc").write_text('extern "C" int number() { return NUMBER; }')
    monkeypatch.setattr(compiling, "SOURCES", tmp_path / "sources")
    before = os.umask(0o000)
    try:
        library = compiling._compiled("small.cc", {"NUMBER": "7"})
    finally:
        os.umask(before)
    assert library.is_relative_to(cache)
    assert permissions(library) == 0o700
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        written = library.stat().st_mtime_ns
        assert compiling._compiled("small.cc", {"NUMBER": "7"}) == library
        assert library.stat().st_mtime_ns == written
    library.write_bytes(b"planted")
    library.chmod(0o777)
    with pytest.warns(UserWarning, match="compiled again: .* can be written by others"):
        again = compiling._compiled("small.cc", {"NUMBER": "7"})
    assert again.read_bytes() != b"planted"


def test_a_cache_that_is_a_link_or_cannot_be_written(
    cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "link").symlink_to(tmp_path)
    with pytest.raises(PermissionError, match="link is a link"):
        check_private(tmp_path / "link")
    monkeypatch.setattr(os, "access", lambda *_: False)
    with pytest.warns(UserWarning, match=r"native\S* cannot be written"):
        assert not cache_directory("native").is_relative_to(cache)


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (IsADirectoryError, "x/y is a directory; a list of prompts is a file"),
        (NotADirectoryError, "no list of prompts x/y: a part of the path is no directory"),
        (PermissionError(13, "Permission denied"), "x/y may not be read: Permission denied"),
        (FileNotFoundError, "no list of prompts x/y: there is no such file"),
    ],
)
def test_files_that_a_user_gave(error: Any, message: str) -> None:
    with pytest.raises(UserError, match=message), given_file("x/y", "list of prompts"):
        raise error
