"""Embeds captions once, offline: pictures and captions -> shards of pictures and token states.

A frozen encoder gives the same states in every epoch, so they are computed before training. The job
writes shard after shard; each appears whole under its name or not at all. Run again after an
interruption, it keeps the shards that are done and recomputes the others, with the same bytes.
The manifest is written last, by whichever process finds all shards there.
"""

from __future__ import annotations

import hashlib
import io
import json
from collections import Counter
from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
from PIL import Image
from tqdm import tqdm

from imagen_jax.data import records
from imagen_jax.data.records import Manifest, Record
from imagen_jax.data.sources import Example, SceneSource, Source
from imagen_jax.text.encoder import TextEncoder, load_encoder
from imagen_jax.text.tokenizer import CaptionTooLongError

CHUNK = 2048
"""Examples held in memory between rendering, encoding and writing."""

Job = dict[str, Any]


def embed(
    source: Source,
    encoder: TextEncoder,
    output_dir: str | Path,
    *,
    split: str,
    image_size: int,
    num_shards: int,
    shards: Iterable[int] | None = None,
) -> Manifest | None:
    """Writes one split of an embedding directory (layout: `imagen_jax.data.records`).

    Examples that cannot be used are left out and counted by reason in the manifest: an empty
    caption, one with too many tokens, a picture that is undecodable or of another size.

    Args:
      source: captioned pictures.
      encoder: frozen text encoder.
      output_dir: made if it does not exist. Further splits may be added later, with the same
        encoder and image size.
      split: name of the split, such as "train".
      image_size: side of the pictures in pixels.
      num_shards: files to divide the split into.
      shards: those of them that this process writes, for dividing the job over hosts; None for
        all.

    Returns:
      The manifest, or None if other processes have shards of this split to finish.

    Raises:
      ValueError: the directory holds embeddings of another encoder, source or layout (the message
        shows the differences), a shard is out of range, or no example could be used.
    """
    if num_shards < 1 or image_size < 1:
        raise ValueError(
            f"num_shards and image_size must be at least 1, got {num_shards} and {image_size}"
        )
    mine = list(range(num_shards) if shards is None else shards)
    if outside := [shard for shard in mine if not 0 <= shard < num_shards]:
        raise ValueError(f"shards {outside} are not in 0..{num_shards - 1}")
    directory = Path(output_dir)
    job: Job = {
        "format": records.FORMAT,
        "encoder": {
            "name": encoder.name,
            "fingerprint": encoder.fingerprint,
            "width": encoder.width,
            "max_length": encoder.max_length,
        },
        "image_size": image_size,
        "split": split,
        "num_shards": num_shards,
        "source": json.loads(json.dumps(source.describe())),
    }
    _claim(directory, job)
    todo = [shard for shard in mine if _finished(directory, job, shard) is None]
    examples = round(len(source) * len(todo) / num_shards)
    with tqdm(total=examples, desc=f"embed {split}", unit=" captions", disable=not todo) as bar:
        for shard in todo:
            _embed_shard(source, encoder, directory, job, shard, bar)
    return _write_manifest(directory, job)


def embed_scenes(
    level: str,
    count: int,
    size: int,
    seed: int,
    encoder_name: str,
    output_dir: str | Path,
    num_shards: int = 8,
    emoji: str | Path | None = None,
    weights: str | None = None,
    vocabulary: str | None = None,
) -> Manifest:
    """Embeds the training split of the built-in scenes.

    Args:
      level: vocabulary of the scenes.
      count: number of scenes.
      size: side of the pictures in pixels.
      seed: seed of the scenes.
      encoder_name: see `load_encoder`.
      output_dir: embedding directory, see `embed`.
      num_shards: files to divide the examples into.
      emoji: directory of fetched emoji that join the level, see `get_level`.
      weights, vocabulary: files of the encoder, see `load_encoder`.

    Raises:
      ValueError: an unknown level or encoder, count < num_shards, emoji with another level than
        "full", or see `embed`.
      FileNotFoundError: the encoder's weights are not installed, or no fetched emoji are there.
    """
    from imagen_jax.data.scenes.levels import get_level

    get_level(level, emoji)
    if count < num_shards:
        raise ValueError(f"count must be at least num_shards = {num_shards}, got {count}")
    manifest = embed(
        SceneSource(level, "train", seed, count, size, emoji),
        load_encoder(encoder_name, weights, vocabulary),
        output_dir,
        split="train",
        image_size=size,
        num_shards=num_shards,
    )
    assert manifest is not None  # one process writes all shards
    return manifest


def _claim(directory: Path, job: Job) -> None:
    """Makes the directory this job's, or raises if it holds other embeddings."""
    progress = directory / "progress"
    progress.mkdir(parents=True, exist_ok=True)
    if not any(progress.glob("*.job.json")) and (directory / records.MANIFEST).exists():
        raise ValueError(f"{directory} holds finished embeddings, to which nothing can be added")
    for path in sorted(progress.glob("*.job.json")):
        other = json.loads(path.read_text())
        # Splits of one directory differ in source and shards, but not in what a reader relies on.
        shared = ("format", "encoder", "image_size") if other["split"] != job["split"] else job
        if lines := records.differences({key: other[key] for key in shared},
                                        {key: job[key] for key in shared}):  # fmt: skip
            raise ValueError(
                f"{directory} holds other embeddings; choose another directory or delete it "
                "(there != requested):\n  " + "\n  ".join(lines)
            )
    records.write_json(progress / f"{job['split']}.job.json", job)


