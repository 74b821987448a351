"""From examples to chunks that are ready to be encoded, ahead of the encoder.

Examples go through in chunks, bounded in number and bytes. While one chunk is encoded and written,
the images of the next are read and decoded and its captions tokenised, on all processor cores, also
where the next belongs to another shard: memory holds two chunks, whatever the corpus.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import chain, islice
from typing import Any

import numpy as np

from imagen_jax.data.choices import CAPTIONS
from imagen_jax.data.corpora.captions import says_nothing
from imagen_jax.data.fitting import RecordImage, record_image
from imagen_jax.data.sources import Dropped, Example, same_image
from imagen_jax.errors import UnusableError
from imagen_jax.text.encoder import TextEncoder
from imagen_jax.text.tokenizer import CaptionTooLongError

CHUNK_EXAMPLES = 2048
CHUNK_BYTES = 2**28
"""A chunk ends with the example that brings it to either: its number of examples, or the bytes of
images in memory. Captions that are drawn from are not divided."""
FURTHER = "further caption of its image"
"""Name of what is changed about a caption that is drawn with others."""


@dataclass(frozen=True)
class Handling:
    """Treatment of examples that do not fit as they are.

    Attributes:
      image_size: side of the recorded images in pixels.
      fit: treatment of images of another size, one of choices.FITS.
      long_captions: one of choices.LONG_CAPTIONS.
      max_tokens: most tokens of a caption; None for what the encoder takes.
      captions: treatment of several captions of an image, one of choices.CAPTIONS.
    """

    image_size: int
    fit: str
    long_captions: str
    max_tokens: int | None = None
    captions: str = CAPTIONS[0]


@dataclass
class Chunk:
    """Examples that are ready to be encoded.

    Attributes:
      examples: (id, captions, encoded image) of those that can be used.
      tokens: token ids of each caption.
      dropped: (id, reason, detail) of the others.
      changed: counts of changes to the examples.
      sides: shorter sides of their images, counted.
      seen: all examples.
      shard: shard that they belong to.
      last: nothing more of this shard follows.
    """

    examples: list[tuple[str, tuple[str, ...], bytes]]
    tokens: dict[str, np.ndarray]
    dropped: list[tuple[str, str, str]]
    changed: Counter[str]
    sides: Counter[str]
    seen: int
    shard: int = 0
    last: bool = True


def prepare(
    shards: Iterable[tuple[int, Iterable[Example | Dropped]]],
    encoder: TextEncoder,
    handling: Handling,
) -> Iterator[Chunk]:
    """Chunks of several shards, one after another, prepared ahead by one.

    Args:
      shards: (number, examples) of each; every shard ends with a chunk that is its `last`, which
        may be empty.
      encoder: whose tokenizer is used.
      handling: treatment of examples that do not fit.
    """
    with ThreadPoolExecutor() as pool, ThreadPoolExecutor(1) as ahead:
        chunks = _chunks(shards, encoder, handling, pool)

        def next_chunk() -> Chunk | None:
            return next(chunks, None)

        waiting = ahead.submit(next_chunk)
        while (chunk := waiting.result()) is not None:
            waiting = ahead.submit(next_chunk)
            yield chunk


def _chunks(
    shards: Iterable[tuple[int, Iterable[Example | Dropped]]],
    encoder: TextEncoder,
    handling: Handling,
    pool: ThreadPoolExecutor,
) -> Iterator[Chunk]:
    for shard, examples in shards:
        iterator = iter(examples)
        last = False
        while not last:
            taken = _take(iterator)
            following = list(islice(iterator, 1))
            together = handling.captions == "drawn"
            while together and following and same_image(taken[-1], following[0]):
                taken += following
                following = list(islice(iterator, 1))
            iterator = chain(following, iterator)
            chunk = _prepare(taken, encoder, handling, pool)
            last = not following
            chunk.shard, chunk.last = shard, last
            yield chunk


def _take(examples: Iterator[Example | Dropped]) -> list[Example | Dropped]:
    """The examples of the next chunk."""
    taken: list[Example | Dropped] = []
    size = 0
    while size < CHUNK_BYTES and len(taken) < CHUNK_EXAMPLES:
        example = next(examples, None)
        if example is None:
            break
        taken.append(example)
        size += 0 if isinstance(example, Dropped) else _bytes(example.image)
    return taken


def _bytes(image: object) -> int:
    if isinstance(image, np.ndarray):
        return image.nbytes
    return len(image) if isinstance(image, bytes) else 0


def _prepare(
    examples: Sequence[Example | Dropped],
    encoder: TextEncoder,
    handling: Handling,
    pool: ThreadPoolExecutor,
) -> Chunk:
    def fitted(image: Any) -> RecordImage | UnusableError:
        try:
            content = image.read() if hasattr(image, "read") else image
            return record_image(content, handling.image_size, handling.fit)
        except UnusableError as error:
            return error

    futures = _submit(examples, fitted, pool)
    tokens = _tokenized(examples, encoder, handling)
    chunk = Chunk([], {}, [], Counter(), Counter(), len(examples))
    kept: Example | None = None
    for example, future in zip(examples, futures, strict=True):
        name = example.id.encode("utf-8", "backslashreplace").decode()
        try:
            if isinstance(example, Dropped):
                kept = None  # as where a chunk ends
                raise UnusableError(example.reason, example.detail)
            of_caption = tokens[example.caption]
            if isinstance(of_caption, UnusableError):
                raise of_caption
            assert future is not None  # of an example with a caption
            result = future.result()
            if isinstance(result, UnusableError):
                raise result
        except UnusableError as error:
            chunk.dropped.append((name, error.reason, error.detail))
            continue
        chunk.tokens[example.caption], cut = of_caption
        chunk.changed.update(cut)
        if handling.captions == "drawn" and same_image(kept, example):
            first, captions, content = chunk.examples[-1]
            chunk.examples[-1] = (first, (*captions, example.caption), content)
            chunk.changed[FURTHER] += 1
            continue
        kept = example
        chunk.changed.update(result.changed)
        power = 2 ** (result.side.bit_length() - 1)
        chunk.sides[f"{power}-{2 * power - 1}"] += 1
        chunk.examples.append((name, (example.caption,), result.content))
    return chunk


def _submit(
    examples: Sequence[Example | Dropped],
    fitted: Callable[[Any], RecordImage | UnusableError],
    pool: ThreadPoolExecutor,
) -> list[Future | None]:
    """The images' work; that of neighbours with one image (and several captions) is done once."""
    futures: list[Future | None] = []
    before: Example | None = None
    for example in examples:
        if isinstance(example, Dropped) or says_nothing(example.caption):
            futures.append(None)
        elif futures[-1:] != [None] and same_image(before, example):
            futures.append(futures[-1])
        else:
            futures.append(pool.submit(fitted, example.image))
            before = example
    return futures


