"""Effect of noise conditioning augmentation: distance and alignment over its level in sampling, of
super-resolution that was trained with it and without.

    python -m benchmarks.augmentation_figure WITH.csv WITHOUT.csv --output FIGURE.png

Reads the tables of two `imagen evaluate sweep --aug-level ...`; launch/findings.sh makes both.
"""

from __future__ import annotations

import argparse
import csv
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np


def read(path: Path) -> dict[str, np.ndarray]:
    """Columns of numbers of a sweep's table."""
    with open(path, newline="") as file:
        rows = list(csv.DictReader(file))
    names = [f"{what}{end}" for what in ("distance", "alignment") for end in ("", "_low", "_high")]
    return {
        name: np.array([float(row[name]) for row in rows])
        for name in ["aug_level", "distance_floor", *names]
    }


def main() -> None:
    """Draws, and writes the figure."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("with_augmentation", type=Path)
    parser.add_argument("without", type=Path)
    parser.add_argument("--output", type=Path, required=True)
    args = parser.parse_args()
    figure, axes = plt.subplots(1, 2, figsize=(10, 3.8), layout="constrained")
    for path, label, colour in (
        (args.with_augmentation, "trained with augmentation", "tab:blue"),
        (args.without, "trained without", "tab:orange"),
    ):
        table = read(path)
        for axis, what, scale in zip(axes, ("distance", "alignment"), (1, 100), strict=True):
            value, low, high = (scale * table[f"{what}{end}"] for end in ("", "_low", "_high"))
            axis.errorbar(
                table["aug_level"], value, [value - low, high - value],
                label=label, color=colour, marker="o", capsize=3,
            )  # fmt: skip
    axes[0].set_ylabel("Fréchet distance, mobilenet-v2 (lower is better)")
    axes[1].set_ylabel("everything right, %")
    axes[1].set_ylim(-3, 103)
    for axis in axes:
        axis.set_xlabel("aug_level in sampling")
        axis.grid(alpha=0.3)
        axis.spines[["top", "right"]].set_visible(False)
    axes[1].legend(frameon=False, loc="upper right")
    args.output.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(args.output, dpi=110)


if __name__ == "__main__":
    main()
