"""A report on an embedding directory, as one HTML file that needs nothing else.

Numbers of all records are those of the manifest; histograms and images come from records that are
evenly spaced through all shards.
"""

from __future__ import annotations

import html
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from imagen_jax.data import records
from imagen_jax.data.manifest import load_manifest
from imagen_jax.data.pages import bars, counted, figure, histogram, sheet, spaced, table, write_page
from imagen_jax.data.reading import ShardTable
from imagen_jax.paths import as_path


def write_report(
    directory: str | Path, output: str | Path, sampled: int = 2000, shown: int = 24
) -> int:
    """Writes the report.

    Args:
      directory: output folder of `imagen embed`.
      output: the HTML file.
      sampled: records of each split that histograms are made of.
      shown: records of each split whose images are shown.

    Returns:
      The number of records that were read.

    Raises:
      UserError: see load_manifest; or a record is damaged.
    """
    manifest = load_manifest(directory)
    facts = {
        "encoder": ", ".join(f"{key} {value}" for key, value in manifest["encoder"].items()),
        "token states": manifest["states"],
        "images": f"{manifest['image_size']} x {manifest['image_size']} pixels",
        "fingerprint": manifest["fingerprint"],
    }
    parts = [table(facts)]
    read = 0
    for split, entry in manifest["splits"].items():
        paths = [str(as_path(directory) / name) for name in entry["shards"]]
        shards = ShardTable.of(list(zip(paths, entry["shard_examples"], strict=True)))
        places = spaced(entry["examples"], sampled)
        of_split = [shards.record(int(place)) for place in places]
        parts += _split(split, manifest["source"][split], entry, of_split, shown)
        read += len(of_split)
    write_page(output, str(directory), parts)
    return read


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
        facts[what] = counted(entry[what])
    lengths = [len(of_caption) for record in sample for of_caption in record.states]
    kilobytes = [len(record.image) / 1e3 for record in sample]
    chosen = [sample[i] for i in spaced(len(sample), shown)]
    return [
        f"<h2>{html.escape(name)}</h2>",
        table(facts),
        f"<h3>Tokens of a caption, of {len(sample):,} examples</h3>",
        histogram(lengths, whole=True),
        "<h3>Size of a recorded image, in kB</h3>",
        histogram(kilobytes, whole=False),
        "<h3>Shorter side of the images as they came, in pixels, of all examples</h3>",
        bars(sorted(entry["sides"].items(), key=lambda item: int(item[0].split("-")[0]))),
        f"<h3>{len(chosen)} examples</h3>",
        sheet(
            figure(r.image, caption, f"{r.id}, {len(states)} tokens")
            for r in chosen
            for caption, states in zip(r.captions, r.states, strict=True)
        ),
    ]
