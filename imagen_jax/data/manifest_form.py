"""The form of a manifest of embeddings: somebody else may have written it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from imagen_jax.data.choices import STATES

MAX_SIDE = 2**14
"""Pixels per side of recorded images."""
_COUNTS = ("dropped", "changed", "sides")


def fault_of(manifest: Mapping[str, Any]) -> str | None:
    """Return what is wrong with the form of a manifest; None where nothing is."""
    try:
        return _fault_of(manifest)
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        return f"{type(error).__name__}: {error}"


def _fault_of(manifest: Mapping[str, Any]) -> str | None:
    encoder = manifest["encoder"]
    for name in ("name", "fingerprint"):
        if not isinstance(encoder[name], str):
            return f"encoder.{name} is {encoder[name]!r}, no text"
    for name, number, most in (
        ("encoder.width", encoder["width"], 2**20),
        ("encoder.max_length", encoder["max_length"], 2**20),
        ("image_size", manifest["image_size"], MAX_SIDE),
    ):
        if type(number) is not int or not 1 <= number <= most:
            return f"{name} is {number!r}; it must be from 1 to {most}"
    if manifest["states"] not in STATES:
        return f"states is {manifest['states']!r}; choices: {', '.join(STATES)}"
    for split, entry in manifest["splits"].items():
        if not isinstance(manifest["source"][split], dict):
            return f"source.{split} is no description"
        if fault := _fault_of_split(entry):
            return f"splits.{split}: {fault}"
    return None


def _fault_of_split(entry: Mapping[str, Any]) -> str | None:
    shards, counts, sizes = entry["shards"], entry["shard_examples"], entry["shard_bytes"]
    if not shards or not len(shards) == len(counts) == len(sizes):
        return "shards, shard_examples and shard_bytes must be lists of equal length"
    for shard in shards:
        if not isinstance(shard, str) or "/" in shard or "\0" in shard:
            return f"{shard!r} is no name of a file beside it"
    numbers: Sequence[Any] = [
        *counts, *sizes, entry["examples"], entry["bytes"], entry["captions"], entry["tokens"],
        entry.get("longest", 0), *(n for name in _COUNTS for n in entry[name].values()),
    ]  # fmt: skip
    for number in numbers:
        if type(number) is not int or not 0 <= number < 2**53:
            return f"{number!r} is no number of anything"
    for side in entry["sides"]:
        int(side.split("-")[0])
    if not entry["examples"] or sum(counts) != entry["examples"]:
        return f"{entry['examples']} examples, but {sum(counts)} in its shards"
    return None
