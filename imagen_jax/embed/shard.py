"""Writes one shard of an embedding directory: the same bytes whenever it is written.

Examples go through in chunks, bounded in number and bytes. While one chunk is encoded and written,
the images of the next are decoded and its captions tokenised, on all processor cores: memory
holds two chunks, of the second also the images as they came.

The token states of all captions of a shard are held in memory until it is written, because a
caption is encoded once however often it comes: 10,000 captions of 20 tokens by T5-XXL are 1.6 GB.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import ml_dtypes
import numpy as np
from tqdm import tqdm

from imagen_jax.data import records
from imagen_jax.data.fitting import RecordImage, record_image
from imagen_jax.data.images import UnusableError
from imagen_jax.data.records import Record
from imagen_jax.data.sources import DamagedFile, Example, Source
from imagen_jax.files import atomic_path
from imagen_jax.text.encoder import TextEncoder
from imagen_jax.text.tokenizer import CaptionTooLongError

CHUNK_EXAMPLES = 2048
CHUNK_BYTES = 2**28
"""A chunk ends with the example that brings it to either: so many, or so many bytes of images."""


@dataclass(frozen=True)
class Handling:
    """What is done with examples that do not fit as they are.

    Attributes:
      image_size: side of the recorded images in pixels.
      fit: of images of another size, one of choices.FITS.
      long_captions: one of choices.LONG_CAPTIONS.
    """

    image_size: int
    fit: str
    long_captions: str


@dataclass
class Counts:
    """What went into a shard and what did not.

    Attributes:
      examples: records written.
      captions: different captions, encoded once each.
      tokens: token states in the records.
      dropped: examples left out, by reason.
      changed: examples recorded otherwise than they came, by what was done.
      sides: examples by the shorter side of their image as it came: "256-511" pixels.
    """

    examples: int = 0
    captions: int = 0
    tokens: int = 0
    dropped: Counter[str] = field(default_factory=Counter)
    changed: Counter[str] = field(default_factory=Counter)
    sides: Counter[str] = field(default_factory=Counter)


@dataclass
class Chunk:
    """Examples that are ready to be encoded.

    Attributes:
      examples: (id, caption, encoded image) of those that can be used.
      new: tokens of the captions that no chunk before has.
      dropped: (id, reason, detail) of the others, and of damaged files.
      changed: what was done to the examples, counted.
      sides: shorter sides of their images, counted.
      seen: all examples, and damaged files.
    """

    examples: list[tuple[str, str, bytes]]
    new: dict[str, np.ndarray]
    dropped: list[tuple[str, str, str]]
    changed: Counter[str]
    sides: Counter[str]
    seen: int


def prepare(
    examples: Iterable[Example | DamagedFile], encoder: TextEncoder, handling: Handling
) -> Iterator[Chunk]:
    """Examples of a shard, in chunks that are prepared ahead by one."""
    known: set[str] = set()
    with ThreadPoolExecutor() as pool, ThreadPoolExecutor(1) as ahead:
        iterator = iter(examples)

        def next_chunk() -> Chunk | None:
            taken = _take(iterator)
            return _prepare(taken, encoder, handling, known, pool) if taken else None

        waiting = ahead.submit(next_chunk)
        while (chunk := waiting.result()) is not None:
            waiting = ahead.submit(next_chunk)
            yield chunk


def _take(examples: Iterator[Example | DamagedFile]) -> list[Example | DamagedFile]:
    """The examples of the next chunk."""
    taken: list[Example | DamagedFile] = []
    size = 0
    while size < CHUNK_BYTES and len(taken) < CHUNK_EXAMPLES:
        example = next(examples, None)
        if example is None:
            break
        taken.append(example)
        size += 0 if isinstance(example, DamagedFile) else _bytes(example.image)
    return taken


def _bytes(image: np.ndarray | bytes | None) -> int:
    if image is None:
        return 0
    return image.nbytes if isinstance(image, np.ndarray) else len(image)


def _prepare(
    examples: list[Example | DamagedFile],
    encoder: TextEncoder,
    handling: Handling,
    known: set[str],
    pool: ThreadPoolExecutor,
) -> Chunk:
    def read(example: Example | DamagedFile) -> RecordImage | UnusableError:
        try:
            if isinstance(example, DamagedFile):
                raise UnusableError("rest of a damaged file", example.fault)
            if not example.caption.strip():
                raise UnusableError("empty caption")
            return record_image(example.image, handling.image_size, handling.fit)
        except UnusableError as error:
            return error

    chunk = Chunk([], {}, [], Counter(), Counter(), len(examples))
    for example, result in zip(examples, pool.map(read, examples), strict=True):
        try:
            if isinstance(result, UnusableError):
                raise result
            assert not isinstance(example, DamagedFile)  # which is unusable
            tokens, cut = _tokens(example.caption, encoder, handling.long_captions)
        except UnusableError as error:
            chunk.dropped.append((example.id, error.reason, error.detail))
            continue
        chunk.changed.update(result.changed + cut)
        power = 2 ** (result.side.bit_length() - 1)
        chunk.sides[f"{power}-{2 * power - 1}"] += 1
        if example.caption not in known:
            known.add(example.caption)
            chunk.new[example.caption] = tokens
        chunk.examples.append((example.id, example.caption, result.content))
    return chunk


def _tokens(caption: str, encoder: TextEncoder, long_captions: str) -> tuple[np.ndarray, list[str]]:
    try:
        return encoder.tokenize([caption])[0], []
    except CaptionTooLongError as error:
        if long_captions == "truncate":
            return error.cut, [f"caption cut to {encoder.max_length} tokens"]
        raise UnusableError(
            f"caption of more than {encoder.max_length} tokens", f"{error.tokens} tokens"
        ) from error


def write_shard(
    source: Source,
    encoder: TextEncoder,
    path: Path,
    shard: int,
    num_shards: int,
    handling: Handling,
    states: str,
    bar: tqdm,
) -> Counts:
    """Writes a shard with its offsets and, if any, the list of what was dropped.

    Args:
      path: of the shard, which appears when it is complete.
      states: how token states are stored, one of choices.STATES.
      bar: moves on by one for each example.
    """
    for stale in path.parent.glob(f"{path.stem}.*.tmp"):  # of a process that was killed
        stale.unlink()
    counts = Counts()
    states_of: dict[str, np.ndarray] = {}
    dropped: list[tuple[str, str, str]] = []
    with records.record_writer(path) as writer:
        for chunk in prepare(source.examples_of_shard(shard, num_shards), encoder, handling):
            encoded = encoder.encode_tokens(list(chunk.new.values()), bar.update)
            for caption, of_caption in zip(chunk.new, encoded, strict=True):
                states_of[caption] = of_caption.astype(ml_dtypes.bfloat16)
            for name, caption, image in chunk.examples:
                record = Record(name, caption, image, states_of[caption])
                writer.write(records.serialize_record(record, states))
                counts.tokens += len(states_of[caption])
            counts.examples += len(chunk.examples)
            counts.changed += chunk.changed
            counts.sides += chunk.sides
            dropped += chunk.dropped
            bar.update(chunk.seen - len(chunk.new))
        counts.captions = len(states_of)
        counts.dropped = Counter(reason for _, reason, _ in dropped)
        listing = path.with_suffix(".dropped")
        if dropped:
            _write_dropped(listing, dropped)
        else:
            listing.unlink(missing_ok=True)  # of a shard that is written anew
    return counts


def _write_dropped(path: Path, dropped: list[tuple[str, str, str]]) -> None:
    with atomic_path(path) as temporary:
        lines = [
            json.dumps({"id": name, "reason": reason} | ({"detail": detail} if detail else {}))
            for name, reason, detail in dropped
        ]
        temporary.write_text("\n".join(lines) + "\n")
