"""A report on an embedding directory, as one HTML file that needs nothing else.

Numbers of all records are those of the manifest; histograms and images come from records that are
evenly spaced through all shards.
"""

from __future__ import annotations

import base64
import html
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from imagen_jax.data import records
from imagen_jax.data.reading import ShardTable
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


def write_report(
    directory: str | Path, output: str | Path, sampled: int = 2000, shown: int = 24
) -> int:
    """Writes the report.

    Args:
      directory: what `imagen embed` wrote.
      output: the HTML file.
      sampled: records of each split that histograms are made of.
      shown: records of each split whose images are shown.

    Returns:
      The number of records that were read.

    Raises:
      UserError: see records.load_manifest.
    """
    manifest = records.load_manifest(directory)
    facts = {
        "encoder": ", ".join(f"{key} {value}" for key, value in manifest["encoder"].items()),
        "token states": manifest["states"],
        "images": f"{manifest['image_size']} x {manifest['image_size']} pixels",
        "fingerprint": manifest["fingerprint"],
    }
    parts = [f"<h1>{html.escape(str(directory))}</h1>", _table(facts)]
    read = 0
    for split, entry in manifest["splits"].items():
        paths = [str(Path(directory) / name) for name in entry["shards"]]
        table = ShardTable.of(list(zip(paths, entry["shard_examples"], strict=True)))
        places = _spaced(entry["examples"], sampled)
        of_split = [records.parse_record(table.read(int(place)).numpy()) for place in places]
        parts += _split(split, manifest["source"][split], entry, of_split, shown)
        read += len(of_split)
    page = f"<!doctype html><meta charset=utf-8><title>{html.escape(str(directory))}</title>"
    with atomic_path(output) as temporary:
        temporary.write_text(f"{page}<style>{_STYLE}</style>" + "\n".join(parts), encoding="utf-8")
    return read


def _spaced(count: int, wanted: int) -> np.ndarray:
    """Up to `wanted` whole numbers, evenly spaced in [0, count)."""
    return np.arange(min(count, wanted)) * count // min(count, wanted)


def _split(
    name: str,
    source: Mapping[str, Any],
    entry: Mapping[str, Any],
    sample: Sequence[records.Record],
    shown: int,
) -> list[str]:
    examples = entry["examples"]
    facts = {
        "source": ", ".join(f"{key} {value}" for key, value in source.items()),
        "examples": f"{examples:,}, in {len(entry['shards']):,} shards of "
        f"{min(entry['shard_examples']):,} to {max(entry['shard_examples']):,}",
        "captions": f"{entry['captions']:,} encoded: identical ones once for each shard",
        "tokens": f"{entry['tokens']:,}, {entry['tokens'] / examples:.1f} to an example",
        "size": f"{entry['bytes'] / 1e9:,.3f} GB, {entry['bytes'] / examples:,.0f} B an example",
    }
    for what in ("dropped", "changed"):
        reasons = sorted(entry[what].items(), key=lambda item: -item[1])
        facts[what] = "; ".join(f"{number:,} {reason}" for reason, number in reasons) or "none"
    lengths = [len(record.states) for record in sample]
    kilobytes = [len(record.image) / 1e3 for record in sample]
    chosen = [sample[i] for i in _spaced(len(sample), shown)]
    return [
        f"<h2>{html.escape(name)}</h2>",
        _table(facts),
        f"<h3>Tokens of a caption, of {len(sample):,} examples</h3>",
        _histogram(lengths, whole=True),
        "<h3>Size of a recorded image, in kB</h3>",
        _histogram(kilobytes, whole=False),
        "<h3>Shorter side of the images as they came, in pixels, of all examples</h3>",
        _bars(sorted(entry["sides"].items(), key=lambda item: int(item[0].split("-")[0]))),
        f"<h3>{len(chosen)} examples</h3>",
        f'<div class="sheet">{"".join(map(_figure, chosen))}</div>',
    ]


def _table(facts: Mapping[str, str]) -> str:
    rows = "".join(
        f"<tr><th>{html.escape(key)}</th><td>{html.escape(value)}</td></tr>"
        for key, value in facts.items()
    )
    return f"<table>{rows}</table>"


def _histogram(values: Sequence[float], whole: bool) -> str:
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
    return _bars(list(zip(names, map(int, counts), strict=True)))


def _bars(counts: Sequence[tuple[str, int]]) -> str:
    most = max((count for _, count in counts), default=1)
    rows = "".join(
        f'<tr><td>{html.escape(name)}</td><td class="number">{count:,}</td>'
        f'<td><span class="bar" style="width:{30 * count / most:.2f}em"></span></td></tr>'
        for name, count in counts
    )
    return f"<table>{rows}</table>"


def _figure(record: records.Record) -> str:
    kind = "png" if record.image.startswith(b"\x89PNG") else "jpeg"
    data = base64.b64encode(record.image).decode()
    return (
        f'<div><img alt="" src="data:image/{kind};base64,{data}">'
        f"<p>{html.escape(record.caption)}</p>"
        f'<div class="id">{html.escape(record.id)}, {len(record.states)} tokens</div></div>'
    )
