"""Imports go down only, from one floor of the house to those below it."""

from __future__ import annotations

import ast
import functools
import subprocess
import sys
from pathlib import Path

import pytest

import imagen_jax

ROOT = Path(imagen_jax.__file__).parent

FLOORS = {
    "ground": (
        "typing",
        "errors",
        "sharding",
        "config",
        "files",
        "tensor_files",
        "progress",
        "extras",
        "native",
        "grid",
        "chips",
        "flops",
    ),
    "parts": ("diffusion", "models", "text", "data"),
    "stage": ("stage_config", "stage"),
    "join": ("stage_programs", "sampling", "checkpoints"),
    "jobs": ("train", "embed", "cascade", "eval"),
    "plan": ("plan",),
    "page": ("page",),
    "commands": ("cli",),
    "door": ("main",),
}
HEIGHT = {name: height for height, names in enumerate(FLOORS.values()) for name in names}

MODULES = sorted(path.relative_to(ROOT) for path in ROOT.rglob("*.py"))


def room(module: str) -> str:
    """The part of the package that a module is in: imagen_jax.text.encoder is in text."""
    return [*module.split("."), ""][1]


@functools.cache
def imports_of(path: Path) -> tuple[str, ...]:
    """Full names of everything that a file imports, also inside functions."""
    package = ("imagen_jax", *path.parts[:-1])
    found = []
    for node in ast.walk(ast.parse((ROOT / path).read_text())):
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = ".".join(package[: len(package) + 1 - node.level]) if node.level else ""
            module = ".".join(filter(None, (base, node.module)))
            found += [f"{module}.{alias.name}" for alias in node.names]
    return tuple(found)


def package_of(path: Path) -> str:
    return path.parts[0].removesuffix(".py")


@pytest.mark.parametrize("path", MODULES, ids=str)
def test_imports_go_down(path: Path) -> None:
    here = package_of(path)
    if here == "__init__":
        return  # the public API: imports from everywhere, but lazily, see tests/test_api.py
    assert here in HEIGHT, f"{here} has no floor: add it to FLOORS"
    for name in imports_of(path):
        if not name.startswith("imagen_jax."):
            continue
        there = room(name)
        assert there in HEIGHT, f"{path} imports {name}, which has no floor"
        if there == here:
            continue
        assert HEIGHT[there] <= HEIGHT[here], f"{path} imports {name}, which is above it"
        if here in FLOORS["parts"] and there in FLOORS["parts"]:
            exception = here == "data" and name.startswith("imagen_jax.text.tokenizer")
            assert exception, f"{path} imports {name}: the parts do not import each other"


@pytest.mark.parametrize("path", MODULES, ids=str)
def test_heavy_libraries_stay_in_their_rooms(path: Path) -> None:
    here = package_of(path)
    libraries = {name.split(".")[0] for name in imports_of(path)}
    if here not in ("data", "train") or path.parts[:2] == ("data", "scenes"):
        pipeline = libraries & {"tensorflow", "tensorflow_datasets", "tensorflow_text", "seqio"}
        assert not pipeline, f"{path} imports {pipeline}, which belongs to the data pipeline"
    if here == "diffusion":
        assert not libraries & {"flax", "haiku"}, f"{path}: diffusion is pure jnp"


def loaded_by(code: str) -> set[str]:
    """Top-level modules that are loaded after code has run in a process of its own."""
    code += "\nimport sys; print('\\n' + ' '.join({m.split('.')[0] for m in sys.modules}))"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=120
    )
    return set(done.stdout.splitlines()[-1].split())


@pytest.mark.parametrize(
    "module",
    [
        "cascade",
        "checkpoints.cascades",
        "page.server",
        "text.encoder",
        "data.scenes.source",
        "data.scenes.render",
    ],
)
def test_sampling_and_rendering_load_no_tensorflow(module: str) -> None:
    loaded = loaded_by(f"import imagen_jax.{module}")
    assert not loaded & {"tensorflow", "seqio", "clu", "tensorflow_datasets"}


def test_the_parser_loads_nothing_heavy() -> None:
    loaded = loaded_by("import imagen_jax.main; imagen_jax.main.make_parser()")
    assert not loaded & {"jax", "flax", "numpy", "tensorflow", "PIL", "ml_collections"}
