"""Scores as text, for the terminal."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from imagen_jax.eval.feature_sets import METRICS
from imagen_jax.eval.measure import ALL
from imagen_jax.eval.report import TITLES, floor_text, percent


def summary(scores: Mapping[str, Any]) -> str:
    """The result of measure.measure as tables."""
    parts = []
    if "alignment" in scores:
        lines = [f"{'':<24}{'everything right, 95%':>24}{'n':>6}"]
        for name, row in _bounds_last(scores["alignment"]):
            right = row["all_correct"]
            lines.append(f"{_LABELS.get(name, name):<24}{percent(right):>24}{right['n']:>6}")
        parts.append("\n".join(lines))
    if "clip" in scores:
        lines = [f"{'CLIP score, ' + scores['clip']['network']:<36}{'cosine, 95%':>26}{'n':>6}"]
        for name, row in _bounds_last(scores["clip"]):
            if name != "network":
                cell = f"{row['mean']:.4f} ({row['low']:.4f}–{row['high']:.4f})"
                lines.append(f"{_LABELS.get(name, name):<36}{cell:>26}{row['n']:>6}")
        parts.append("\n".join(lines))
    if "distance" in scores:
        of = scores["distance"]
        lines = [f"{str(of['count']) + ' images':<36}{'sampled (95%)':>28}{'real':>26}"]
        for name in METRICS:
            row = of[name]
            cell = f"{row['value']:.4g}"
            if "low" in row:
                cell += f" ({row['low']:.4g}–{row['high']:.4g})"
            lines.append(f"{TITLES.get(name, of['title']):<36}{cell:>28}{floor_text(of, row):>26}")
        if "inception_score" in of:
            row = of["inception_score"]
            cell, real = (
                f"{row[value]:.4g} ± {row[deviation]:.2g}"
                for value, deviation in (("value", "deviation"), ("real", "real_deviation"))
            )
            name = f"Inception score, {of['identity']['network']}"
            lines.append(f"{name:<36}{cell:>28}{real:>26}")
        parts.append("\n".join(lines))
    return "\n\n".join(parts) or "nothing was measured: --clip DIR adds the CLIP score"


def _bounds_last(rows: Mapping[str, Any]) -> list[tuple[str, Any]]:
    return sorted(rows.items(), key=lambda item: item[0] in _LABELS)


_LABELS = {ALL: "all", "floor": "shuffled captions", "ceiling": "real images",
           "shuffled": "shuffled captions"}  # fmt: skip
