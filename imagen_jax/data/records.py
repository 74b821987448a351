"""The embedding directory, and its records: how they are written, found and read.

manifest.json                     written last: its presence means that the directory is complete;
                                  see manifest.py
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
"""

from __future__ import annotations

import functools
import hashlib
import itertools
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import ml_dtypes
import numpy as np

from imagen_jax import files
from imagen_jax.errors import UserError
from imagen_jax.extras import import_tensorflow, require
from imagen_jax.paths import as_path

STATES_DTYPE = np.dtype(ml_dtypes.bfloat16).newbyteorder("<")
OFFSETS_DTYPE = np.dtype("<u8")
FRAME = 16
"""Bytes that TFRecord adds to a record: its length, and two checksums."""
LENGTH = 8
"""Of these, bytes of the length, which come first."""


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
    """Writes serialized records to a TFRecord file, and remembers where each begins.

    Attributes:
      offsets: where each record begins, and last the file's size.
      sha256: hash (hex) of the file, once it is complete.
    """

    def __init__(self, writer: Any):
        self._writer = writer
        self.offsets = [0]
        self.sha256 = ""

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
        with temporary.open("rb") as written:
            writer.sha256 = hashlib.file_digest(written, "sha256").hexdigest()
        # Offsets before the shard: where a shard is, they are.
        with files.atomic_path(offsets_path(path)) as temporary_offsets:
            temporary_offsets.write_bytes(np.array(writer.offsets, OFFSETS_DTYPE).tobytes())


def offsets_path(shard: str | Path) -> Path:
    """The file with the offsets of a shard's records."""
    return as_path(shard).with_suffix(".offsets")


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


@functools.cache  # it is asked for with every record
def tensorflow() -> ModuleType:
    """TensorFlow, which takes seconds to import."""
    require("train", "reading examples")
    return import_tensorflow()
