"""Sets of prompts that images are judged on."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from imagen_jax.data.scenes.scene import Scene
from imagen_jax.errors import UserError
from imagen_jax.files import fingerprint, read_text

DRAWBENCH_CATEGORIES = (
    "Colors", "Conflicting", "Counting", "DALL-E", "Descriptions", "Gary Marcus et al.",
    "Misspellings", "Positional", "Rare Words", "Reddit", "Text",
)  # fmt: skip


class Prompt(NamedTuple):
    """A prompt of a set.

    Attributes:
      text: the prompt.
      category: category of the test.
      scene: the scene that the image must show, if known exactly.
    """

    text: str
    category: str
    scene: Scene | None = None


class Suite(NamedTuple):
    """A named set of prompts."""

    name: str
    prompts: list[Prompt]

    @property
    def fingerprint(self) -> str:
        """Of the texts, their categories and order."""
        return fingerprint([[prompt.text, prompt.category] for prompt in self.prompts])

    def categories(self) -> dict[str, list[int]]:
        """Category -> indices of its prompts, in the order of first occurrence."""
        found: dict[str, list[int]] = {}
        for index, prompt in enumerate(self.prompts):
            found.setdefault(prompt.category, []).append(index)
        return found


def read_drawbench(path: str | Path) -> Suite:
    """DrawBench (Saharia et al. 2022, section 4.1): CSV with the columns Prompts and Category.

    Raises:
      UserError: no such file, other columns, a category that DrawBench does not have, or an empty
        prompt.
    """
    prompts = _read_table(path, ",", ("Prompts", "Prompt"))
    unknown = {prompt.category for prompt in prompts} - set(DRAWBENCH_CATEGORIES)
    if unknown:
        raise UserError(
            f"{path} has categories that DrawBench does not have: {sorted(unknown)}; its own are "
            f"{', '.join(DRAWBENCH_CATEGORIES)}"
        )
    return Suite("DrawBench", prompts)


def read_parti(path: str | Path) -> Suite:
    """PartiPrompts (Yu et al. 2022, arXiv:2206.10789): TSV with the columns Prompt and Category.

    Raises:
      UserError: no such file, other columns, or an empty prompt.
    """
    return Suite("PartiPrompts", _read_table(path, "\t", ("Prompt",)))


def _read_table(path: str | Path, delimiter: str, columns: Sequence[str]) -> list[Prompt]:
    file = io.StringIO(read_text(path, "table of prompts"), newline="")
    # In TSV, quotation marks quote nothing.
    reader = (
        csv.DictReader(file, delimiter=delimiter, quoting=csv.QUOTE_NONE)
        if delimiter == "\t"
        else csv.DictReader(file, delimiter=delimiter)
    )
    names = reader.fieldnames or []
    column = next((name for name in columns if name in names), None)
    if column is None or "Category" not in names:
        raise UserError(
            f"{path} has the columns {list(names)}; wanted {' or '.join(columns)}, and Category"
        )
    prompts = [
        Prompt((row[column] or "").strip(), (row["Category"] or "").strip()) for row in reader
    ]
    if not prompts:
        raise UserError(f"{path} has no prompts")
    for number, prompt in enumerate(prompts):
        if not prompt.text or not prompt.category:
            raise UserError(f"{path}: row {number + 1} has an empty prompt or category")
    return prompts
