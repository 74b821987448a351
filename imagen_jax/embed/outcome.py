"""Last words of an embedding job: that nothing was kept, or that much is alike."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from imagen_jax.data import records
from imagen_jax.data.advice import advice_on
from imagen_jax.data.pages import spaced
from imagen_jax.paths import as_path

COMPARED = 100
"""Examples, evenly spaced through all, whose images are compared."""


def nothing_kept(directory: Path, split: str, num_shards: int, dropped: Mapping[str, int]) -> str:
    """Why no example could be used, by the commonest reason, and what mends it.

    Args:
      directory: the embedding directory, with its lists of what was dropped.
      split, num_shards: the embedded split and its number of shards.
      dropped: examples by reason.
    """
    if not dropped:
        return f"no example of split {split!r} could be used: the corpus is empty"
    reasons = sorted(dropped.items(), key=lambda item: -item[1])
    reason, number = reasons[0]
    total = sum(dropped.values())
    first = next(
        line for line in _dropped_lines(directory, split, num_shards) if line["reason"] == reason
    )
    message = f"no example of split {split!r} could be used: "
    message += f"all {number}: {reason}" if number == total else f"{number} of {total}: {reason}"
    message += f" (first {first['id']}{': ' + first['detail'] if 'detail' in first else ''})"
    if advice := advice_on(reason):
        message += f"; {advice}"
    if others := reasons[1:6]:
        message += "; also " + ", ".join(f"{n} {other}" for other, n in others)
    return message


def alike(directory: str | Path, entry: Mapping[str, Any]) -> list[str]:
    """Remarks on what training can learn little from: one image alone, or few captions.

    Args:
      directory: the embedding directory.
      entry: the manifest's entry of a split.
    """
    from imagen_jax.data.reading import ShardTable

    remarks = []
    count, captions = entry["examples"], entry["captions"]
    paths = [str(as_path(directory) / name) for name in entry["shards"]]
    table = ShardTable.of(list(zip(paths, entry["shard_examples"], strict=True)))
    first, *others = map(int, spaced(count, COMPARED))
    image = table.record(first).image if others else b""
    if others and all(table.record(place).image == image for place in others):
        compared = len(others) + 1
        of = "" if compared == count else f" that were compared, of {count},"
        remarks.append(f"all {compared} images{of} are the same")
    if 2 * captions <= count:
        remarks.append(f"captions repeat: at most {captions} of {count} are different")
    return remarks


def _dropped_lines(directory: Path, split: str, num_shards: int) -> Iterator[dict[str, str]]:
    for shard in range(num_shards):
        name = records.shard_name(split, shard, num_shards)
        listing = (directory / name).with_suffix(".dropped")
        if listing.exists():
            with listing.open(encoding="utf-8") as file:
                yield from map(json.loads, file)
