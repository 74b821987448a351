"""Training batches as a deterministic iterator, whose position is a number.

The n-th batch is a function of the records, the seed, the sizes and n (see `order`), the same on
any number of hosts. A restored iterator yields the very batches that the uninterrupted one would
have, without reading those before. Restoring into an iterator with other arguments is an error.
"""

from __future__ import annotations

import atexit
import os
import weakref
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import numpy as np
import seqio
import tensorflow as tf

from imagen_jax import files
from imagen_jax.data import records, tasks
from imagen_jax.data.damage import Damage, first_line
from imagen_jax.data.features import (
    TASK_FEATURE_LENGTHS,
    TASK_FEATURES,
    ImagenFeatureConverter,
    parse_example,
)
from imagen_jax.data.order import GlobalOrder
from imagen_jax.data.reading import ShardTable, ordered_records
from imagen_jax.errors import UserError

_PREFETCHED_BATCHES = 2


class BatchIterator(Iterator[dict[str, np.ndarray]]):
    """Iterates over one host's share of every batch; made by `train_batches`.

    Attributes:
      step: number of the next batch, from 0.
      element_spec: name -> jax.ShapeDtypeStruct of the arrays of a batch.
      manifest: of the embedding directory; of a mixture, the "encoder", "image_size" and "source"
        of its parts.
      fingerprint: everything that fixes the order of the batches; compared on restore.
      ids: of the records in the batch taken last, in its order.
      damage: damaged records that were met so far.
    """

    def __init__(
        self,
        make_dataset: Callable[[int], tf.data.Dataset],
        damage: Damage,
        near: Callable[[int], np.ndarray],
        table: ShardTable,
        data: str,
        manifest: records.Manifest,
        fingerprint: dict[str, Any],
    ):
        self.manifest = manifest
        self.fingerprint = fingerprint
        self.ids: list[str] = []
        self.damage = damage
        self._near = near  # records that are read together with a step's
        self._table = table
        self._given = 0
        self._data = data
        self._make_dataset = make_dataset
        self.element_spec = {
            name: jax.ShapeDtypeStruct(tuple(spec.shape), spec.dtype.as_numpy_dtype)
            for name, spec in make_dataset(0).element_spec.items()
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

    def __next__(self) -> dict[str, np.ndarray]:
        """The next batch, each array [batch, ...].

        Raises:
          StopIteration: after one epoch, if the data is not repeated.
          UserError: more damaged or unsuitable records than are tolerated; names file and record.
        """
        while True:
            if self._batches is None:
                self._batches = iter(self._make_dataset(self.step))
            try:
                batch = next(self._batches)
            except (tf.errors.InvalidArgumentError, tf.errors.DataLossError) as error:
                if not self.damage.examine(self._near(self.step), self._given):
                    raise UserError(
                        f"cannot read the embeddings in {self._data}: {first_line(error)}"
                    ) from error
                self.seek(self.step)  # others are read in place of those found
            else:
                self.step += 1
                self.ids = [name.decode() for name in batch.pop("id").numpy()]
                self._given += len(self.ids)
                return {name: value.numpy() for name, value in batch.items()}

    def first_records(self, count: int) -> list[records.Record]:
        """The first records of the data, the same on every host; fewer if it has fewer.

        In the place of damaged ones others are read, as in batches.

        Raises:
          UserError: more damaged or unsuitable records than are tolerated; names file and record.
        """
        return self._records(np.arange(min(count, int(self._table.first[-1]))))

    def spread_records(self, count: int) -> list[records.Record]:
        """Records at even distances through all of the data, the same on every host.

        In the place of damaged ones others are read, as in batches.

        Raises:
          UserError: there are fewer, or more damaged or unsuitable ones than are tolerated.
        """
        total = int(self._table.first[-1])
        if count > total:
            raise UserError(f"{count} examples are wanted, and {self._data} has {total} of them")
        return self._records(np.arange(count) * total // count)

    def _records(self, wanted: np.ndarray) -> list[records.Record]:
        self.damage.examine(wanted, self._given)
        return [
            records.parse_record(self._table.read(self.damage.replaced.get(i, i)).numpy())
            for i in wanted.tolist()
        ]

    def position(self) -> dict[str, Any]:
        """Return where the next batch is, as JSON that `restore` takes."""
        return {"step": self.step, **self.fingerprint}

    def restore(self, position: Mapping[str, Any]) -> None:
        """Go to a position that an iterator on any number of hosts returned.

        Raises:
          UserError: of other records, another seed, batch or size; names what differs.
        """
        saved = dict(position)
        step = saved.pop("step")
        differing = [
            f"{key}: saved {saved.get(key)!r}, now {self.fingerprint.get(key)!r}"
            for key in sorted(saved.keys() | self.fingerprint.keys())
            if saved.get(key) != self.fingerprint.get(key)
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
    image_size: int,
    low_res_size: int | None,
    text_length: int,
    batch_size: int,
    seed: int,
    shard_index: int = 0,
    num_shards: int = 1,
    repeat: bool = True,
    *,
    split: str = "train",
    text_width: int | None = None,
    crop: int | None = None,
    max_damaged: float = 0.0,
    shuffle_records: int = tasks.SHUFFLE_RECORDS,
    threads: int = 2,
) -> BatchIterator:
    """Shuffled batches of images and token states from embedding directories.

    Every batch is a dict of numpy arrays, b = batch_size / num_shards:
      image      float32 [b, image_size, image_size, 3] in [-1, 1]
      text_emb   bfloat16 [b, text_length, width], as stored; JAX takes it as it is
      text_mask  bool [b, text_length]
      low_res    float32 [b, low_res_size, low_res_size, 3] in [-1, 1], unless low_res_size is None
    With `crop`, image is [b, crop, crop, 3], and low_res smaller by the same factor.

    Args:
      data: what `imagen embed` wrote, or several of them with rates: see `tasks.open_data`.
      image_size: side of the images in pixels. It divides the recorded size; smaller images are
        exact area averages, so that all stages read the same shards.
      low_res_size: side of the area-averaged "low_res"; divides `image_size`. None leaves it out.
      text_length: token states are zero-padded to this length; longer captions are an error.
      batch_size: examples per batch, over all hosts.
      seed: fixes the order of every epoch; each epoch has another order.
      shard_index: this host, 0 <= shard_index < num_shards; it reads rows shard_index * b to
        (shard_index + 1) * b of every batch.
      num_shards: number of hosts.
      repeat: endless if True, else one epoch without its last incomplete batch.
      split: split of the manifest.
      text_width: width of the token states that the model expects; None takes the recorded one.
      crop: side of random squares that "image" then has, with "low_res" to match; None for whole
        images.
      max_damaged: share of the records that a host reads that may be damaged or unsuitable. They
        are counted in `damage`, reported, and others read in their place, the same on any number of
        hosts.
      shuffle_records: compressed records, over all hosts, that are shuffled at once; a host holds
        its share of them twice.
      threads: threads of the input pipeline.

    Raises:
      UserError: missing or unfinished directory, or a missing shard; a damaged manifest, unknown
        split, sizes that do not divide, another embedding width, a batch that the hosts cannot
        share, a shard index out of range, or a mixture that does not fit together or is not
        repeated.
    """
    sources = tasks.open_data(data)
    manifest = sources[0][0].manifest
    records.check_encoder(manifest, width=text_width)
    if not 0 <= shard_index < num_shards:
        raise UserError(f"shard_index {shard_index} is not in 0 .. {num_shards - 1}")
    if batch_size < 1 or batch_size % num_shards:
        raise UserError(
            f"batch_size must be at least 1 and a multiple of the {num_shards} hosts, got "
            f"{batch_size}"
        )
    if len(sources) > 1 and not repeat:
        raise UserError(f"{os.fspath(data)!r} mixes sources, which have no common epoch: repeat")
    converter = ImagenFeatureConverter(
        manifest["image_size"],
        image_size,
        low_res_size,
        text_length,
        manifest["encoder"]["width"],
        manifest["states"],
        crop,
        seed,
    )
    table = ShardTable.of([
        (path, count)
        for source, _ in sources
        for path, count in zip(source.list_shards(split),
                               source.manifest["splits"][split]["shard_examples"], strict=True)
    ])  # fmt: skip
    examples = [source.manifest["splits"][split]["examples"] for source, _ in sources]
    window_steps = max(1, shuffle_records // batch_size)
    order = GlobalOrder(examples, [rate for _, rate in sources], batch_size, window_steps, seed)
    share = batch_size // num_shards
    rows = range(shard_index * share, (shard_index + 1) * share)
    steps = None if repeat else range(examples[0] // batch_size)
    options = tf.data.Options()
    options.deterministic = True
    options.threading.private_threadpool_size = threads
    options.threading.max_intra_op_parallelism = 1

    def check(record: tf.Tensor) -> None:
        features = parse_example(record)
        converter.convert(features | {"position": tf.zeros([], tf.int64)})

    def near(step: int) -> np.ndarray:
        first = step - step % window_steps
        return order.records(range(first, first + window_steps), rows)

    damage = Damage(table, check, max_damaged, num_shards)

    @tf.autograph.experimental.do_not_convert  # no function here needs it; reading them takes long
    def make_dataset(start: int) -> tf.data.Dataset:
        task = seqio.Task(
            "ordered",
            seqio.FunctionDataSource(
                lambda split, shuffle_files, seed=None: ordered_records(
                    order, table, rows, steps, start, window_steps, damage.replaced
                ),
                splits=[split],
            ),
            preprocessors=[tasks.parse_records],
            output_features=TASK_FEATURES,
        )
        dataset = seqio.get_dataset(
            task,
            TASK_FEATURE_LENGTHS,
            converter,
            dataset_split=split,
            shuffle=False,  # the source already is
            seed=seed,
            batch_size=share,
            trim_output_features=False,
            verbose=False,
        )
        return dataset.prefetch(_PREFETCHED_BATCHES).with_options(options)

    fingerprint = {
        # Not the whole manifest's fingerprint: adding another split leaves this one as it is.
        "records": [
            [files.fingerprint(
                [m["encoder"], m["states"], m["image_size"], m["splits"][split]]), rate]
            for m, rate in ((source.manifest, rate) for source, rate in sources)
        ],
        "split": split,
        "seed": seed,
        "batch_size": batch_size,
        "image_size": image_size,
        "low_res_size": low_res_size,
        "crop": crop,
        "text_length": text_length,
        "shuffle_records": shuffle_records,
        "repeat": repeat,
    }  # fmt: skip
    return BatchIterator(
        make_dataset,
        damage,
        near,
        table,
        os.fspath(data),
        _joined(sources),
        fingerprint,
    )


def _joined(sources: list[tuple[tasks.EmbeddingShards, float]]) -> records.Manifest:
    """The manifest of one source, or what a run should remember of several."""
    manifests = [source.manifest for source, _ in sources]
    if len(manifests) == 1:
        return manifests[0]
    splits = {split for manifest in manifests for split in manifest["source"]}
    return {
        **{key: manifests[0][key] for key in ("format", "encoder", "states", "image_size")},
        "source": {
            split: {
                "name": "mixture",
                "parts": [
                    {"rate": rate, "source": source.manifest["source"].get(split)}
                    for source, rate in sources
                ],
            }
            for split in sorted(splits)
        },
    }
