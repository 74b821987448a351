"""The embedding directory: what a record and the manifest hold, how they are written and checked.

  manifest.json                     written last: its presence means that the directory is complete
  train-00000-of-00008.tfrecord     TFRecords of tf.train.Example
      image      PNG or JPEG, RGB, 8 bit
      caption    UTF-8; of an image whose captions are drawn, all of them
      id         UTF-8
      emb        token states [l, d] without padding: bfloat16, little endian, or int8; of several
                 captions one after another
      emb_scale  only with int8: float32 [l], by which the states of each token are multiplied
      emb_len    l, of every caption
  train-00000-of-00008.offsets      where each record begins, and the shard's size: uint64, little
                                    endian; by these any record is read without those before it
  train-00000-of-00008.dropped      what was left out of a shard and why, in JSON lines; absent
                                    if nothing was
  progress/                         how far an embedding job is; nothing reads it afterwards

Reading and checking manifests needs no TensorFlow.
"""

from __future__ import annotations

import functools
import itertools
import os
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import ml_dtypes
import numpy as np

from imagen_jax import files
from imagen_jax.data.manifest_form import fault_of
from imagen_jax.errors import MachineError, UserError
from imagen_jax.extras import import_tensorflow, require

FORMAT = 2
MANIFEST = "manifest.json"
STATES_DTYPE = np.dtype(ml_dtypes.bfloat16).newbyteorder("<")
OFFSETS_DTYPE = np.dtype("<u8")
_PARALLEL_CHECKS = 32
FRAME = 16
"""Bytes that TFRecord adds to a record: its length, and two checksums."""
LENGTH = 8
"""Of these, bytes of the length, which come first."""

Manifest = dict[str, Any]
"""{"format", "encoder": {"name", "fingerprint", "width", "max_length"}, "source": {split: {...}},
"states", "image_size", "splits": {split: {"shards", "examples", "bytes", "captions", "tokens",
"longest", "dropped", "changed", "sides", "shard_examples", "shard_bytes", "shard_sha256"}},
"fingerprint"}"""


@dataclass(frozen=True)
class Record:
    """One example of an embedding shard.

    Attributes:
      id: name of the example in its source.
      captions: its texts; more than one where every epoch draws one of them.
      image: encoded RGB image, PNG or JPEG.
      states: [l, d] bfloat16 token states of every caption.
    """

    id: str
    captions: tuple[str, ...]
    image: bytes
    states: tuple[np.ndarray, ...]


def shard_name(split: str, shard: int, num_shards: int) -> str:
    """File name of one shard, such as train-00000-of-00008.tfrecord."""
    return f"{split}-{shard:05d}-of-{num_shards:05d}.tfrecord"