def _finished(directory: Path, job: Job, shard: int) -> dict[str, Any] | None:
    """What was counted while writing a shard, or None if it is not (wholly) there."""
    name = records.shard_name(job["split"], shard, job["num_shards"])
    counts, file = directory / "progress" / f"{name}.json", directory / name
    if not counts.exists() or not file.exists():
        return None
    result = json.loads(counts.read_text())
    return result if file.stat().st_size == result["bytes"] else None


def _embed_shard(
    source: Source, encoder: TextEncoder, directory: Path, job: Job, shard: int, bar: tqdm
) -> None:
    name = records.shard_name(job["split"], shard, job["num_shards"])
    dropped: Counter[str] = Counter()
    states_of: dict[str, np.ndarray] = {}
    examples = 0
    for stale in directory.glob(f"{name}.*.tmp"):  # of a process that was killed
        stale.unlink()
    with records.record_writer(directory / name) as writer:
        for chunk in _chunks(source.examples_of_shard(shard, job["num_shards"])):
            usable, tokens_of = _prepare(chunk, encoder, job["image_size"], dropped, states_of)
            encoded = encoder.encode_tokens(list(tokens_of.values()), bar.update)
            for caption, states in zip(tokens_of, encoded, strict=True):
                states_of[caption] = states.astype(ml_dtypes.bfloat16)
            for example, png in usable:
                states = states_of[example.caption]
                writer.write(
                    records.serialize_record(Record(example.id, example.caption, png, states))
                )
            examples += len(usable)
            bar.update(len(chunk) - len(tokens_of))
    # Counts after the shard: where they are, the shard is whole.
    records.write_json(
        directory / "progress" / f"{name}.json",
        {
            "examples": examples,
            "captions": len(states_of),
            "dropped": dict(dropped),
            "bytes": (directory / name).stat().st_size,
            "sha256": _sha256(directory / name),
        },
    )


def _prepare(
    chunk: list[Example],
    encoder: TextEncoder,
    image_size: int,
    dropped: Counter[str],
    known: dict[str, np.ndarray],
) -> tuple[list[tuple[Example, bytes]], dict[str, np.ndarray]]:
    """Usable examples with their PNGs, and the tokens of captions that are not yet known."""
    usable: list[tuple[Example, bytes]] = []
    tokens_of: dict[str, np.ndarray] = {}
    for example in chunk:
        caption = example.caption
        try:
            if not caption.strip():
                raise _UnusableError("empty caption")
            png = _png(example.image, image_size)
            if caption not in known and caption not in tokens_of:
                tokens_of[caption] = encoder.tokenize([caption])[0]
        except CaptionTooLongError:
            dropped[f"caption of more than {encoder.max_length} tokens"] += 1
        except _UnusableError as error:
            dropped[str(error)] += 1
        else:
            usable.append((example, png))
    return usable, tokens_of


class _UnusableError(Exception):
    """Why an example is left out."""


def _png(image: np.ndarray | None, size: int) -> bytes:
    if image is None:
        raise _UnusableError("undecodable picture")
    if image.dtype != np.uint8 or image.shape != (size, size, 3):
        raise _UnusableError(
            f"picture is {image.dtype} {list(image.shape)}, not uint8 {[size, size, 3]}"
        )
    buffer = io.BytesIO()
    # Level 1: PNG is lossless at any level, and higher ones cost more time than the encoder.
    Image.fromarray(image).save(buffer, "PNG", compress_level=1)
    return buffer.getvalue()


def _write_manifest(directory: Path, job: Job) -> Manifest | None:
    """Adds the split to the manifest if all its shards are there."""
    split, num_shards = job["split"], job["num_shards"]
    finished = [_finished(directory, job, shard) for shard in range(num_shards)]
    counts = [shard for shard in finished if shard is not None]
    if len(counts) < num_shards:
        return None
    examples = sum(shard["examples"] for shard in counts)
    dropped = sum((Counter(shard["dropped"]) for shard in counts), Counter())
    if not examples:
        raise ValueError(f"no example of split {split!r} could be used; dropped: {dict(dropped)}")
    path = directory / records.MANIFEST
    old = records.load_manifest(directory) if path.exists() else {"source": {}, "splits": {}}
    entry = {
        "shards": [records.shard_name(split, shard, num_shards) for shard in range(num_shards)],
        "examples": examples,
        "bytes": sum(shard["bytes"] for shard in counts),
        "captions": sum(shard["captions"] for shard in counts),
        "dropped": dict(dropped),
        **{f"shard_{key}": [s[key] for s in counts] for key in ("examples", "bytes", "sha256")},
    }
    manifest: Manifest = {
        **{key: job[key] for key in ("format", "encoder", "image_size")},
        "source": {**old["source"], split: job["source"]},
        "splits": {**old["splits"], split: entry},
    }
    manifest["fingerprint"] = records.manifest_fingerprint(manifest)
    if manifest != old:
        records.write_json(path, manifest)
    return manifest


def _chunks(examples: Iterable[Example]) -> Iterator[list[Example]]:
    iterator = iter(examples)
    while chunk := list(islice(iterator, CHUNK)):
        yield chunk


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
