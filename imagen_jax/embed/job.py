"""The embedding job: its directory, how processes share it, and its manifest.

A frozen encoder gives the same states in every epoch, so they are computed before training. The job
writes shard after shard; each appears whole under its name or not at all. Run again after an
interruption, it keeps the shards that are done and recomputes the others, with the same bytes.
The manifest is written last, by whichever process finds all shards there.
"""

from __future__ import annotations

import hashlib
import json
import operator
import re
import socket
import time
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from tqdm import tqdm

from imagen_jax.data import records
from imagen_jax.data.choices import FITS, LONG_CAPTIONS, STATES
from imagen_jax.data.records import Manifest
from imagen_jax.data.sources import Source
from imagen_jax.embed.shard import Counts, Handling, write_shard
from imagen_jax.errors import UserError
from imagen_jax.files import differences, write_json
from imagen_jax.text.encoder import TextEncoder

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
    states: str = "bfloat16",
    fit: str = "exact",
    long_captions: str = "drop",
) -> Manifest | None:
    """Writes one split of an embedding directory (layout: `imagen_jax.data.records`).

    Examples that cannot be used are left out, counted by reason in the manifest and listed in a
    file beside their shard: an empty caption, one with too many tokens, an image that is missing,
    undecodable, too small or of another size, and what a source gives up of damaged files. What is
    changed is counted, too.

    Args:
      source: captioned images.
      encoder: frozen text encoder.
      output_dir: made if it does not exist. Further splits may be added later, with the same
        encoder and image size.
      split: name of the split, such as "train".
      image_size: side of the images in pixels.
      num_shards: files to divide the split into.
      shards: those of them that this process writes, for dividing the job over hosts; None for
        all.
      states: how token states are stored: "bfloat16", or "int8" with a scale for each token.
      fit: "exact" leaves out images of another size, "crop" reduces larger ones and crops them to
        the middle.
      long_captions: "drop" leaves out captions with too many tokens, "truncate" cuts them.

    Returns:
      The manifest, or None if other processes have shards of this split to finish.

    Raises:
      UserError: the directory holds embeddings of another encoder, source or layout (the message
        shows the differences), a shard is out of range, the source cannot be divided into so many,
        or no example could be used.
    """
    if num_shards < 1 or image_size < 1:
        raise UserError(
            f"num_shards and image_size must be at least 1, got {num_shards} and {image_size}"
        )
    for name, value, choices in (
        ("states", states, STATES),
        ("fit", fit, FITS),
        ("long_captions", long_captions, LONG_CAPTIONS),
    ):
        if value not in choices:
            raise UserError(f"{name} is {value!r}; choices: {', '.join(choices)}")
    if not re.fullmatch(r"\w+", split):
        raise UserError(
            f"split is {split!r}; it must be of letters, digits and _, such as train or validation"
        )
    known = operator.length_hint(source)
    if 0 < known < num_shards:
        raise UserError(f"count must be at least num_shards = {num_shards}, got {known}")
    mine = list(range(num_shards) if shards is None else shards)
    if outside := [shard for shard in mine if not 0 <= shard < num_shards]:
        raise UserError(f"shards {outside} are not in 0..{num_shards - 1}")
    source.examples_of_shard(0, num_shards)  # an error now, if they cannot be so many
    directory = Path(output_dir)
    job: Job = {
        "format": records.FORMAT,
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
        "split": split,
        "num_shards": num_shards,
        "source": json.loads(json.dumps(source.describe())),
    }
    _claim(directory, job)
    todo = [shard for shard in mine if _finished(directory, job, shard) is None]
    # Of a source that does not know how many examples it has, the bar has no end.
    total = round(known * len(todo) / num_shards) or None
    handling = Handling(image_size, fit, long_captions)
    with tqdm(total=total, desc=f"embed {split}", unit=" captions", disable=not todo) as bar:
        for shard in todo:
            name = records.shard_name(split, shard, num_shards)
            started = time.monotonic()
            counts = write_shard(
                source, encoder, directory / name, shard, num_shards, handling, states, bar
            )
            _log(directory, name, counts, time.monotonic() - started)
            # Counts after the shard: where they are, the shard is whole.
            write_json(
                directory / "progress" / f"{name}.json",
                {
                    **vars(counts),
                    "bytes": (directory / name).stat().st_size,
                    "sha256": _sha256(directory / name),
                },
            )
    return _write_manifest(directory, job)


