"""The Python blocks of documentation pages that promise to run."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Any

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
