"""The manifest of an embedding directory: read, and checked against the encoder and the shards.

Reading and checking manifests needs no TensorFlow.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from imagen_jax import files
from imagen_jax.buckets import BucketPath
from imagen_jax.data.manifest_form import fault_of
from imagen_jax.data.records import offsets_path, offsets_size
from imagen_jax.errors import MachineError, UserError
from imagen_jax.paths import as_path

FORMAT = 2
MANIFEST = "manifest.json"
_PARALLEL_CHECKS = 32

Manifest = dict[str, Any]
"""{"format", "encoder": {"name", "fingerprint", "width", "max_length"}, "source": {split: {...}},
"states", "image_size", "splits": {split: {"shards", "examples", "bytes", "captions", "tokens",
"longest", "dropped", "changed", "sides", "shard_examples", "shard_bytes", "shard_sha256"}},
"fingerprint"}"""


def load_manifest(directory: str | Path, check_files: bool = True) -> Manifest:
    """Reads and checks the manifest of an embedding directory.

    Args:
      directory: output folder of `imagen embed`.
      check_files: check the sizes of all shards too, as `check_shards` does.

    Raises:
      UserError: no such directory, or embedding has not finished; not a manifest of this format, or
        altered after it was written; a shard is missing or has another size than it says.
    """
    directory = as_path(directory)
    if not directory.is_dir():
        raise UserError(f"no embedding directory {directory}; `imagen embed` makes one")
    path = directory / MANIFEST
    if not path.exists():
        raise UserError(
            f"{directory} has no {MANIFEST}: embedding has not finished there; run the same "
            "`imagen embed` command again, it resumes where it stopped"
        )
    manifest = files.read_json(path, "manifest of embeddings")
    found = manifest.get("format")
    if found != FORMAT:
        raise UserError(
            f"{path} has format {found!r}, this version reads format {FORMAT}; embed the data "
            "again into a new directory"
        )
    if manifest.get("fingerprint") != manifest_fingerprint(manifest):
        raise UserError(f"{path} was changed after it was written: its fingerprint does not match")
    if fault := fault_of(manifest):
        raise UserError(f"{path} is no manifest of embeddings: {fault}")
    if check_files:
        for split in manifest["splits"]:
            check_shards(directory, manifest, split)
    return manifest


def check_shards(directory: str | Path, manifest: Manifest, split: str) -> None:
    """Checks that the shards of a split are there and as large as the manifest says.

    Two questions to the storage a shard, asked in parallel.

    Raises:
      UserError: one is missing or has another size; names it.
      MachineError: one may not be read.
    """
    entry = manifest["splits"][split]
    shards = list(zip(entry["shards"], entry["shard_bytes"], entry["shard_examples"], strict=True))

    def check(part: int) -> None:
        for name, size, examples in shards[part::_PARALLEL_CHECKS]:
            _check_size(as_path(directory) / name, size)
            _check_size(offsets_path(as_path(directory) / name), offsets_size(examples))

    with ThreadPoolExecutor(_PARALLEL_CHECKS) as pool:
        list(pool.map(check, range(_PARALLEL_CHECKS)))


def _check_size(path: Path, size: int) -> None:
    try:
        if isinstance(path, BucketPath):
            if not path.has_size(size):
                raise UserError(f"{path} has another size than the {size} bytes of {MANIFEST}")
            return
        found = path.stat().st_size
    except FileNotFoundError:
        raise UserError(f"{path} is missing, though {MANIFEST} beside it lists it") from None
    if found != size:
        raise UserError(f"{path} has {found} bytes; by {MANIFEST} it has {size}")
    if not os.access(path, os.R_OK):
        raise MachineError(f"{path} may not be read")


def manifest_fingerprint(manifest: Mapping[str, Any]) -> str:
    """sha256 (hex) over all of a manifest but its own fingerprint; covers the shards' hashes."""
    return files.fingerprint({k: v for k, v in manifest.items() if k != "fingerprint"})


def check_encoder(
    manifest: Manifest,
    name: str | None = None,
    width: int | None = None,
    fingerprint: str | None = None,
) -> None:
    """Checks that embeddings come from the encoder that the caller has.

    Args:
      manifest: from `load_manifest`.
      name: name of the encoder; None skips it, and so for the others.
      width: channels of the token states.
      fingerprint: sha256 over the encoder's weights and tokenizer.

    Raises:
      UserError: they differ; the message shows what is recorded and what was expected.
    """
    expected = {"name": name, "width": width, "fingerprint": fingerprint}
    expected = {key: value for key, value in expected.items() if value is not None}
    recorded = {key: manifest["encoder"].get(key) for key in expected}
    if lines := files.differences(recorded, expected):
        raise UserError(
            "the embeddings were made by another text encoder (recorded != expected): "
            + "; ".join(lines)
        )