_Tokens = tuple[np.ndarray, list[str]]


def _tokenized(
    examples: Sequence[Example | Dropped], encoder: TextEncoder, handling: Handling
) -> dict[str, _Tokens | UnusableError]:
    """Of every caption: its tokens and what was done to it, or why it cannot be used."""
    captions = list(dict.fromkeys(e.caption for e in examples if not isinstance(e, Dropped)))
    found: dict[str, _Tokens | UnusableError] = {}
    for caption in captions:
        if says_nothing(caption):
            found[caption] = UnusableError("empty caption")
    captions = [caption for caption in captions if caption not in found]
    try:
        rows: Iterable[np.ndarray | CaptionTooLongError] = encoder.tokenize(captions)
    except CaptionTooLongError:
        rows = (_tokenized_alone(caption, encoder) for caption in captions)
    most = min(encoder.max_length, handling.max_tokens or encoder.max_length)
    for caption, row in zip(captions, rows, strict=True):
        tokens, cut = (row.tokens, row.cut) if isinstance(row, CaptionTooLongError) else (
            len(row), row)  # fmt: skip
        lines = ["caption of several lines"] if "\n" in caption.strip() else []
        if tokens <= most:
            found[caption] = (cut, lines)
        elif handling.long_captions == "truncate":
            # What ends a sentence ends the shortened one, too.
            short = cut if len(cut) <= most else np.concatenate([cut[: most - 1], cut[-1:]])
            found[caption] = (short, [*lines, f"caption cut to {most} tokens"])
        else:
            reason = f"caption of more than {most} tokens"
            found[caption] = UnusableError(reason, f"{tokens} tokens")
    return found


def _tokenized_alone(caption: str, encoder: TextEncoder) -> np.ndarray | CaptionTooLongError:
    try:
        return encoder.tokenize([caption])[0]
    except CaptionTooLongError as error:
        return error
