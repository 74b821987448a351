"""The notebooks run from their first cells to their last, made small, and show images."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import nbclient
import nbformat
import pytest
import tiny

NOTEBOOKS = Path(__file__).resolve().parent.parent / "notebooks"

CELLS = {path.stem: nbformat.read(path, as_version=4) for path in NOTEBOOKS.glob("*.ipynb")}


def execute(name: str, where: Path, **parameters: Any) -> list[Any]:
    """Code cells of a notebook after it ran in a directory with other parameters."""
    notebook = nbformat.read(NOTEBOOKS / f"{name}.ipynb", as_version=4)
    cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
    (cell,) = (c for c in cells if "parameters" in c.metadata.get("tags", []))
    there = {line.partition(" = ")[0] for line in cell.source.splitlines()}
    assert parameters.keys() <= there, f"{name} has the parameters {there}"
    cell.source += "".join(f"\n{key} = {value!r}" for key, value in parameters.items())
    client = nbclient.NotebookClient(
        notebook, timeout=300, resources={"metadata": {"path": str(where)}}
    )
    client.execute()
    return cells


def images_of(cells: list[Any]) -> int:
    outputs = [output for cell in cells for output in cell.outputs]
    return sum("image/png" in output.get("data", {}) for output in outputs)


@pytest.mark.parametrize("name", CELLS)
def test_notebooks_are_committed_without_outputs_and_install_first(name: str) -> None:
    code = [cell for cell in CELLS[name].cells if cell.cell_type == "code"]
    assert not any(cell.outputs or cell.execution_count for cell in code)
    assert "%pip install" in code[0].source


@pytest.fixture(scope="module")
def cascade(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(tiny.write_cascade(tmp_path_factory.mktemp("notebook") / "cascade"))


@pytest.mark.slow
def test_sample(cascade: str, tmp_path: Path) -> None:
    cells = execute("sample", tmp_path, WORKDIR=cascade, STEPS=2)
    assert images_of(cells) == 10
    assert len(list((tmp_path / "samples").glob("*.png"))) == 9, "a grid and eight images"
    said = "".join(output.text for output in cells[-1].outputs)
    assert "made again differs by at most" in said


@pytest.mark.slow
def test_inside_imagen(cascade: str, tmp_path: Path) -> None:
    cells = execute("inside-imagen", tmp_path, WORKDIR=cascade, STEPS=2, COUNT=2)
    assert images_of(cells) == 16


@pytest.mark.slow
def test_train_your_own(tmp_path: Path) -> None:
    cells = execute(
        "train-your-own", tmp_path, COUNT=16, SIZE=8, STEPS=2, BATCH=4, CHANNELS=(48,), BLOCKS=(1,)
    )
    assert images_of(cells) == 3, "the images, the loss and samples"
