"""The one reader of shards: records in a global order, as a tf.data pipeline that starts anywhere.

A window of batches is read at once: the host's records of it are sorted, neighbours are read as one
run of bytes, and all are put into their order. So a host holds two windows of compressed records,
the one it gives out and the next one, and decodes nothing that it does not give out.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
import tensorflow as tf

from imagen_jax.buckets import SCHEME, BucketPath
from imagen_jax.data import records
from imagen_jax.data.fetching import Fetched
from imagen_jax.errors import UserError

_PARALLEL_RUNS = 4
_PARALLEL_OFFSETS = 16
_REMEMBERED = 2**16  # offsets: a small corpus asks for them again in every epoch
_LONGEST_RUN = 2**20
_FOREVER = 2**62


@dataclass(frozen=True, eq=False)
class ShardTable:
    """Places of all records; records are numbered through all shards.

    Attributes:
      paths: paths of the shards.
      first: [shards + 1] number of each shard's first record, and of all records.
      offset: (path, place of a record in it, number of records) -> where they begin, see
        records.locate_records; remembers some.
      fetched: records of shards in a bucket.
    """

    paths: Sequence[str]
    first: np.ndarray
    offset: Callable[[str, int, int], int] = field(
        default_factory=lambda: functools.lru_cache(maxsize=_REMEMBERED)(records.locate_records),
        init=False,
        repr=False,
    )
    fetched: Fetched = field(default_factory=Fetched, init=False, repr=False)

    @classmethod
    def of(cls, shards: Sequence[tuple[str, int]]) -> ShardTable:
        """From (path, number of records) of each shard."""
        paths = [path for path, _ in shards]
        return cls(paths, np.cumsum([0, *(count for _, count in shards)], dtype=np.int64))

    def locate(self, record: int) -> tuple[str, int]:
        """(path of its shard, place in it) of a record."""
        shard = int(np.searchsorted(self.first, record, side="right")) - 1
        return self.paths[shard], record - int(self.first[shard])

    def records_of(self, path: str) -> int:
        """Number of records of a shard."""
        shard = self.paths.index(path)
        return int(self.first[shard + 1] - self.first[shard])

    def runs(self, wanted: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Neighbouring records as runs of bytes.

        Args:
          wanted: [n] ascending, different.

        Returns:
          (paths, byte offsets int64, numbers of records int64), each [runs].

        Raises:
          UserError: offsets, or the length of a record, are not what they should be.
        """
        shard = np.searchsorted(self.first, wanted, side="right") - 1
        breaks = (np.diff(wanted) != 1) | (np.diff(shard) != 0)
        starts = np.concatenate([[0], np.flatnonzero(breaks) + 1])
        counts = np.diff([*starts, len(wanted)])
        places = wanted[starts] - self.first[shard[starts]]
        paths = [self.paths[s] for s in shard[starts]]
        paths, offsets = self._places(paths, places.tolist(), counts.tolist())
        return np.array(paths, object), np.array(offsets, np.int64), counts.astype(np.int64)

    def _places(
        self, paths: list[str], places: list[int], counts: list[int]
    ) -> tuple[list[str], list[int]]:
        """(files, bytes in them) where runs of records begin; those in buckets are fetched."""
        remote = [i for i, path in enumerate(paths) if path.startswith(SCHEME)]
        local = [i for i, path in enumerate(paths) if not path.startswith(SCHEME)]
        files, offsets = list(paths), [0] * len(paths)
        # A shard may lie on storage that takes milliseconds to answer: all are asked at once.
        with ThreadPoolExecutor(_PARALLEL_OFFSETS) as pool:
            asked = ([of[i] for i in local] for of in (paths, places, counts))
            for i, offset in zip(local, pool.map(self.offset, *asked), strict=True):
                offsets[i] = offset
        if remote:
            runs = [(BucketPath(paths[i]), places[i], counts[i]) for i in remote]
            file, begins = self.fetched.fetch(runs)
            for i, begin in zip(remote, begins, strict=True):
                files[i], offsets[i] = str(file), begin
        return files, offsets

    def read(self, record: int) -> tf.Tensor:
        """One serialized record.

        Raises:
          UserError: see records.locate_records.
          tf.errors.DataLossError: it is damaged.
        """
        path, place = self.locate(record)
        (file,), (offset,) = self._places([path], [place], [1])
        read = _records_from(tf.constant(file), tf.constant(offset, tf.int64)).take(1)
        try:
            return read.get_single_element()
        finally:
            self.fetched.remove(file)

    def record(self, record: int) -> records.Record:
        """One record.

        Raises:
          UserError: it is damaged; names its file and place.
        """
        path, place = self.locate(record)
        try:
            serialized = self.read(record).numpy()
        except tf.errors.DataLossError as error:
            raise records.DamagedRecordError(path, place, error.message) from error
        try:
            return records.parse_record(serialized)
        except UserError as error:
            raise records.DamagedRecordError(path, place, str(error)) from error


