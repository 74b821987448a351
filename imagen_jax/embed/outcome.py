"""Message of an embedding job that kept nothing."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path

from imagen_jax.data import records
from imagen_jax.data.advice import advice_on


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


def _dropped_lines(directory: Path, split: str, num_shards: int) -> Iterator[dict[str, str]]:
    for shard in range(num_shards):
        name = records.shard_name(split, shard, num_shards)
        listing = (directory / name).with_suffix(".dropped")
        if listing.exists():
            with listing.open(encoding="utf-8") as file:
                yield from map(json.loads, file)
