"""Pieces of the reports: one HTML file that needs nothing else."""

from __future__ import annotations

import base64
import html
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np

from imagen_jax.files import atomic_path

_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; margin: 2em auto; max-width: 70em; color: #222; }
h1, h2 { font-weight: 600; } h2 { margin-top: 2em; border-bottom: 1px solid #ccc; }
table { border-collapse: collapse; } td, th { padding: .15em 1.2em .15em 0; text-align: left;
vertical-align: top; } td.number { text-align: right; font-variant-numeric: tabular-nums; }
.bar { background: #4a7ab5; height: .9em; display: inline-block; min-width: 1px; }
.sheet { display: grid; grid-template-columns: repeat(auto-fill, minmax(150px, 1fr)); gap: 1em; }
.sheet img { width: 100%; image-rendering: pixelated; }
.sheet p { margin: .2em 0; font-size: 13px; }
.id { color: #888; font-size: 11px; word-break: break-all; }
"""


def write_page(output: str | Path, title: str, parts: Iterable[str]) -> None:
    """Writes a page, whole or not at all.

    Args:
      output: the HTML file.
      title: in the browser's tab and at the top.
      parts: HTML of its content.
    """
    heading = html.escape(title)
    page = f"<!doctype html><meta charset=utf-8><title>{heading}</title><style>{_STYLE}</style>"
    content = "\n".join([f"{page}<h1>{heading}</h1>", *parts])
    with atomic_path(output) as temporary:
        temporary.write_text(content, encoding="utf-8", errors="backslashreplace")


def spaced(count: int, wanted: int) -> np.ndarray:
    """Return up to `wanted` whole numbers, evenly spaced in [0, count)."""
    return np.arange(min(count, wanted)) * count // min(count, wanted)


def table(facts: Mapping[str, str]) -> str:
    """Facts by name."""
    rows = "".join(
        f"<tr><th>{html.escape(key)}</th><td>{html.escape(value)}</td></tr>"
        for key, value in facts.items()
    )
    return f"<table>{rows}</table>"


def histogram(values: Sequence[float], whole: bool) -> str:
    """A histogram of about a dozen bins; of whole numbers, each bin holds whole numbers."""
    low, high = min(values), max(values)
    if whole:
        width = max(1, -(-(int(high) - int(low) + 1) // 12))
        starts = range(int(low), int(high) + 1, width)
        edges = np.array([*starts, starts[-1] + width], float)
        names = [f"{a}" if width == 1 else f"{a}-{a + width - 1}" for a in starts]
    else:
        edges = np.linspace(low, high if high > low else low + 1, 13)
        names = [f"{a:.2f}-{b:.2f}" for a, b in zip(edges, edges[1:], strict=False)]
    counts, _ = np.histogram(values, edges)
    return bars(list(zip(names, map(int, counts), strict=True)))


def bars(counts: Sequence[tuple[str, int]]) -> str:
    """Numbers by name, with bars."""
    most = max((count for _, count in counts), default=1)
    rows = "".join(
        f'<tr><td>{html.escape(name)}</td><td class="number">{count:,}</td>'
        f'<td><span class="bar" style="width:{30 * count / most:.2f}em"></span></td></tr>'
        for name, count in counts
    )
    return f"<table>{rows}</table>"


def figure(image: bytes, caption: str, note: str) -> str:
    """An image, PNG or JPEG, with its caption and a line in small print."""
    kind = "png" if image.startswith(b"\x89PNG") else "jpeg"
    data = base64.b64encode(image).decode()
    return (
        f'<div><img alt="" src="data:image/{kind};base64,{data}">'
        f'<p>{html.escape(caption)}</p><div class="id">{html.escape(note)}</div></div>'
    )


def sheet(figures: Iterable[str]) -> str:
    """Figures side by side."""
    return f'<div class="sheet">{"".join(figures)}</div>'


def counted(counts: Mapping[str, int]) -> str:
    """Reasons with their numbers in a line, the commonest first."""
    reasons = sorted(counts.items(), key=lambda item: -item[1])
    return "; ".join(f"{number:,} {reason}" for reason, number in reasons) or "none"