class Order(Protocol):
    """An order of records; `order.GlobalOrder` is one."""

    batch: int

    def records(self, steps: range, rows: range) -> np.ndarray:
        """Return records [steps, rows] of some rows of some batches."""
        ...


@dataclass(frozen=True, eq=False)
class OrderedReader:
    """Reads one host's rows of batches, in a global order.

    Attributes:
      order: order of the records.
      table: places of the records.
      rows: the host's rows of every batch.
      window_steps: batches that are read at once.
      steps: number of batches; None for no end.
      replaced: records -> those read in their place.
    """

    order: Order
    table: ShardTable
    rows: range
    window_steps: int
    steps: int | None = None
    replaced: Mapping[int, int] = field(default_factory=dict)

    def window(self, step: int) -> np.ndarray:
        """Return the records that are read together with those of a batch."""
        first = step - step % self.window_steps
        return self.order.records(range(first, first + self.window_steps), self.rows)

    def dataset(self, start: int = 0) -> tf.data.Dataset:
        """Return the serialized records of all batches from `start` on.

        Elements are {"record": string, "position": int64}; the position is that in the global
        order, and seeds what is random about the example.
        """
        stop = _FOREVER if self.steps is None else self.steps
        before: list[str] = []

        def plan(window: np.ndarray) -> tuple[np.ndarray, ...]:
            first = int(window) * self.window_steps
            steps = range(max(first, start), min(first + self.window_steps, stop))
            wanted = self.order.records(steps, self.rows)
            for record in self.replaced.keys() & set(wanted.flat):
                wanted[wanted == record] = self.replaced[record]
            unique, place = np.unique(wanted, return_inverse=True)
            positions = np.array(steps)[:, None] * self.order.batch + np.array(self.rows)[None]
            runs = self.table.runs(unique)
            for file in before:  # which was read to its end: windows follow one another
                self.table.fetched.remove(file)
            before[:] = runs[0].tolist()
            return *runs, place.ravel().astype(np.int64), positions.ravel()

        def read(window: tf.Tensor) -> dict[str, tf.Tensor]:
            types = (tf.string, tf.int64, tf.int64, tf.int64, tf.int64)
            planned = tf.numpy_function(plan, [window], types)
            for tensor in planned:
                tensor.set_shape([None])
            paths, offsets, counts, place, position = planned
            return {"record": tf.gather(_read_runs(paths, offsets, counts), place),
                    "position": position}  # fmt: skip

        windows = tf.data.Dataset.range(start // self.window_steps, -(-stop // self.window_steps))
        return windows.map(read).prefetch(1).unbatch()


def _read_runs(paths: tf.Tensor, offsets: tf.Tensor, counts: tf.Tensor) -> tf.Tensor:
    """Return the records of runs of bytes, one run after another."""
    runs = tf.data.Dataset.from_tensor_slices((paths, offsets, counts)).interleave(
        lambda path, offset, count: _records_from(path, offset).take(count),
        cycle_length=_PARALLEL_RUNS,
        block_length=_LONGEST_RUN,  # each run to its end
        num_parallel_calls=_PARALLEL_RUNS,
        deterministic=True,
    )
    total = tf.reduce_sum(counts)
    read = runs.batch(total).get_single_element()
    complete = tf.debugging.Assert(
        tf.equal(tf.size(read, tf.int64), total),
        ["shards hold fewer records than their manifest says: read", tf.size(read), "of", total,
         "from", paths],
    )  # fmt: skip
    with tf.control_dependencies([complete]):
        return tf.identity(read)


def _records_from(path: tf.Tensor, offset: tf.Tensor) -> tf.data.Dataset:
    """The records of a TFRecord file from a byte on."""
    # The public TFRecordDataset always begins at the first byte.
    variant = tf.raw_ops.TFRecordDatasetV2(
        filenames=path[tf.newaxis],
        compression_type="",
        buffer_size=256 * 1024,
        byte_offsets=offset[tf.newaxis],
    )
    return tf.data.experimental.from_variant(variant, tf.TensorSpec([], tf.string))
