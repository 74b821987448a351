"""The Python blocks of documentation pages that promise to run."""

from __future__ import annotations

import ast
import importlib
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import nbformat
import pytest

DOCS = Path(__file__).resolve().parent.parent / "docs"
BLOCK = re.compile(r"^```python\n(.*?)^```", re.MULTILINE | re.DOTALL)
FILE = re.compile(r"# file: ([\w/]+\.py)\n")


@pytest.mark.slow
@pytest.mark.parametrize("page", ["extending.md"])
def test_blocks_of_a_page_run_in_order(
    page: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In one namespace, in an empty folder that modules are imported from; a block that begins with
    `# file: NAME` is written there."""
    from imagen_jax.diffusion.samplers import SAMPLERS
    from imagen_jax.text.encoder import ENCODERS

    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    loaded = set(sys.modules)
    tables: tuple[Any, ...] = (SAMPLERS, ENCODERS)  # what a page registers goes again
    before = [dict(table) for table in tables]
    text = (DOCS / page).read_text()
    namespace: dict[str, object] = {"__name__": page}
    blocks = list(BLOCK.finditer(text))
    assert blocks
    try:
        for block in blocks:
            line = text[: block.start()].count("\n") + 2
            if found := FILE.match(block[1]):
                Path(found[1]).write_text(block[1])
                continue
            code = compile("\n" * (line - 1) + block[1], str(DOCS / page), "exec")
            exec(code, namespace)
    finally:
        for table, entries in zip(tables, before, strict=True):
            table.clear()
            table.update(entries)
        for name in set(sys.modules) - loaded:
            if Path(getattr(sys.modules[name], "__file__", None) or "/").is_relative_to(tmp_path):
                del sys.modules[name]


QUOTED = re.compile(r"^### `(.+)`$", re.MULTILINE)


def said_by(path: Path) -> Iterator[str]:
    """The strings of a file; what is put into one stands as \\0."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield node.value
        elif isinstance(node, ast.JoinedStr):
            yield "".join(
                str(v.value) if isinstance(v, ast.Constant) else "\0" for v in node.values
            )


def test_troubleshooting_quotes_what_the_code_can_say() -> None:
    """Of each quoted message, every part between "..." is said by one and the same file."""
    sources = [list(said_by(path)) for path in (DOCS.parent / "imagen_jax").rglob("*.py")]
    messages = QUOTED.findall((DOCS / "troubleshooting.md").read_text())
    assert len(messages) > 20

    def is_said(message: str) -> bool:
        parts = [part for part in message.split("...") if re.search(r"\w", part)]
        return any(all(any(part in text for text in texts) for part in parts) for texts in sources)

    assert not is_said("out of luck; ... is damaged")
    assert [message for message in messages if not is_said(message)] == []


def test_troubleshooting_names_options_that_are_there() -> None:
    from imagen_jax.stage import SampleConfig, TrainConfig

    page = (DOCS / "troubleshooting.md").read_text()
    places = [*(DOCS.parent / "imagen_jax" / "cli").glob("*.py"), DOCS.parent / "launch/setup.sh"]
    code = "".join(path.read_text() for path in places)
    fields = {f"--{name.replace('_', '-')}" for name in SampleConfig.__dataclass_fields__}
    of_others = {"--install", "--user"}  # of xcode-select and docker
    for option in set(re.findall(r"--[a-z][a-z0-9-]+", page)) - fields - of_others:
        assert re.search(rf"{option}\b", code), option
    keys = set(re.findall(r"stages\.base\.train\.(\w+)", page))
    assert keys
    assert keys <= TrainConfig.__dataclass_fields__.keys()


def blocks() -> Iterator[tuple[str, str]]:
    """Python that README, pages and notebooks show, each with its place."""
    for page in (DOCS.parent / "README.md", *DOCS.glob("*.md")):
        for block in BLOCK.finditer(page.read_text()):
            yield page.name, block[1]
    for path in (DOCS.parent / "notebooks").glob("*.ipynb"):
        for cell in nbformat.read(path, as_version=4).cells:
            if cell.cell_type == "code":
                yield path.name, cell.source


def test_all_that_is_imported_from_this_package_is_there() -> None:
    missing, imported = [], 0
    for place, source in blocks():
        for node in ast.walk(ast.parse(source)):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("imagen_jax"):
                module = importlib.import_module(node.module or "")
                imported += len(node.names)
                for alias in node.names:
                    if not hasattr(module, alias.name):
                        missing.append(f"{place}: {node.module} has no {alias.name}")
    assert imported > 50
    assert not missing, "\n".join(missing)
