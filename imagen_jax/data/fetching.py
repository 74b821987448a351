"""Records of shards in a bucket, fetched to this machine before TensorFlow reads them.

TensorFlow's own reader asks for one piece after another, a quarter of a mebibyte each. Here all
runs of records of a window are asked for at once, and lie one after another in a temporary file,
which is then read as a shard is: with its checksums.
"""

from __future__ import annotations

import itertools
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from imagen_jax.buckets import BucketPath, read_ranges
from imagen_jax.data.records import (
    FRAME,
    LENGTH,
    OFFSETS_DTYPE,
    DamagedRecordError,
    offsets_path,
)
from imagen_jax.errors import UserError

Run = tuple[BucketPath, int, int]
"""(shard, place of the first record in it, number of records)."""


class Fetched:
    """Files of fetched records, in a temporary folder that ends with this object."""

    def __init__(self) -> None:
        self._folder: tempfile.TemporaryDirectory[str] | None = None
        self._files = itertools.count()

    def fetch(self, runs: Sequence[Run]) -> tuple[Path, list[int]]:
        """Fetch runs of records.

        Returns:
          (file of all, byte in it where each run begins); `remove` it when it was read.

        Raises:
          UserError: the offsets of a shard were cut, or are no places of records in it.
          DamagedRecordError: a record says that it has another length.
          MachineError: the bucket cannot be reached.
        """
        item = OFFSETS_DTYPE.itemsize
        places = [_offsets(shard) for shard, _, _ in runs]
        parts = [
            (path, place * item, (place + count + 1) * item)
            for path, (_, place, count) in zip(places, runs, strict=True)
        ]
        found = read_ranges(parts)
        spans = []
        for (path, _, _), (shard, place, count), content in zip(parts, runs, found, strict=True):
            offsets = np.frombuffer(content[: len(content) // item * item], OFFSETS_DTYPE).tolist()
            if len(offsets) < count + 1:
                raise UserError(
                    f"{path} has no offset of record {place + len(offsets)}: it was cut"
                )
            if any(start + FRAME > end for start, end in itertools.pairwise(offsets)):
                raise UserError(f"{path} has offsets at record {place} that do not ascend")
            spans.append((shard, place, offsets))
        contents = read_ranges([(shard, offsets[0], offsets[-1]) for shard, _, offsets in spans])
        for span, content in zip(spans, contents, strict=True):
            _check(*span, content)
        file = self._file()
        with file.open("wb") as opened:
            opened.writelines(contents)
        return file, np.cumsum([0, *map(len, contents)])[:-1].tolist()

    def remove(self, file: str | Path) -> None:
        """Remove a file if it is one of `fetch`."""
        if self._folder is not None and str(Path(file).parent) == self._folder.name:
            Path(file).unlink(missing_ok=True)

    def _file(self) -> Path:
        if self._folder is None:
            self._folder = tempfile.TemporaryDirectory(prefix="imagen-jax-")
        return Path(self._folder.name, f"{next(self._files)}.tfrecord")


def _offsets(shard: BucketPath) -> BucketPath:
    path = offsets_path(shard)
    assert isinstance(path, BucketPath)
    return path


def _check(shard: BucketPath, place: int, offsets: Sequence[int], content: bytes) -> None:
    """Raise where records are not as long as the offsets say: TensorFlow would take memory for as
    many bytes as a record says that it has, and end the process where there is none."""
    if len(content) < offsets[-1] - offsets[0]:
        raise UserError(
            f"{offsets_path(shard)} says that records lie from byte {offsets[0]} to byte "
            f"{offsets[-1]} of a shard that ends at {offsets[0] + len(content)}"
        )
    for number, (start, end) in enumerate(itertools.pairwise(offsets), place):
        at = start - offsets[0]
        length = int.from_bytes(content[at : at + LENGTH], "little")
        if length != end - start - FRAME:
            raise DamagedRecordError(
                shard, number, f"at byte {start} it says that it has {length} bytes, and its "
                f"offsets that it has {end - start - FRAME}"
            )  # fmt: skip
