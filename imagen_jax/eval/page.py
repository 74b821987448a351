"""Parts of HTML pages that need nothing beside themselves: style, images, bars."""

from __future__ import annotations

import base64
import html
import io
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from imagen_jax.files import atomic_path

SHOWN_SIDE = 256
"""Larger images are reduced to it on pages: a thousand of them must still open."""

STYLE = """
:root { color-scheme: light dark; --ink: #1d2430; --soft: #667085; --line: #e3e7ee; --paper: #fff;
  --panel: #f6f8fb; --accent: #2f6fde; --good: #1a8a55; --bad: #c2413b; --track: #e6eaf1; }
@media (prefers-color-scheme: dark) { :root { --ink: #e7eaf0; --soft: #98a2b3; --line: #2b313c;
  --paper: #14171d; --panel: #1c2129; --accent: #6ea0ff; --good: #4cc38a; --bad: #ff8079;
  --track: #2b313c; } }
* { box-sizing: border-box; }
body { font: 15px/1.55 system-ui, -apple-system, "Segoe UI", sans-serif; color: var(--ink);
  background: var(--paper); margin: 0 auto; padding: 2.5em 1.5em 5em; max-width: 74em; }
h1 { font-size: 1.7em; line-height: 1.2; margin: 0 0 .2em; letter-spacing: -.01em; }
h2 { font-size: 1.2em; margin: 2.6em 0 .8em; padding-bottom: .35em;
  border-bottom: 1px solid var(--line); }
h3 { font-size: 1em; margin: 2em 0 .7em; display: flex; gap: .7em; align-items: baseline; }
h3 small, .soft { color: var(--soft); font-weight: 400; }
a { color: var(--accent); }
.facts { color: var(--soft); margin: 0 0 1.6em; }
.facts b { color: var(--ink); font-weight: 500; }
.cards { display: grid; gap: 1em; grid-template-columns: repeat(auto-fit, minmax(15em, 1fr)); }
.card { background: var(--panel); border: 1px solid var(--line); border-radius: 10px;
  padding: 1em 1.2em; }
.card .value { font-size: 1.9em; font-weight: 600; letter-spacing: -.02em; line-height: 1.25; }
.card .name { color: var(--soft); }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; }
th, td { text-align: left; padding: .42em 1em .42em 0; border-bottom: 1px solid var(--line);
  white-space: nowrap; }
th { color: var(--soft); font-weight: 500; }
td.number, th.number { text-align: right; }
.wide { overflow-x: auto; }
.bar { position: relative; width: 15em; height: .8em; border-radius: 3px;
  background: var(--track); }
.bar i { position: absolute; inset: 0 auto 0 0; border-radius: 3px; background: var(--accent); }
.bar b { position: absolute; top: 50%; height: 2px; margin-top: -1px; background: var(--ink); }
.sheet { display: grid; grid-template-columns: repeat(auto-fill, minmax(9.5em, 1fr)); gap: 1em; }
figure { margin: 0; }
figure img { width: 100%; display: block; border-radius: 6px; border: 1px solid var(--line); }
figure.small img { image-rendering: pixelated; }
figcaption { font-size: 12.5px; line-height: 1.4; margin-top: .45em; color: var(--soft); }
.right, .wrong { font-weight: 600; } .right { color: var(--good); } .wrong { color: var(--bad); }
"""


def write_page(path: str | Path, title: str, body: Sequence[str], extra: str = "") -> None:
    """Writes a page; `extra` goes into its head."""
    head = (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{html.escape(title)}</title><style>{STYLE}</style>{extra}</head><body>"
    )
    with atomic_path(path) as temporary:
        temporary.write_text(head + "\n".join(body) + "</body></html>\n", encoding="utf-8")


def data_url(image: np.ndarray, most: int = SHOWN_SIDE) -> str:
    """An image uint8 [h, h, 3] for the src of an <img>: as it is, or reduced to `most` pixels."""
    opened = Image.fromarray(image)
    buffer = io.BytesIO()
    if max(opened.size) > most:
        opened.thumbnail((most, most), Image.Resampling.LANCZOS)
        opened.save(buffer, "WEBP", quality=90)
        kind = "webp"
    else:
        opened.save(buffer, "PNG", optimize=True)
        kind = "png"
    return f"data:image/{kind};base64,{base64.b64encode(buffer.getvalue()).decode()}"


def figure(image: np.ndarray, text: str, right: bool | None = None) -> str:
    """An image above its text, marked right or wrong where that is known."""
    mark = "" if right is None else (
        '<span class="right">✓</span> ' if right else '<span class="wrong">✗</span> '
    )  # fmt: skip
    small = " class=small" if image.shape[0] < SHOWN_SIDE else ""
    return (
        f'<figure{small}><img loading="lazy" alt="" src="{data_url(image)}">'
        f"<figcaption>{mark}{html.escape(text)}</figcaption></figure>"
    )


def sheet(figures: Sequence[str]) -> str:
    """Figures in rows."""
    return f'<div class="sheet">{"".join(figures)}</div>'


def bar(value: float, low: float, high: float, scale: float = 1.0) -> str:
    """A share of `scale` with its interval."""

    def percent(x: float) -> str:
        return f"{100 * min(max(x / scale, 0), 1):.1f}%"

    width = 100 * (min(max(high / scale, 0), 1) - min(max(low / scale, 0), 1))
    return (
        f'<div class="bar"><i style="width:{percent(value)}"></i>'
        f'<b style="left:{percent(low)};width:{width:.1f}%"></b></div>'
    )


def card(name: str, value: str, note: str) -> str:
    """A number with what it is and what bounds it."""
    return (
        f'<div class="card"><div class="name">{html.escape(name)}</div>'
        f'<div class="value">{html.escape(value)}</div>'
        f'<div class="soft">{html.escape(note)}</div></div>'
    )


def table(header: Sequence[str], rows: Sequence[Sequence[str]], numbers: Sequence[int]) -> str:
    """A table of cells that are HTML; `numbers` are the columns to set flush right."""

    def line(cells: Sequence[str], tag: str) -> str:
        return "".join(
            f"<{tag}{' class=number' if i in numbers else ''}>{cell}</{tag}>"
            for i, cell in enumerate(cells)
        )

    body = "".join(f"<tr>{line(row, 'td')}</tr>" for row in rows)
    return f'<div class="wide"><table><tr>{line(header, "th")}</tr>{body}</table></div>'


def facts(of: Mapping[str, str]) -> str:
    """Facts about a page in one line."""
    items = (f"{html.escape(k)} <b>{html.escape(v)}</b>" for k, v in of.items())
    return f'<p class="facts">{" · ".join(items)}</p>'
