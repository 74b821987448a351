"""A sweep as curves: distance against alignment."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from imagen_jax.eval.sweep import name_of
from imagen_jax.files import atomic_path

FOREGROUND, SOFT = "#1d2430", "#667085"


def draw(rows: Sequence[Mapping[str, Any]], along: str, varied: Sequence[str], path: Path) -> None:
    """Writes the chart.

    Args:
      rows: as sweep.sweep returns them.
      along: the setting whose values a curve joins, in their order.
      varied: all settings that were varied; each combination of the others is a curve.
      path: the PNG.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8.6, 5.2), layout="constrained", dpi=130)
    axis = figure.subplots()
    curves: dict[str, list[Mapping[str, Any]]] = {}
    for row in rows:
        others = {name: row[name] for name in varied if name != along}
        curves.setdefault(name_of(others), []).append(row)
    share = rows[0]["alignment_of"] != "CLIP score"
    scale = 100 if share else 1
    for name, points in curves.items():
        x, x_error = _with_error(points, "distance", 1)
        y, y_error = _with_error(points, "alignment", scale)
        lines = axis.errorbar(
            x, y, xerr=x_error, yerr=y_error, marker="o", markersize=5, linewidth=1.6,
            elinewidth=0.8, capsize=0, label=name.replace(",", ", ") or along,
        )  # fmt: skip
        for bar in lines.lines[2]:
            bar.set_alpha(0.35)
        for point, a, b in zip(points, x, y, strict=True):
            axis.annotate(
                f"{point[along]:g}" if isinstance(point[along], float) else str(point[along]),
                (a, b), textcoords="offset points", xytext=(6, 5), fontsize=8, color=SOFT,
            )  # fmt: skip
    best = sorted(
        (row["distance"], scale * row["alignment"]) for row in rows if row["pareto"]
    )  # fmt: skip
    axis.plot(*zip(*best, strict=True), color=FOREGROUND, linewidth=7, alpha=0.1, zorder=0,
              solid_capstyle="round", label="best at both")  # fmt: skip
    floors = {row["distance_floor"] for row in rows} - {""}
    if len(floors) == 1:
        axis.axvline(floors.pop(), color=SOFT, linestyle=":", linewidth=1,
                     label="real against real")  # fmt: skip
    axis.set_xlabel(f"{rows[0]['distance_of']}, {rows[0]['count']} images (lower is better)")
    axis.set_ylabel("everything right, %" if share else "CLIP score")
    axis.set_title(f"Numbers at the points: {along}", fontsize=10, loc="left", color=SOFT)
    axis.spines[["top", "right"]].set_visible(False)
    axis.grid(alpha=0.2)
    axis.legend(frameon=False, fontsize=8)
    with atomic_path(path) as part:
        figure.savefig(part, format="png")


def _with_error(
    points: Sequence[Mapping[str, Any]], name: str, scale: float
) -> tuple[np.ndarray, np.ndarray]:
    """Values [n], and how far their intervals reach below and above [2, n]."""
    value, low, high = (
        scale * np.array([point[f"{name}{end}"] for point in points])
        for end in ("", "_low", "_high")
    )
    return value, np.maximum([value - low, high - value], 0)