def quantise(states: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Token states as whole numbers with one scale for each token.

    Args:
      states: [l, d] of any floating type.

    Returns:
      (int8 [l, d] in -127..127, float32 [l]) whose product is at most half a scale off the states.
    """
    states = states.astype(np.float32)
    scale = np.abs(states).max(axis=1) / 127
    safe = np.where(scale > 0, scale, 1)  # a state of zeros stays one
    return np.rint(states / safe[:, None]).astype(np.int8), scale.astype(np.float32)


def serialize_record(record: Record, states: str = "bfloat16") -> bytes:
    """A tf.train.Example, byte for byte the same for the same record.

    Args:
      record: the example.
      states: storage of its token states, one of choices.STATES.
    """
    train = tensorflow().train

    def of_bytes(*values: bytes) -> Any:
        return train.Feature(bytes_list=train.BytesList(value=values))

    lengths = [len(of_caption) for of_caption in record.states]
    all_states = np.concatenate(record.states)
    feature = {
        "image": of_bytes(record.image),
        "caption": of_bytes(*(caption.encode() for caption in record.captions)),
        "id": of_bytes(record.id.encode()),
        "emb_len": train.Feature(int64_list=train.Int64List(value=lengths)),
    }
    if states == "int8":
        numbers, scale = quantise(all_states)
        feature["emb"] = of_bytes(numbers.tobytes())
        feature["emb_scale"] = of_bytes(scale.astype("<f4").tobytes())
    else:
        feature["emb"] = of_bytes(all_states.astype(STATES_DTYPE).tobytes())
    example = train.Example(features=train.Features(feature=feature))
    return example.SerializeToString(deterministic=True)


def parse_record(serialized: bytes) -> Record:
    """Reads a serialized tf.train.Example back.

    Raises:
      UserError: it is none, or not of this form.
    """
    from google.protobuf.message import DecodeError

    try:
        return _parse_record(serialized)
    except (DecodeError, IndexError, ValueError) as error:
        raise UserError(f"no example with an image, a caption and token states: {error}") from error


def _parse_record(serialized: bytes) -> Record:
    feature = tensorflow().train.Example.FromString(serialized).features.feature
    stored, lengths = feature["emb"].bytes_list.value[0], feature["emb_len"].int64_list.value
    captions = tuple(caption.decode() for caption in feature["caption"].bytes_list.value)
    if len(captions) != len(lengths) or min(lengths) < 1:
        raise ValueError(f"{len(captions)} captions of {list(lengths)} tokens")
    if "emb_scale" in feature:
        scale = np.frombuffer(feature["emb_scale"].bytes_list.value[0], "<f4")
        states = np.frombuffer(stored, np.int8).reshape(sum(lengths), -1) * scale[:, None]
        states = states.astype(STATES_DTYPE)
    else:
        states = np.frombuffer(stored, STATES_DTYPE).reshape(sum(lengths), -1)
    return Record(
        id=feature["id"].bytes_list.value[0].decode(),
        captions=captions,
        image=feature["image"].bytes_list.value[0],
        states=tuple(np.split(states, np.cumsum(lengths)[:-1])),
    )


def read_records(path: str | Path) -> Iterator[Record]:
    """All records of one shard, in order.

    Raises:
      UserError: at the end, where a record is longer than the file.
    """
    sound, fault = sound_records(path)
    dataset = tensorflow().data.TFRecordDataset(str(path)).take(sound)
    for serialized in dataset.as_numpy_iterator():
        yield parse_record(serialized)
    if fault:
        raise UserError(f"{path}: {fault}")


class RecordWriter:
    """Writes serialized records to a TFRecord file, and remembers where each begins."""

    def __init__(self, writer: Any):
        self._writer = writer
        self.offsets = [0]

    def write(self, serialized: bytes) -> None:
        """Appends a record."""
        self._writer.write(serialized)
        self.offsets.append(self.offsets[-1] + len(serialized) + FRAME)


@contextmanager
def record_writer(path: str | Path) -> Iterator[RecordWriter]:
    """A writer of a shard; when the block ends without an exception, `path` exists complete."""
    with files.atomic_path(path) as temporary:
        with tensorflow().io.TFRecordWriter(str(temporary)) as file:
            writer = RecordWriter(file)
            yield writer
        # Offsets before the shard: where a shard is, they are.
        with files.atomic_path(offsets_path(path)) as temporary_offsets:
            temporary_offsets.write_bytes(np.array(writer.offsets, OFFSETS_DTYPE).tobytes())


def offsets_path(shard: str | Path) -> Path:
    """The file with the offsets of a shard's records."""
    return Path(shard).with_suffix(".offsets")


def offsets_size(examples: int) -> int:
    """Bytes of the file with the offsets of so many records."""
    return (examples + 1) * OFFSETS_DTYPE.itemsize


def read_offsets(shard: str | Path) -> np.ndarray:
    """Byte offsets of a shard's records, and last the shard's size."""
    return np.frombuffer(offsets_path(shard).read_bytes(), OFFSETS_DTYPE)


class DamagedRecordError(UserError):
    """A record is not what it should be.

    Attributes:
      fault: what is wrong with it.
    """

    def __init__(self, shard: str | Path, place: int, fault: str):
        super().__init__(f"{shard}: record {place} is damaged or unsuitable: {fault}")
        self.fault = fault


def locate_records(shard: str | Path, place: int, count: int = 1) -> int:
    """Byte offset of neighbouring records of a shard, each as long as the offsets say.

    TensorFlow takes memory for as many bytes as a record says that it has, and ends the process
    where there is none. The offsets are read alone: a shard may have very many.

    Args:
      shard: the shard.
      place: place of the first record in it.
      count: number of records.

    Raises:
      UserError: the offsets were cut, or are no places of records in the shard.
      DamagedRecordError: a record says that it has another length.
    """
    path, item = offsets_path(shard), OFFSETS_DTYPE.itemsize
    with path.open("rb", buffering=0) as file:
        found = os.pread(file.fileno(), (count + 1) * item, place * item)
    if len(found) < (count + 1) * item:
        raise UserError(f"{path} has no offset of record {place + len(found) // item}: it was cut")
    offsets = np.frombuffer(found, OFFSETS_DTYPE).tolist()
    with open(shard, "rb", buffering=0) as file:
        size = os.fstat(file.fileno()).st_size
        for number, (start, end) in enumerate(itertools.pairwise(offsets), place):
            if not start + FRAME <= end <= size:
                raise UserError(
                    f"{path} says that record {number} lies from byte {start} to byte {end} of a "
                    f"shard that has {size}"
                )
            length = int.from_bytes(os.pread(file.fileno(), LENGTH, start), "little")
            if length != end - start - FRAME:
                fault = (
                    f"at byte {start} it says that it has {length} bytes, and {path.name} that it "
                    f"has {end - start - FRAME}"
                )
                raise DamagedRecordError(shard, number, fault)
    return offsets[0]


def sound_records(path: str | Path) -> tuple[int, str]:
    """(number of records that end within a file of TFRecords, what is wrong with the next one).

    TensorFlow takes memory for as many bytes as a record says that it has, and ends the process
    where there is none.
    """
    at = number = 0
    with open(path, "rb", buffering=0) as file:
        size = os.fstat(file.fileno()).st_size
        while at < size:
            end = at + int.from_bytes(os.pread(file.fileno(), LENGTH, at), "little") + FRAME
            if end > size:
                return number, f"truncated record at byte {at}"
            at, number = end, number + 1
    return number, ""


def load_manifest(directory: str | Path, check_files: bool = True) -> Manifest:
    """Reads and checks the manifest of an embedding directory.

    Args:
      directory: output folder of `imagen embed`.
      check_files: check the sizes of all shards too, as `check_shards` does.

    Raises:
      UserError: no such directory, or embedding has not finished; not a manifest of this format, or
        altered after it was written; a shard is missing or has another size than it says.
    """
    directory = Path(directory)
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
            _check_size(Path(directory) / name, size)
            _check_size(offsets_path(Path(directory) / name), offsets_size(examples))

    with ThreadPoolExecutor(_PARALLEL_CHECKS) as pool:
        list(pool.map(check, range(_PARALLEL_CHECKS)))


def _check_size(path: Path, size: int) -> None:
    try:
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


@functools.cache  # it is asked for with every record
def tensorflow() -> ModuleType:
    """TensorFlow, which takes seconds to import."""
    require("train", "reading examples")
    return import_tensorflow()
