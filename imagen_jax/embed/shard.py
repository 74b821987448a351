"""Writes shards of an embedding directory: each the same bytes whenever it is written.

A caption is encoded once in a chunk of examples, and again in a later chunk of its shard only where
its token states are no longer among the last CACHE_BYTES of them: memory holds as much of a shard
of a million captions as of one of ten thousand.
"""

from __future__ import annotations

import json
from collections import Counter, OrderedDict
from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from textwrap import shorten
from typing import IO

import ml_dtypes
import numpy as np
from tqdm import tqdm

from imagen_jax.data import records
from imagen_jax.data.records import Record, RecordWriter
from imagen_jax.data.sources import Source
from imagen_jax.embed.prepare import Chunk, Handling, prepare
from imagen_jax.files import atomic_path
from imagen_jax.text.encoder import TextEncoder

CACHE_BYTES = 2**28


@dataclass
class Counts:
    """Counts of a shard: examples kept and left out.

    Attributes:
      examples: records written.
      captions: captions encoded.
      tokens: token states in the records.
      longest: most tokens of a caption.
      dropped: examples left out, by reason.
      changed: examples recorded otherwise than they came, by what was done.
      sides: examples by the shorter side of their image as it came: "256-511" pixels.
    """

    examples: int = 0
    captions: int = 0
    tokens: int = 0
    longest: int = 0
    dropped: Counter[str] = field(default_factory=Counter)
    changed: Counter[str] = field(default_factory=Counter)
    sides: Counter[str] = field(default_factory=Counter)


def write_shards(
    source: Source,
    encoder: TextEncoder,
    paths: dict[int, Path],
    num_shards: int,
    handling: Handling,
    states: str,
    bar: tqdm,
) -> Iterator[tuple[int, Counts, RecordWriter]]:
    """Writes shards, each with its offsets and, if any, the list of what was dropped.

    Args:
      source: the corpus.
      encoder: encoder of captions.
      paths: paths of the shards, by number. A file appears when it is complete.
      num_shards: number of shards of the corpus.
      handling: treatment of examples that do not fit.
      states: storage of token states, one of choices.STATES.
      bar: moves on by one for each example.

    Yields:
      The number of each shard, when it is complete, its counts, and what wrote it.
    """
    shards = ((shard, source.examples_of_shard(shard, num_shards)) for shard in paths)
    chunks = prepare(shards, encoder, handling)
    for shard, path in paths.items():
        with ExitStack() as stack:
            writer = _Shard(stack, path, encoder, states)
            for chunk in chunks:
                assert chunk.shard == shard
                writer.add(chunk, bar)
                if chunk.last:
                    break
        yield shard, writer.counts, writer.records


class _Shard:
    """A shard that is being written."""

    def __init__(self, stack: ExitStack, path: Path, encoder: TextEncoder, states: str):
        self.counts = Counts()
        self._encoder, self._states = encoder, states
        self._cache: OrderedDict[str, np.ndarray] = OrderedDict()
        self._cached = 0
        self._stack = stack
        self._listing = path.with_suffix(".dropped")
        self._list: IO[str] | None = None
        self.records = stack.enter_context(records.record_writer(path))

    def add(self, chunk: Chunk, bar: tqdm) -> None:
        """Encodes and writes a chunk."""
        states_of = self._encode(chunk, bar)
        counts = self.counts
        for name, captions, image in chunk.examples:
            record = Record(name, captions, image, tuple(states_of[c] for c in captions))
            self.records.write(records.serialize_record(record, self._states))
            lengths = [len(of_caption) for of_caption in record.states]
            counts.tokens += sum(lengths)
            counts.longest = max(counts.longest, *lengths)
        counts.examples += len(chunk.examples)
        counts.changed += chunk.changed
        counts.sides += chunk.sides
        counts.dropped.update(reason for _, reason, _ in chunk.dropped)
        self._write_dropped(chunk.dropped)
        if chunk.last and self._list is None:
            self._listing.unlink(missing_ok=True)  # of a shard that is written again

    def _encode(self, chunk: Chunk, bar: tqdm) -> dict[str, np.ndarray]:
        """States of all captions of a chunk."""
        new = [caption for caption in chunk.tokens if caption not in self._cache]
        states_of = {c: self._cache[c] for c in chunk.tokens if c in self._cache}

        def name_of(number: int) -> str:
            name = next(of[0] for of in chunk.examples if new[number] in of[1])
            return f"{shorten(new[number], 200)!r} of example {name}"

        encoded = self._encoder.encode_tokens([chunk.tokens[c] for c in new], bar.update, name_of)
        for caption, of_caption in zip(new, encoded, strict=True):
            states_of[caption] = of_caption.astype(ml_dtypes.bfloat16)
        self.counts.captions += len(new)
        bar.update(chunk.seen - len(new))
        for caption in chunk.tokens:  # the last ones are those of this chunk
            if caption in self._cache:
                self._cache.move_to_end(caption)
            else:
                self._cache[caption] = states_of[caption]
                self._cached += states_of[caption].nbytes
        while self._cached > CACHE_BYTES:
            self._cached -= self._cache.popitem(last=False)[1].nbytes
        return states_of

    def _write_dropped(self, dropped: Iterable[tuple[str, str, str]]) -> None:
        for name, reason, detail in dropped:
            if self._list is None:
                temporary = self._stack.enter_context(atomic_path(self._listing))
                self._list = self._stack.enter_context(temporary.open("w", encoding="utf-8"))
            line = {"id": name, "reason": reason} | ({"detail": detail} if detail else {})
            self._list.write(json.dumps(line) + "\n")
