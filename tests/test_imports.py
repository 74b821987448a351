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
        "buckets",
        "bucket_lock",
        "paths",
        "files",
        "caches",
        "tensor_files",
        "weight_packages",
        "progress",
        "extras",
        "native",
        "grid",
        "lettering",
        "chips",
        "flops",
    ),
    "parts": ("diffusion", "models", "text", "data"),
    "stage": ("stage_config", "stage"),
    "join": ("stage_programs", "sampling", "low_noise", "checkpoints"),
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


PIPELINE = {"tensorflow", "tensorflow_datasets", "tensorflow_text", "seqio", "clu"}
PIPELINE_MODULES = {
    "data/corpora/tfds.py",
    "data/damage.py",
    "data/features.py",
    "data/iterator.py",
    "data/reading.py",
    "data/tasks.py",
    "train/log.py",
}
"""Modules that import libraries of the data pipeline: all others run without them."""


@functools.cache
def imports_of(path: Path, typing: bool = True) -> tuple[str, ...]:
    """Full names of everything that a file imports, also inside functions.

    Args:
      typing: with what is imported for type checkers alone.
    """
    package = ("imagen_jax", *path.parts[:-1])
    found: list[str] = []

    def visit(node: ast.AST) -> None:
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING" and not typing:
            return
        if isinstance(node, ast.Import):
            found.extend(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = ".".join(package[: len(package) + 1 - node.level]) if node.level else ""
            module = ".".join(filter(None, (base, node.module)))
            found.extend(f"{module}.{alias.name}" for alias in node.names)
        for child in ast.iter_child_nodes(node):
            visit(child)

    visit(ast.parse((ROOT / path).read_text()))
    return tuple(found)


def package_of(path: Path) -> str:
    return path.parts[0].removesuffix(".py")


def upward(here: str, name: str) -> str | None:
    """Why a room may not import a name of the package; None where it may."""
    there = room(name)
    if there not in HEIGHT:
        return "has no floor"
    if there == here:
        return None
    if HEIGHT[there] > HEIGHT[here]:
        return "is above it"
    both = here in FLOORS["parts"] and there in FLOORS["parts"]
    if both and not (here == "data" and name.startswith("imagen_jax.text.tokenizer")):
        return "is beside it: the parts do not import each other"
    return None


def test_imports_go_down() -> None:
    # __init__.py is the public API: it imports from everywhere, but lazily, see tests/test_api.py.
    paths = [path for path in MODULES if package_of(path) != "__init__"]
    assert {package_of(path) for path in paths} == set(HEIGHT), "FLOORS has every room, once"
    found = [
        f"{path} imports {name}, which {why}"
        for path in paths
        for name in imports_of(path)
        if name.startswith("imagen_jax.") and (why := upward(package_of(path), name))
    ]
    assert not found, "\n".join(found)


def test_modules_do_not_import_in_a_circle() -> None:
    """Not even where an import inside a function hides it."""
    names = {}
    for path in MODULES:
        parts = ("imagen_jax", *path.with_suffix("").parts)
        names[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    del names["imagen_jax"]  # the public API
    graph: dict[str, set[str]] = {name: set() for name in names}
    for name, path in names.items():
        for imported in imports_of(path, typing=False):
            module = imported if imported in names else imported.rpartition(".")[0]
            graph[name] |= {module} & names.keys() - {name}
    while leaves := [name for name, imported in graph.items() if not imported & graph.keys()]:
        for name in leaves:
            del graph[name]
    assert not graph, f"these import each other: {sorted(graph)}"


def test_libraries_of_the_data_pipeline_stay_in_its_modules() -> None:
    users = {
        path.as_posix()
        for path in MODULES
        if PIPELINE & {name.split(".")[0] for name in imports_of(path)}
    }
    assert users == PIPELINE_MODULES


def test_diffusion_is_pure_jnp() -> None:
    found = [
        f"{path} imports {name}"
        for path in MODULES
        for name in imports_of(path)
        if path.parts[0] == "diffusion" and name.split(".")[0] in ("flax", "haiku", "optax")
    ]
    assert not found, "\n".join(found)


def loaded_by(code: str) -> set[str]:
    """Top-level modules that are loaded after code has run in a process of its own."""
    code += "\nimport sys; print('\\n' + ' '.join({m.split('.')[0] for m in sys.modules}))"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=1800
    )
    return set(done.stdout.splitlines()[-1].split())


@pytest.mark.slow
def test_sampling_and_rendering_load_no_tensorflow() -> None:
    modules = ("cascade", "page.server", "text.encoder", "data.scenes.source", "eval.scenes")
    loaded = loaded_by("".join(f"import imagen_jax.{module}\n" for module in modules))
    assert "jax" in loaded
    assert not loaded & PIPELINE


def test_the_parser_loads_nothing_heavy() -> None:
    loaded = loaded_by("import imagen_jax.main; imagen_jax.main.make_parser()")
    assert not loaded & {"jax", "flax", "numpy", "tensorflow", "PIL", "ml_collections"}
