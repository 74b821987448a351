"""The notebook runs from its first cell to its last and shows pictures."""

from __future__ import annotations

from pathlib import Path

import nbclient
import nbformat
import pytest
import tiny

NOTEBOOK = Path(__file__).resolve().parent.parent / "notebooks" / "sample.ipynb"


@pytest.mark.slow
def test_sample_notebook(tmp_path: Path) -> None:
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert not any(cell.outputs for cell in cells), "commit the notebook without outputs"
    (parameters,) = (c for c in cells if "parameters" in c.metadata.get("tags", []))
    assert "STEPS = None" in parameters.source
    cascade = tiny.write_cascade(tmp_path / "cascade")
    parameters.source = f"WORKDIR = {str(cascade)!r}\nSTEPS = 2\nSEED = 0"
    client = nbclient.NotebookClient(
        notebook, timeout=300, resources={"metadata": {"path": str(tmp_path)}}
    )
    client.execute()
    pictures = [
        output for cell in cells for output in cell.outputs if "image/png" in output.get("data", {})
    ]
    assert len(pictures) == 6, "samples, guidance, thresholding, two stages inside, augmentation"
    assert len(list((tmp_path / "samples").glob("*.png"))) == 9, "a grid and eight pictures"
