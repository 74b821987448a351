"""Seconds from the first cell of a notebook to its first image, in the environment it runs in.

Run it with the Python of an environment that has Jupyter and lacks this package, such as one with
the versions that Colab publishes (docs/install.md): the first cell then installs the package.

    /path/to/environment/bin/python benchmarks/first_image.py

The notebook runs in the folder where it lies, so that its first cell finds the clone.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import nbclient
import nbformat

NOTEBOOKS = Path(__file__).resolve().parent.parent / "notebooks"


def main() -> None:
    """Run cells until one shows an image, and print what each of them took."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--notebook", default="sample", help="its name (default: %(default)s)")
    args = parser.parse_args()
    notebook = nbformat.read(NOTEBOOKS / f"{args.notebook}.ipynb", as_version=4)
    client = nbclient.NotebookClient(
        notebook, timeout=None, resources={"metadata": {"path": str(NOTEBOOKS)}}
    )
    with client.setup_kernel():
        begin = time.perf_counter()
        for number, cell in enumerate(notebook.cells):
            if cell.cell_type != "code":
                continue
            start = time.perf_counter()
            client.execute_cell(cell, number)
            now = time.perf_counter()
            print(f"cell {number}: {now - start:.1f} s", flush=True)
            if any("image/png" in output.get("data", {}) for output in cell.outputs):
                print(f"first image after {now - begin:.1f} s")
                return
    raise SystemExit("no cell shows an image")


if __name__ == "__main__":
    main()