def _claim(directory: Path, job: Job) -> None:
    """Makes the directory this job's, or raises if it holds other embeddings."""
    progress = directory / "progress"
    progress.mkdir(parents=True, exist_ok=True)
    if not any(progress.glob("*.job.json")) and (directory / records.MANIFEST).exists():
        raise UserError(f"{directory} holds finished embeddings, to which nothing can be added")
    for path in sorted(progress.glob("*.job.json")):
        other = json.loads(path.read_text())
        # Splits of one directory differ in source and shards, but not in what a reader relies on.
        shared = (
            ("format", "encoder", "states", "image_size") if other["split"] != job["split"] else job
        )
        if lines := differences({key: other[key] for key in shared},
                                        {key: job[key] for key in shared}):  # fmt: skip
            raise UserError(
                f"{directory} holds other embeddings; choose another directory or delete it "
                "(there != requested):\n  " + "\n  ".join(lines)
            )
    write_json(progress / f"{job['split']}.job.json", job)


def _finished(directory: Path, job: Job, shard: int) -> dict[str, Any] | None:
    """What was counted while writing a shard, or None if it is not (wholly) there."""
    name = records.shard_name(job["split"], shard, job["num_shards"])
    counts, file = directory / "progress" / f"{name}.json", directory / name
    if not counts.exists():
        return None
    result = json.loads(counts.read_text())
    sizes = {file: result["bytes"],
             records.offsets_path(file): records.offsets_size(result["examples"])}  # fmt: skip
    whole = all(path.exists() and path.stat().st_size == size for path, size in sizes.items())
    return result if whole else None


def _log(directory: Path, name: str, counts: Counts, seconds: float) -> None:
    """Adds a line to the log of this host."""
    line = {
        "time": time.strftime("%Y-%m-%d %H:%M:%S"),
        "shard": name,
        "seconds": round(seconds, 3),
        "captions_per_second": round(counts.captions / seconds, 1),
        **vars(counts),
    }
    with (directory / "progress" / f"{socket.gethostname()}.log").open("a") as file:
        file.write(json.dumps(line) + "\n")


def _write_manifest(directory: Path, job: Job) -> Manifest | None:
    """Adds the split to the manifest if all its shards are there."""
    split, num_shards = job["split"], job["num_shards"]
    finished = [_finished(directory, job, shard) for shard in range(num_shards)]
    counts = [shard for shard in finished if shard is not None]
    if len(counts) < num_shards:
        return None
    examples = sum(shard["examples"] for shard in counts)
    dropped, changed, sides = (
        dict(sum((Counter(shard[key]) for shard in counts), Counter[str]()))
        for key in ("dropped", "changed", "sides")
    )
    if not examples:
        raise UserError(f"no example of split {split!r} could be used; dropped: {dropped}")
    path = directory / records.MANIFEST
    old = records.load_manifest(directory) if path.exists() else {"source": {}, "splits": {}}
    entry = {
        "shards": [records.shard_name(split, shard, num_shards) for shard in range(num_shards)],
        "examples": examples,
        "bytes": sum(shard["bytes"] for shard in counts),
        "captions": sum(shard["captions"] for shard in counts),
        "tokens": sum(shard["tokens"] for shard in counts),
        "dropped": dropped,
        "changed": changed,
        "sides": sides,
        **{f"shard_{key}": [s[key] for s in counts] for key in ("examples", "bytes", "sha256")},
    }
    manifest: Manifest = {
        **{key: job[key] for key in ("format", "encoder", "states", "image_size")},
        "source": {**old["source"], split: job["source"]},
        "splits": {**old["splits"], split: entry},
    }
    manifest["fingerprint"] = records.manifest_fingerprint(manifest)
    if manifest != old:
        write_json(path, manifest)
    return manifest


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
