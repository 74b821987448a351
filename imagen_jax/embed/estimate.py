"""Estimate of an embedding job from a sample of the corpus."""

from __future__ import annotations

import time
from dataclasses import dataclass
from itertools import islice

import jax
import jax.numpy as jnp

from imagen_jax.data import records
from imagen_jax.data.choices import STATES
from imagen_jax.data.records import Record
from imagen_jax.data.sources import Source
from imagen_jax.embed.prepare import Handling, prepare
from imagen_jax.errors import UserError
from imagen_jax.text.encoder import TextEncoder

FLOAT32_PASSES = 6
"""Passes of the matrix unit for a float32 product in full precision, by TPU's bfloat16x6."""


@dataclass(frozen=True)
class Chip:
    """An accelerator to embed on.

    Attributes:
      tflops: peak of bfloat16 matrix products, in 10^12 operations per second.
      utilisation: share of the peak that is reached, in (0, 1]; an assumption.
      price: price of an hour, in US dollars.
    """

    tflops: float
    utilisation: float
    price: float


@dataclass(frozen=True)
class Estimate:
    """Measured on a sample and projected to `count` examples.

    Attributes:
      count: examples of the corpus.
      sampled: examples of the sample, dropped ones included.
      dropped: examples of the sample that are left out, by reason.
      usable: share of examples that can be used.
      distinct: captions per usable example; below 1 where captions repeat within the sample.
      tokens: mean number of tokens of a caption.
      image_bytes: mean size of a recorded image.
      bytes_of: storage of states -> mean size of a record.
      prepare_seconds, encode_seconds: per example and per caption, here.
      flops: operations of the encoder per caption, padding included.
      chip_hours: for all captions, and `cost` in US dollars.
    """

    count: int
    sampled: int
    dropped: dict[str, int]
    usable: float
    distinct: float
    tokens: float
    image_bytes: float
    bytes_of: dict[str, float]
    prepare_seconds: float
    encode_seconds: float
    flops: float
    chip_hours: float
    cost: float


def estimate(
    source: Source,
    encoder: TextEncoder,
    handling: Handling,
    count: int,
    chip: Chip,
    sample: int = 512,
) -> Estimate:
    """Embeds a sample, the beginning of the source, without writing it.

    Args:
      source: the corpus.
      encoder: the encoder that would embed it.
      handling: treatment of examples that do not fit.
      count: examples that the corpus has, or is to have.
      chip: chip to embed on.
      sample: examples to take.

    Raises:
      UserError: no example of the sample can be used.
    """
    started = time.perf_counter()
    first = islice(source.examples_of_shard(0, 1), sample)
    chunks = list(prepare([(0, first)], encoder, handling))
    prepare_seconds = time.perf_counter() - started
    sampled = sum(chunk.seen for chunk in chunks)
    examples = [example for chunk in chunks for example in chunk.examples]
    dropped: dict[str, int] = {}
    for chunk in chunks:
        for _, reason, _ in chunk.dropped:
            dropped[reason] = dropped.get(reason, 0) + 1
    if not examples:
        raise UserError(f"none of the first {sampled} examples can be used: {dropped}")
    tokens_of = {caption: ids for chunk in chunks for caption, ids in chunk.tokens.items()}
    tokens = list(tokens_of.values())
    encoder.encode_tokens(tokens)  # compiles
    started = time.perf_counter()
    states_of = dict(zip(tokens_of, encoder.encode_tokens(tokens), strict=True))
    encode_seconds = (time.perf_counter() - started) / len(tokens)
    written = [
        Record(name, captions, image, tuple(states_of[caption] for caption in captions))
        for name, captions, image in examples
    ]
    bytes_of = {
        kind: sum(len(records.serialize_record(record, kind)) for record in written) / len(examples)
        for kind in STATES
    }
    usable, distinct = len(examples) / sampled, len(tokens) / len(examples)
    flops = _flops(encoder, tokens) / len(tokens)
    passes = 1 if encoder.dtype == "bfloat16" else FLOAT32_PASSES
    per_second = chip.tflops * 1e12 * chip.utilisation / passes
    chip_hours = count * usable * distinct * flops / per_second / 3600
    return Estimate(
        count=count,
        sampled=sampled,
        dropped=dropped,
        usable=usable,
        distinct=distinct,
        tokens=sum(len(states) for record in written for states in record.states) / len(written),
        image_bytes=sum(len(record.image) for record in written) / len(written),
        bytes_of=bytes_of,
        prepare_seconds=prepare_seconds / sampled,
        encode_seconds=encode_seconds,
        flops=flops,
        chip_hours=chip_hours,
        cost=chip_hours * chip.price,
    )


def _flops(encoder: TextEncoder, tokens: list) -> float:
    """Operations of encoding these captions in the batches that they are encoded in."""
    network = jax.jit(encoder.network)
    total, known = 0.0, dict[tuple[int, int], float]()
    for shape, _ in encoder.batches([len(row) for row in tokens]):
        if shape not in known:
            ids = jax.ShapeDtypeStruct(shape, jnp.int32)
            mask = jax.ShapeDtypeStruct(shape, jnp.bool_)
            cost = network.lower(encoder.params, ids, mask).cost_analysis()
            known[shape] = float((cost or {}).get("flops", 0.0))
        total += known[shape]
    return total


def report(found: Estimate, chip: Chip) -> str:
    """The estimate in words."""
    lines = [
        f"of {found.sampled} examples: {found.usable:.1%} usable, {found.tokens:.1f} tokens to a "
        f"caption, {found.distinct:.1%} of captions different, images of "
        f"{found.image_bytes / 1e3:.1f} kB",
        *(f"  dropped: {number} {reason}" for reason, number in found.dropped.items()),
        f"here: {1 / found.encode_seconds:,.0f} captions/s encoded, "
        f"{1 / found.prepare_seconds:,.0f} examples/s read and prepared",
        f"for {found.count:,} examples:",
    ]
    total = found.count * found.usable
    for kind, size in found.bytes_of.items():
        lines.append(
            f"  storage {size * total / 1e9:,.1f} GB with {kind} states ({size:,.0f} B each)"
        )
    lines.append(
        f"  {found.chip_hours:,.1f} chip-hours and {found.cost:,.0f} USD, at "
        f"{found.flops / 1e9:,.2f} GFLOP to a caption, "
        f"{chip.tflops:g} TFLOP/s, {chip.utilisation:.0%} of it reached "
        f"(assumed), {chip.price:g} USD/h"
    )
    return "\n".join(lines)
