"""The embedding job: its directory, how processes share it, and its manifest.

A frozen encoder gives the same states in every epoch, so they are computed before training. The job
writes shard after shard; each appears whole under its name or not at all. Run again after an
interruption, it keeps the shards that are done and recomputes the others, with the same bytes.
The manifest is written last, by whichever process finds all shards there.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import operator
import os
import re
import socket
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from imagen_jax.data import records
from imagen_jax.data.choices import CAPTIONS, FITS, LONG_CAPTIONS, STATES
from imagen_jax.data.corpora import open_corpus
from imagen_jax.data.manifest import FORMAT, MANIFEST, Manifest, load_manifest, manifest_fingerprint
from imagen_jax.data.sources import Source
from imagen_jax.embed.outcome import nothing_kept
from imagen_jax.embed.prepare import Handling
from imagen_jax.embed.shard import Counts, write_shards
from imagen_jax.errors import UserError
from imagen_jax.files import (
    differences,
    fingerprint,
    in_turn,
    only_writer,
    output_folder,
    write_json,
)
from imagen_jax.paths import append, has_size, names_in
from imagen_jax.progress import progress
from imagen_jax.text.encoder import TextEncoder, load_encoder

Job = dict[str, Any]
DEFAULT_SIZE = 64
SHARD_EXAMPLES = 10_000
_PARALLEL_QUESTIONS = 32


def embed(
    corpus: Source | str | os.PathLike[str],
    output: str | os.PathLike[str],
    *,
    encoder: TextEncoder | str = "minilm",
    image_size: int | None = None,
    fit: str | None = None,
    split: str = "train",
    num_shards: int | None = None,
    shards: Iterable[int] | None = None,
    states: str = STATES[0],
    long_captions: str = LONG_CAPTIONS[0],
    captions: str = CAPTIONS[0],
    max_tokens: int | None = None,
) -> Manifest | None:
    """Writes one split of an embedding directory (layout: `imagen_jax.data.records`).

    Examples that cannot be used are left out, counted by reason in the manifest and listed in a
    file beside their shard: an empty caption, one with too many tokens, an image that is missing,
    damaged, too small or of another size, and what a corpus gives up of damaged files. What is
    changed is counted, too.

    Example:
      >>> from imagen_jax import embed
      >>> embed("photos", "embeddings", image_size=32, fit="crop")["splits"]["train"]["examples"]
      12

    Args:
      corpus: captioned images: what `open_corpus` opens, or any `Source`.
      output: the directory; made if it does not exist. Further splits may be added later, with the
        same encoder and image size.
      encoder: frozen text encoder, or the name of one.
      image_size: side of the images in pixels; None is DEFAULT_SIZE with fit "crop".
      fit: "exact" leaves out images of another size, "crop" reduces larger ones and crops them to
        the middle; None is "exact" where a size is given.
      split: name of the split, such as "train".
      num_shards: files to divide the split into; None is one for SHARD_EXAMPLES examples, or for
        every file of a corpus of tars or TFRecords.
      shards: those of them that this process writes, for dividing the job over hosts; None for
        all.
      states: storage of token states: "bfloat16", or "int8" with a scale for each token.
      long_captions: "drop" leaves out captions with too many tokens, "truncate" cuts them.
      captions: "separate" makes every caption of an image an example of its own; "drawn" keeps
        them together, and training draws one of them in every epoch.
      max_tokens: most tokens of a caption, such as a config's text.max_length; None is the
        encoder's.

    Returns:
      The manifest, or None if other processes have shards of this split to finish.

    Raises:
      UserError: the directory holds embeddings of another encoder, corpus or layout (the message
        shows the differences), a shard is out of range, the corpus cannot be divided into so many,
        or no example could be used, with the commonest reason and what mends it.
    """
    if isinstance(corpus, str | os.PathLike):
        corpus = open_corpus(corpus)
    if fit is None:
        fit = "crop" if image_size is None else "exact"
    image_size = DEFAULT_SIZE if image_size is None else image_size
    num_shards = default_shards(corpus) if num_shards is None else num_shards
    if num_shards < 1 or image_size < 1 or (max_tokens is not None and max_tokens < 2):
        raise UserError(
            f"num_shards and image_size must be at least 1, and max_tokens 2; got {num_shards}, "
            f"{image_size} and {max_tokens}"
        )
    for name, value, choices in (
        ("states", states, STATES),
        ("fit", fit, FITS),
        ("long_captions", long_captions, LONG_CAPTIONS),
        ("captions", captions, CAPTIONS),
    ):
        if value not in choices:
            raise UserError(f"{name} is {value!r}; choices: {', '.join(choices)}")
    if not re.fullmatch(r"\w+", split):
        raise UserError(
            f"split is {split!r}; it must be of letters, digits and _, such as train or validation"
        )
    known = operator.length_hint(corpus)
    if 0 < known < num_shards:
        raise UserError(
            f"{num_shards} shards of {known} examples: choose at most {known} shards (--shards)"
        )
    mine = list(range(num_shards) if shards is None else shards)
    if outside := [shard for shard in mine if not 0 <= shard < num_shards]:
        raise UserError(f"shards {outside} are not in 0..{num_shards - 1}")
    corpus.examples_of_shard(0, num_shards)  # an error now, if they cannot be so many
    if isinstance(encoder, str):
        encoder = load_encoder(encoder)
    directory = output_folder(output)
    job: Job = {
        "format": FORMAT,
        "encoder": {
            "name": encoder.name,
            "fingerprint": encoder.fingerprint,
            "width": encoder.width,
            "max_length": encoder.max_length,
            "dtype": encoder.dtype,
        },
        "states": states,
        "image_size": image_size,
        "fit": fit,
        "long_captions": long_captions,
        "captions": captions,
        "max_tokens": max_tokens,
        "split": split,
        "num_shards": num_shards,
        "source": json.loads(json.dumps(corpus.describe())),
    }
    notes = directory / "progress"
    notes.mkdir(parents=True, exist_ok=True)
    lock = notes / f"{split}-{min(mine, default=0):05d}"  # of processes that share the shards
    with only_writer(lock, "imagen embed"):
        with in_turn(notes):
            _claim(directory, job, lock)
        _write(corpus, encoder, directory, job, mine, known)
    return _write_manifest(directory, job)


def _write(
    corpus: Source,
    encoder: TextEncoder,
    directory: Path,
    job: Job,
    mine: Iterable[int],
    known: int,
) -> None:
    """Writes those of the shards `mine` that are not finished; `known`: examples of the corpus."""
    split, num_shards = job["split"], job["num_shards"]
    mine = list(mine)
    found = zip(mine, _all_finished(directory, job, mine), strict=True)
    todo = [shard for shard, counts in found if counts is None]
    _sweep(directory, job, todo)
    # Of a corpus that does not know how many examples it has, the bar has no end.
    total = round(known * len(todo) / num_shards) or None
    handling = Handling(**{field.name: job[field.name] for field in dataclasses.fields(Handling)})
    paths = {shard: directory / records.shard_name(split, shard, num_shards) for shard in todo}
    started = time.monotonic()
    with progress(total, f"embed {split}", "captions", disable=not todo) as bar:
        for shard, counts, written in write_shards(
            corpus, encoder, paths, num_shards, handling, job["states"], bar
        ):
            path = paths[shard]
            _log(directory, path.name, counts, time.monotonic() - started)
            started = time.monotonic()
            # Counts after the shard: where they are, the shard is whole.
            write_json(
                directory / "progress" / f"{path.name}.json",
                {
                    **vars(counts),
                    "bytes": written.offsets[-1],
                    "sha256": written.sha256,
                    "job": fingerprint(job),
                },
            )


def default_shards(corpus: Source) -> int:
    """Shards of a corpus for which no number was asked: see `embed`."""
    if hasattr(corpus, "default_shards"):
        return int(corpus.default_shards())
    return max(1, -(-operator.length_hint(corpus) // SHARD_EXAMPLES))


def _claim(directory: Path, job: Job, mine: Path) -> None:
    """Makes the directory this job's, or raises if it holds other embeddings.

    A job of which no shard was finished has no claim once it has ended: its options may have been
    the mistake.

    Args:
      directory: the output.
      job: the job.
      mine: lock that this process holds.
    """
    notes = directory / "progress"
    notes.mkdir(parents=True, exist_ok=True)
    jobs = {path: json.loads(path.read_bytes()) for path in sorted(notes.glob("*.job.json"))}
    if not jobs and (directory / MANIFEST).exists():
        raise UserError(f"{directory} holds finished embeddings, to which nothing can be added")
    for path, other in jobs.items():
        # Splits of one directory differ in corpus and shards, but not in what a reader relies on.
        shared = (
            ("format", "encoder", "states", "image_size") if other["split"] != job["split"] else job
        )
        lines = differences(
            {key: other.get(key) for key in shared}, {key: job[key] for key in shared}
        )
        if not lines:
            continue
        if any(notes.glob(f"{other['split']}-*-of-*.json")):
            raise UserError(
                f"{directory} holds other embeddings; choose another directory or delete it "
                "(there != requested): " + "; ".join(lines)
            )
        for lock in sorted(notes.glob(f"{other['split']}-{'[0-9]' * 5}")):
            if lock != mine:  # which this process holds
                with only_writer(lock, "imagen embed"):
                    pass  # or it has begun, and is told to be at work there
        path.unlink()
    write_json(notes / f"{job['split']}.job.json", job)


def _sweep(directory: Path, job: Job, todo: Iterable[int]) -> None:
    """Removes what killed processes left of these shards, and lists of jobs without claim."""
    split, num_shards = job["split"], job["num_shards"]
    stems = {Path(records.shard_name(split, shard, num_shards)).stem for shard in todo}
    for name in names_in(directory):
        other_job = re.fullmatch(rf"{split}-\d+-of-(\d+)\.dropped", name)
        if (name.endswith(".tmp") and name.partition(".")[0] in stems) or (
            other_job and int(other_job.group(1)) != num_shards
        ):
            (directory / name).unlink()


def _all_finished(
    directory: Path, job: Job, shards: Iterable[int]
) -> Iterator[dict[str, Any] | None]:
    """Return what _finished does of each shard; a bucket is asked for many at once."""
    with ThreadPoolExecutor(_PARALLEL_QUESTIONS) as pool:
        yield from pool.map(functools.partial(_finished, directory, job), shards)


def _finished(directory: Path, job: Job, shard: int) -> dict[str, Any] | None:
    """Counts of a written shard, or None if it is not complete."""
    name = records.shard_name(job["split"], shard, job["num_shards"])
    counts, file = directory / "progress" / f"{name}.json", directory / name
    try:
        result = json.loads(counts.read_bytes())
        sizes = {file: result["bytes"],
                 records.offsets_path(file): records.offsets_size(result["examples"])}  # fmt: skip
        whole = all(has_size(path, size) for path, size in sizes.items())
    except FileNotFoundError:
        return None
    return result if whole and result["job"] == fingerprint(job) else None


def _log(directory: Path, name: str, counts: Counts, seconds: float) -> None:
    """Adds a line to the log of this host."""
    line = {
        "time": time.strftime("%Y-%m-%d %H:%M:%S"),
        "shard": name,
        "seconds": round(seconds, 3),
        "captions_per_second": round(counts.captions / seconds, 1),
        **vars(counts),
    }
    append(directory / "progress" / f"{socket.gethostname()}.log", json.dumps(line) + "\n")


def _write_manifest(directory: Path, job: Job) -> Manifest | None:
    """Adds the split to the manifest if all its shards are there."""
    split, num_shards = job["split"], job["num_shards"]
    counts = []
    for finished in _all_finished(directory, job, range(num_shards)):
        if finished is None:
            return None
        counts.append(finished)
    examples = sum(shard["examples"] for shard in counts)
    dropped, changed, sides = (
        dict(sum((Counter(shard[key]) for shard in counts), Counter[str]()))
        for key in ("dropped", "changed", "sides")
    )
    if not examples:
        message = nothing_kept(directory, split, num_shards, dropped)
        _forget(directory, job)
        raise UserError(message)
    path = directory / MANIFEST
    entry = {
        "shards": [records.shard_name(split, shard, num_shards) for shard in range(num_shards)],
        "examples": examples,
        "bytes": sum(shard["bytes"] for shard in counts),
        "captions": sum(shard["captions"] for shard in counts),
        "tokens": sum(shard["tokens"] for shard in counts),
        "longest": max(shard["longest"] for shard in counts),
        "dropped": dropped,
        "changed": changed,
        "sides": sides,
        **{f"shard_{key}": [s[key] for s in counts] for key in ("examples", "bytes", "sha256")},
    }
    with in_turn(directory / "progress"):  # another split may be finished at the same moment
        old = load_manifest(directory) if path.exists() else {"source": {}, "splits": {}}
        manifest: Manifest = {
            **{key: job[key] for key in ("format", "encoder", "states", "image_size")},
            "source": {**old["source"], split: job["source"]},
            "splits": {**old["splits"], split: entry},
        }
        manifest["fingerprint"] = manifest_fingerprint(manifest)
        if manifest != old:
            write_json(path, manifest)
    return manifest


def _forget(directory: Path, job: Job) -> None:
    """Removes a job that kept nothing, but for the lists of what it dropped."""
    for shard in range(job["num_shards"]):
        name = records.shard_name(job["split"], shard, job["num_shards"])
        for path in (directory / name, records.offsets_path(directory / name),
                     directory / "progress" / f"{name}.json"):  # fmt: skip
            path.unlink(missing_ok=True)
    (directory / "progress" / f"{job['split']}.job.json").unlink(missing_ok=True)
