"""Training batches as a deterministic iterator whose position can be saved and restored exactly.

The order of batches is a function of the records, the seed, the host's share and the sizes; a
restored iterator yields the very batches that the uninterrupted one would have. Restoring into an
iterator with other arguments is an error, since TensorFlow itself would not notice.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np
import seqio
import tensorflow as tf

from imagen_jax.data import records, tasks
from imagen_jax.data.features import TASK_FEATURE_LENGTHS, ImagenFeatureConverter

_PREFETCHED_BATCHES = 2


class BatchIterator(Iterator[dict[str, np.ndarray]]):
    """Iterates over batches of one host; made by `train_batches`.

    Attributes:
      element_spec: name -> jax.ShapeDtypeStruct of the arrays of a batch.
      manifest: manifest of the embedding directory.
      fingerprint: everything that fixes the order of the batches; compared on restore.
    """

    def __init__(
        self,
        make_dataset: Callable[[], tf.data.Dataset],
        directory: str,
        manifest: records.Manifest,
        fingerprint: dict[str, Any],
    ):
        self.manifest = manifest
        self.fingerprint = fingerprint
        self._directory = directory
        self._make_dataset = make_dataset
        dataset = make_dataset()
        self.element_spec = {
            name: jax.ShapeDtypeStruct(tuple(spec.shape), spec.dtype.as_numpy_dtype)
            for name, spec in dataset.element_spec.items()
        }
        self._iterator = iter(dataset)

    def __next__(self) -> dict[str, np.ndarray]:
        """The next batch, each array [batch, ...].

        Raises:
          StopIteration: after one epoch, if the data is not repeated.
          ValueError: a damaged or unsuitable record, named where its id can be read.
        """
        try:
            batch = next(self._iterator)
        except (tf.errors.InvalidArgumentError, tf.errors.DataLossError) as error:
            raise ValueError(
                f"cannot read the embeddings in {self._directory}: {_first_line(error)}"
            ) from error
        return {name: value.numpy() for name, value in batch.items()}

    def save(self, directory: str | os.PathLike[str]) -> None:
        """Saves the position into `directory`, which may be shared by all hosts.

        Call it between steps, never while another thread takes batches: the position saved is that
        after the last batch taken. The shuffle buffer is part of it (see `SHUFFLE_RECORDS`).
        """
        tf.io.gfile.makedirs(directory)
        prefix = self._prefix(directory)
        tf.train.Checkpoint(iterator=self._iterator).write(prefix)
        # Written last: a position without its fingerprint is incomplete and cannot be restored.
        with tf.io.gfile.GFile(f"{prefix}.json", "w") as file:
            json.dump(self.fingerprint, file, indent=1)

    def restore(self, directory: str | os.PathLike[str]) -> None:
        """Goes to the position saved in `directory` by an iterator with the same arguments.

        Raises:
          FileNotFoundError: nothing was saved there for this host and number of hosts.
          ValueError: saved with other records, another seed, batch or size; names what differs.
        """
        prefix = self._prefix(directory)
        if not tf.io.gfile.exists(f"{prefix}.json"):
            files = tf.io.gfile.listdir(directory) if tf.io.gfile.isdir(directory) else []
            raise FileNotFoundError(
                f"no data position {os.path.basename(prefix)} in {directory}; it has "
                f"{sorted(files) or 'no files'}"
            )
        with tf.io.gfile.GFile(f"{prefix}.json") as file:
            saved = json.load(file)
        differing = [
            f"{key}: saved {saved.get(key)!r}, now {self.fingerprint.get(key)!r}"
            for key in sorted(saved.keys() | self.fingerprint.keys())
            if saved.get(key) != self.fingerprint.get(key)
        ]
        if differing:
            raise ValueError(
                f"the data position in {directory} belongs to other data or arguments, so going on "
                f"from it would not reproduce the run: {'; '.join(differing)}"
            )
        # A new dataset, because the old one's shuffle seeds have moved on, and a position saved
        # before the first batch does not put them back.
        self._iterator = iter(self._make_dataset())
        tf.train.Checkpoint(iterator=self._iterator).read(prefix).assert_consumed()

    def _prefix(self, directory: str | os.PathLike[str]) -> str:
        index, count = self.fingerprint["shard_index"], self.fingerprint["num_shards"]
        return os.path.join(directory, f"batches-{index:05d}-of-{count:05d}")


def train_batches(
    directory: str,
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
    shuffle_records: int = tasks.SHUFFLE_RECORDS,
    threads: int = 2,
) -> BatchIterator:
    """Shuffled batches of pictures and token states from an embedding directory.

    Every batch is a dict of numpy arrays:
      image      float32 [b, image_size, image_size, 3] in [-1, 1]
      text_emb   bfloat16 [b, text_length, width], as stored; JAX takes it as it is
      text_mask  bool [b, text_length]
      low_res    float32 [b, low_res_size, low_res_size, 3] in [-1, 1], unless low_res_size is None

    Args:
      directory: what `imagen embed` wrote.
      image_size: side of the pictures in pixels. It divides the recorded size; smaller pictures are
        exact area averages, so that all stages read the same shards.
      low_res_size: side of the area-averaged "low_res"; divides `image_size`. None leaves it out.
      text_length: token states are zero-padded to this length; longer captions are an error.
      batch_size: examples per batch on this host.
      seed: fixes the order of every epoch; each epoch has another order.
      shard_index: this host, 0 <= shard_index < num_shards.
      num_shards: number of hosts; each reads its own files.
      repeat: endless if True, else one epoch without its last incomplete batch. Hosts may then have
        different numbers of batches.
      split: split of the manifest.
      text_width: width of the token states that the model expects; None takes the recorded one.
      shuffle_records: capacity of the shuffle buffer, in compressed records.
      threads: threads of the input pipeline.

    Raises:
      FileNotFoundError: missing or unfinished directory, or a missing shard.
      ValueError: a damaged manifest, unknown split, sizes that do not divide, another embedding
        width, a batch size below 1, a shard index out of range, or fewer files than hosts.
    """
    manifest = records.load_manifest(directory)
    records.check_encoder(manifest, width=text_width)
    if batch_size < 1:
        raise ValueError(f"batch_size must be at least 1, got {batch_size}")
    if not 0 <= shard_index < num_shards:
        raise ValueError(f"shard_index {shard_index} is not in 0 .. {num_shards - 1}")
    task = tasks.embeddings_task("embeddings", directory, shuffle_records)
    # seqio would let every host read every file and drop the others' examples.
    files = len(task.source.list_shards(split))
    if files < num_shards:
        raise ValueError(
            f"split {split!r} in {directory} has {files} files for {num_shards} hosts; embed it "
            f"again with at least {num_shards} shards"
        )
    converter = ImagenFeatureConverter(
        manifest["image_size"], image_size, low_res_size, text_length, manifest["encoder"]["width"]
    )
    options = tf.data.Options()
    options.deterministic = True
    options.threading.private_threadpool_size = threads
    options.threading.max_intra_op_parallelism = 1

    def make_dataset() -> tf.data.Dataset:
        dataset = seqio.get_dataset(
            task,
            TASK_FEATURE_LENGTHS,
            converter,
            dataset_split=split,
            shuffle=True,
            num_epochs=None if repeat else 1,
            shard_info=seqio.ShardInfo(shard_index, num_shards),
            seed=seed,
            batch_size=batch_size,
            trim_output_features=False,
            verbose=False,
        )
        return dataset.prefetch(_PREFETCHED_BATCHES).with_options(options)

    fingerprint = {
        # Not the whole manifest's fingerprint: adding another split leaves this one as it is.
        "records": records.json_fingerprint(
            [manifest["encoder"], manifest["image_size"], manifest["splits"][split]]
        ),
        "split": split,
        "seed": seed,
        "shard_index": shard_index,
        "num_shards": num_shards,
        "batch_size": batch_size,
        "image_size": image_size,
        "low_res_size": low_res_size,
        "text_length": text_length,
        "shuffle_records": shuffle_records,
        "repeat": repeat,
    }
    return BatchIterator(make_dataset, directory, manifest, fingerprint)


def _first_line(error: tf.errors.OpError) -> str:
    """TensorFlow's message without the names of graph nodes; `[a] [b]` of assertions as `a b`."""
    line = error.message.splitlines()[0]
    line = re.sub(r"^\{\{.*?\}\}\s*", "", line)
    if "assertion failed: " in line:
        line = line.split("assertion failed: ", 1)[1].replace("] [", " ").strip("[] ")
    return line
