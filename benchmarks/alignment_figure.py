"""How often pictures of several cascades show what the prompts say, side by side.

    python -m benchmarks.alignment_figure --output docs/findings/encoders \
        "random weights=runs/random/evaluation" "MiniLM=runs/minilm/evaluation"

Reads the scores.json of `imagen evaluate scenes` in each folder, and writes OUTPUT.csv and
OUTPUT.png: the share of pictures with all attributes right for each set of prompts, and single
attributes over all sets, with 95% Wilson intervals. Refuses scores of different prompts.
"""

from __future__ import annotations

import argparse
import csv
import json
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np

from imagen_jax.eval.metrics.intervals import wilson_interval

SETS = {
    "seen-one": "one object,\nseen",
    "heldout-one": "one object,\nheld out",
    "unseen-words": "one object,\nunseen words",
    "seen-two": "two objects,\nseen",
    "heldout-two": "two objects,\nheld out",
}
ATTRIBUTES = ("background", "style", "object", "colour", "relation")


def read(folder: Path) -> dict[str, Any]:
    """What `imagen evaluate scenes` wrote."""
    return json.loads((folder / "scores.json").read_text())


def rows_of(name: str, record: dict[str, Any]) -> list[dict[str, Any]]:
    """A row for all attributes of each set of prompts, and for each attribute of all sets but those
    with unseen words."""
    found = {key: report["pictures"] for key, report in record["scores"].items()}
    rows = []
    for key, report in found.items():
        rows.append(_row(name, key, "all_correct", [report["all_correct"]]))
    for attribute in ATTRIBUTES:
        cells = [r[attribute] for key, r in found.items()
                 if key != "unseen-words" and attribute in r]  # fmt: skip
        if cells:
            rows.append(_row(name, "all", attribute, cells))
    return rows


def _row(name: str, prompts: str, attribute: str, cells: list[dict[str, Any]]) -> dict[str, Any]:
    right, n = (sum(cell[key] for cell in cells) for key in ("correct", "n"))
    low, high = wilson_interval(right, n)
    return {"variant": name, "prompts": prompts, "attribute": attribute, "right": right, "n": n,
            "share": f"{right / n:.4f}", "low": f"{low:.4f}", "high": f"{high:.4f}"}  # fmt: skip


def draw(rows: list[dict[str, Any]], path: Path) -> None:
    """Bars of every variant, for the sets of prompts and for the attributes."""
    names = list(dict.fromkeys(row["variant"] for row in rows))
    figure, axes = plt.subplots(1, 2, figsize=(12, 4.4), layout="constrained", sharey=True)
    panels = (
        ("prompts", {key: label for key, label in SETS.items()
                     if any(row["prompts"] == key for row in rows)}, "everything right, %"),
        ("attribute", {key: key for key in ATTRIBUTES}, "attribute right, known words, %"),
    )  # fmt: skip
    for axis, (column, ticks, title) in zip(axes, panels, strict=True):
        width = 0.8 / len(names)
        for i, name in enumerate(names):
            of_tick = {row[column]: row for row in rows if row["variant"] == name}
            share, low, high = (
                100 * np.array([float(of_tick[tick][key]) for tick in ticks])
                for key in ("share", "low", "high")
            )
            error = np.maximum([share - low, high - share], 0)
            x = np.arange(len(ticks)) + width * (i - (len(names) - 1) / 2)
            axis.bar(x, share, 0.92 * width, yerr=error, capsize=2, label=name)
        axis.set_xticks(np.arange(len(ticks)), ticks.values())
        axis.set(title=title, ylim=(0, 103))
        axis.spines[["top", "right"]].set_visible(False)
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside upper center",
                  ncols=len(names), frameon=False)  # fmt: skip
    figure.savefig(path, dpi=110)


def main() -> None:
    """Reads, compares, and writes table and figure."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("scores", nargs="+", metavar="NAME=FOLDER")
    parser.add_argument("--output", type=Path, required=True, help="without .csv and .png")
    args = parser.parse_args()
    records = {}
    for text in args.scores:
        name, _, folder = text.rpartition("=")
        records[name] = read(Path(folder))
    asked = {name: [r["level"], r["count"], r["seed"], *r["scores"]] for name, r in records.items()}
    if any(prompts != next(iter(asked.values())) for prompts in asked.values()):
        raise ValueError(f"scores of different prompts cannot be compared: {asked}")
    rows = [row for name, record in records.items() for row in rows_of(name, record)]
    args.output.parent.mkdir(parents=True, exist_ok=True)
    with open(args.output.with_suffix(".csv"), "w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    draw(rows, args.output.with_suffix(".png"))


if __name__ == "__main__":
    main()
