"""Training batches as a deterministic iterator, whose position is a number.

The n-th batch is a function of the records, the seed, the sizes and n (see `order`), the same on
any number of hosts. A restored iterator yields the very batches that the uninterrupted one would
have, without reading those before. Restoring into an iterator with other arguments is an error.
"""

from __future__ import annotations

import atexit
import dataclasses
import os
import weakref
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import numpy as np
import tensorflow as tf

from imagen_jax.data import records, tasks
from imagen_jax.data.damage import Damage, first_line
from imagen_jax.data.features import TASK_FEATURE_LENGTHS, ImagenFeatureConverter, View
from imagen_jax.data.order import GlobalOrder
from imagen_jax.data.reading import OrderedReader
from imagen_jax.errors import UserError

_PREFETCHED_BATCHES = 2


class BatchIterator(Iterator[dict[str, np.ndarray]]):
    """Iterates over one host's share of every batch; made by `train_batches`.

    Attributes:
      step: number of the next batch, from 0.
      element_spec: name -> jax.ShapeDtypeStruct of the arrays of a batch.
      manifest: manifest of the embedding directory; of a mixture, the "encoder", "image_size" and
        "source" of its parts.
      ids: ids of the records in the batch taken last, in its order.
      damage: damaged records that were met so far.
    """

    def __init__(
        self,
        data: tasks.EmbeddingData,
        reader: OrderedReader,
        converter: ImagenFeatureConverter,
        damage: Damage,
        identity: Mapping[str, Any],
        threads: int,
    ):
        """Args:
        data: the data to read.
        reader: reader of this host's rows.
        converter: from records to arrays.
        damage: finds what `reader` reads in place of damaged records.
        identity: everything that fixes the batches, as JSON; compared on restore.
        threads: threads of the input pipeline.
        """
        self.manifest = data.manifest
        self.damage = damage
        self.ids: list[str] = []
        self._data = data.name
        self._reader = reader
        self._converter = converter
        self._identity = dict(identity)
        self._given = 0
        self._options = tf.data.Options()
        self._options.deterministic = True
        self._options.threading.private_threadpool_size = threads
        self._options.threading.max_intra_op_parallelism = 1
        self.element_spec = {
            name: jax.ShapeDtypeStruct(tuple(spec.shape), spec.dtype.as_numpy_dtype)
            for name, spec in self._dataset(0).element_spec.items()
            if name != "id"
        }
        self.seek(0)
        _OPEN.add(self)

    def seek(self, step: int) -> None:
        """Makes `step` the next batch; nothing before it is read."""
        self.step = step
        self._batches: Iterator[dict[str, tf.Tensor]] | None = None

    def close(self) -> None:
        """Ends reading ahead, until the next batch is asked for."""
        self.seek(self.step)

    # Functions here need no conversion by autograph, and reading them takes long.
    @tf.autograph.experimental.do_not_convert
    def _dataset(self, start: int) -> tf.data.Dataset:
        """This host's share of all batches from `start` on."""
        ds = tasks.parse_records(self._reader.dataset(start))
        ds = self._converter(ds, TASK_FEATURE_LENGTHS)
        ds = ds.batch(len(self._reader.rows), drop_remainder=True).prefetch(_PREFETCHED_BATCHES)
        return ds.with_options(self._options)

    def __next__(self) -> dict[str, np.ndarray]:
        """The next batch, each array [batch, ...].

        Raises:
          StopIteration: after one epoch, if the data is not repeated.
          UserError: more damaged or unsuitable records than are tolerated; names file and record.
        """
        while True:
            if self._batches is None:
                self._batches = iter(self._dataset(self.step))
            try:
                batch = next(self._batches)
            except tf.errors.OpError as error:
                self.close()
                # Its frames hold what reads, which could not end at the end of Python, see below.
                error = error.with_traceback(None)
                damaged = isinstance(
                    error, tf.errors.InvalidArgumentError | tf.errors.DataLossError
                )
                if not (
                    damaged and self.damage.examine(self._reader.window(self.step), self._given)
                ):  # else others are read in place of those found
                    raise self._unreadable(error) from error
            else:
                self.step += 1
                self.ids = [name.decode() for name in batch.pop("id").numpy()]
                self._given += len(self.ids)
                return {name: value.numpy() for name, value in batch.items()}

    def _unreadable(self, error: tf.errors.OpError) -> UserError:
        return UserError(f"cannot read the embeddings in {self._data}: {first_line(error)}")

    def first_records(self, count: int) -> list[records.Record]:
        """The first records of the data, the same on every host; fewer if it has fewer.

        In the place of damaged ones others are read, as in batches.

        Raises:
          UserError: more damaged or unsuitable records than are tolerated; names file and record.
        """
        return self._records(np.arange(min(count, int(self._reader.table.first[-1]))))

    def spread_records(self, count: int) -> list[records.Record]:
        """Records at even distances through all of the data, the same on every host.

        In the place of damaged ones others are read, as in batches.

        Raises:
          UserError: there are fewer, or more damaged or unsuitable ones than are tolerated.
        """
        total = int(self._reader.table.first[-1])
        if count > total:
            raise UserError(f"{count} examples are wanted, and {self._data} has {total} of them")
        return self._records(np.arange(count) * total // count)

    def _records(self, wanted: np.ndarray) -> list[records.Record]:
        self.damage.examine(wanted, self._given)
        replaced = self.damage.replaced
        return [self._reader.table.record(replaced.get(i, i)) for i in wanted.tolist()]

    def position(self) -> dict[str, Any]:
        """Return where the next batch is, as JSON that `restore` takes."""
        return {"step": self.step, **self._identity}

    def restore(self, position: Mapping[str, Any]) -> None:
        """Go to a position that an iterator on any number of hosts returned.

        Raises:
          UserError: of other records, another seed, batch or size; names what differs.
        """
        saved = dict(position)
        step = saved.pop("step")
        differing = [
            f"{key}: saved {saved.get(key)!r}, now {self._identity.get(key)!r}"
            for key in sorted(saved.keys() | self._identity.keys())
            if saved.get(key) != self._identity.get(key)
        ]
        if differing:
            raise UserError(
                "the saved position in the data belongs to other data or arguments, so resuming "
                f"from it would not reproduce the run: {'; '.join(differing)}"
            )
        self.seek(step)


_OPEN: weakref.WeakSet[BatchIterator] = weakref.WeakSet()


@atexit.register
def _close_all() -> None:
    """Before Python ends: TensorFlow's threads, which an iterator waits for when it is destroyed,
    call Python, and would then wait for it forever."""
    for iterator in list(_OPEN):
        iterator.close()


def train_batches(
    data: str | os.PathLike[str],
    view: View,
    batch_size: int,
    seed: int,
    *,
    host: tuple[int, int] = (0, 1),
    split: str = "train",
    repeat: bool = True,
    max_damaged: float = 0.0,
    shuffle_records: int = tasks.SHUFFLE_RECORDS,
    threads: int = 2,
) -> BatchIterator:
    """Shuffled batches of images and token states from embedding directories.

    Every batch is a dict of numpy arrays, b = batch_size / hosts:
      image      float32 [b, side, side, 3] in [-1, 1], side = view.side
      text_emb   bfloat16 [b, text_length, width], as stored; JAX takes it as it is
      text_mask  bool [b, text_length]
      low_res    float32 [b, side / view.factor, side / view.factor, 3] in [-1, 1], unless the view
                 has none

    Args:
      data: an output folder of `imagen embed`, or several with rates: see `tasks.open_data`.
      view: the form in which the stage sees examples.
      batch_size: examples per batch, over all hosts.
      seed: fixes the order of every epoch; each epoch has another order.
      host: (which host this is from 0, how many there are); it reads as many consecutive rows of
        every batch as the others.
      split: split of the manifest.
      repeat: endless if True, else one epoch without its last incomplete batch.
      max_damaged: share of the records that a host reads that may be damaged or unsuitable. They
        are counted in `damage`, reported, and others read in their place, the same on any number of
        hosts.
      shuffle_records: compressed records, over all hosts, that are shuffled at once; a host holds
        its share of them twice.
      threads: threads of the input pipeline.

    Raises:
      UserError: missing or unfinished directory, or a missing shard; a damaged manifest, unknown
        split, sizes that do not divide, a batch that the hosts cannot share, a host out of range,
        or a mixture that does not fit together or is not repeated.
    """
    index, hosts = host
    if not 0 <= index < hosts:
        raise UserError(f"host {index} is not in 0 .. {hosts - 1}")
    if batch_size < 1 or batch_size % hosts:
        raise UserError(
            f"batch_size must be at least 1 and a multiple of the {hosts} hosts, got {batch_size}"
        )
    embeddings = tasks.open_data(data)
    table, examples = embeddings.table(split), embeddings.examples(split)
    for source in embeddings.sources:
        source.check_files(split, index)
    if len(examples) > 1 and not repeat:
        raise UserError(f"{embeddings.name!r} mixes sources, which have no common epoch: repeat")
    if max_damaged == 0:
        embeddings.check_lengths(split, view.text_length)
    converter = ImagenFeatureConverter(view, embeddings.manifest, seed)
    damage = Damage(table, converter.check, max_damaged, hosts)
    share = batch_size // hosts
    window_steps = max(1, shuffle_records // batch_size)
    reader = OrderedReader(
        GlobalOrder(examples, embeddings.rates, batch_size, window_steps, seed),
        table,
        rows=range(index * share, (index + 1) * share),
        window_steps=window_steps,
        steps=None if repeat else examples[0] // batch_size,
        replaced=damage.replaced,
    )
    identity = {
        "records": embeddings.identity(split),
        "split": split,
        "seed": seed,
        "batch_size": batch_size,
        **dataclasses.asdict(view),
        "shuffle_records": shuffle_records,
        "repeat": repeat,
    }
    return BatchIterator(embeddings, reader, converter, damage, identity, threads)
