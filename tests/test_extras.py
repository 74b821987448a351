"""Missing optional packages are named, with the command that installs them from where we came."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import json
from pathlib import Path
from typing import Any

import pytest

from imagen_jax import extras
from imagen_jax.errors import UserError
from imagen_jax.main import main


def installed_from(monkeypatch: pytest.MonkeyPatch, origin: dict[str, Any] | None) -> None:
    class Distribution:
        def read_text(self, name: str) -> str | None:
            assert name == "direct_url.json"
            return json.dumps(origin) if origin else None

    monkeypatch.setattr(importlib.metadata, "distribution", lambda name: Distribution())


def test_the_command_names_the_folder_or_address_of_the_installation(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    clone = tmp_path / "my clone"
    clone.mkdir()
    installed_from(monkeypatch, {"url": clone.as_uri(), "dir_info": {"editable": True}})
    assert extras.install_command("train") == f"pip install '{clone}[train]'"
    git = {"url": "https://host/us/imagen", "vcs_info": {"vcs": "git", "commit_id": "0a1b"}}
    installed_from(monkeypatch, git)
    assert (
        extras.install_command("page")
        == "pip install 'imagen-jax[page] @ git+https://host/us/imagen@0a1b'"
    )


@pytest.mark.parametrize("origin", [None, {"url": "file:///no/such/folder", "dir_info": {}}])
def test_the_command_never_asks_a_registry_for_this_package(
    origin: dict[str, Any] | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    installed_from(monkeypatch, origin)
    assert extras.install_command("train") == "in a clone of the repository, pip install '.[train]'"


@pytest.mark.parametrize(
    "arguments",
    [
        ["embed", "--scenes", "quickstart", "--output", "out"],
        ["train", "--config", "quickstart", "--stage", "base", "--data", "x", "--workdir", "y"],
        ["data", "inspect", "x", "--output", "y"],
    ],
    ids=lambda arguments: arguments[0],
)
def test_commands_that_need_tensorflow_say_so_first(
    arguments: list[str],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name == "tensorflow" else find(name)
    )
    monkeypatch.chdir(tmp_path)
    assert main(arguments) == 64
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"imagen: error: imagen {arguments[0]}")
    assert "not installed (tensorflow): " in line
    assert "pip install" in line
    assert not list(tmp_path.iterdir())


def test_an_installed_extra_is_enough() -> None:
    extras.require("train", "imagen train")
    with pytest.raises(KeyError):
        extras.require("no such extra", "nothing")


def test_a_missing_page_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"imagen demo needs .* \(nicegui\): .*\[page\]"):
        extras.require("page", "imagen demo")
