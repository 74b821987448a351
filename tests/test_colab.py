"""A notebook's first cells, from installing the package to an image, among Colab's packages.

testdata/colab.txt has the versions of googlecolab/backend-info at a724079 (19 August 2026, Python
3.13), of the packages that this one has to do with: TensorFlow's is not among them.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
COLAB = Path(__file__).parent / "testdata" / "colab.txt"
VERSION = "3.13"


def python() -> Path | None:
    """An interpreter of Colab's version, on the PATH or of pyenv."""
    root = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv"))
    found = [shutil.which(f"python{VERSION}"), *root.glob(f"versions/{VERSION}*/bin/python")]
    for path in filter(None, found):
        said = subprocess.run([path, "--version"], capture_output=True, text=True, check=False)
        if said.stdout.startswith(f"Python {VERSION}."):
            return Path(path)
    return None


@pytest.mark.slow
def test_the_first_cell_installs_among_colabs_packages(tmp_path: Path) -> None:
    interpreter = python()
    if interpreter is None:
        pytest.skip(f"no Python {VERSION}")
    subprocess.run([interpreter, "-m", "venv", tmp_path / "colab"], check=True)
    theirs = tmp_path / "colab" / "bin" / "python"

    def pip(*arguments: str | Path) -> str:
        command = [theirs, "-m", "pip", *arguments]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout

    pip("install", "--quiet", "--no-deps", "-r", COLAB)
    # What those ask for and Colab has, too; their own versions stay.
    pip("install", "--quiet", "-c", COLAB, "flax", "ipykernel", "matplotlib", "nbclient", "pandas")
    before = dict(line.split("==") for line in pip("list", "--format=freeze").splitlines())
    assert (before["jax"], before["numpy"]) == ("0.7.2", "2.1.3")

    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    done = subprocess.run(
        [theirs, ROOT / "benchmarks" / "first_image.py"],
        capture_output=True, text=True, check=False, env=environment,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert "first image after" in done.stdout
    after = dict(line.split("==") for line in pip("list", "--format=freeze").splitlines())
    assert before.keys() < after.keys()
    assert after["numpy"] == before["numpy"], "Colab's other packages were compiled for it"
