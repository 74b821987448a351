"""seqio tasks over directories of precomputed text embeddings, as `imagen embed` writes them.

A task is one line:

  register_embeddings_task("scenes", "data/scenes")

Records are shuffled while still compressed and before anything is decoded, because a decoded record
is several times larger: see `EmbeddingShards`.
"""

from __future__ import annotations

import os
from typing import Any

import seqio
import tensorflow as tf

from imagen_jax.data import records
from imagen_jax.data.features import TASK_FEATURES, parse_example

SHUFFLE_RECORDS = 4096
"""Compressed records in the shuffle buffer. It is saved in every iterator checkpoint."""


class EmbeddingShards(seqio.FileDataSource):
    """The shards that a manifest lists: deterministic given a seed, divided over hosts by file.

    Shuffling permutes the files and then serialized records in a buffer, anew in every epoch; each
    epoch contains every record once. seqio would shuffle after preprocessing and across epochs.

    Args:
      directory: embedding directory.
      manifest: its manifest, see `records.load_manifest`.
      shuffle_records: capacity of the shuffle buffer.
    """

    def __init__(self, directory: str, manifest: records.Manifest, shuffle_records: int):
        self._shuffle_records = shuffle_records
        self._shards = {
            split: [os.path.join(directory, name) for name in entry["shards"]]
            for split, entry in manifest["splits"].items()
        }
        # num_input_examples stays unset: below 10,000 examples seqio would cache the first epoch in
        # memory, and the cache would become part of every iterator checkpoint.
        super().__init__(
            read_file_fn=tf.data.TFRecordDataset,
            split_to_filepattern=self._shards,
            caching_permitted=False,
            performs_internal_shuffling=True,
        )

    def list_shards(self, split: str) -> list[str]:
        """Paths of the shards of `split`, taken literally (no wildcards).

        Raises:
          ValueError: the manifest has no such split.
        """
        if split not in self._shards:
            raise ValueError(f"unknown split {split!r}; the manifest has {sorted(self._shards)}")
        return self._shards[split]

    def get_dataset(
        self,
        split: str = "train",
        shuffle: bool = True,
        seed: int | None = None,
        shard_info: seqio.ShardInfo | None = None,
        **unused: Any,
    ) -> tf.data.Dataset:
        """Serialized records of one host's files, one epoch."""
        ds = super().get_dataset(split, shuffle=shuffle, seed=seed, shard_info=shard_info)
        if shuffle:
            ds = ds.shuffle(self._shuffle_records, seed=seed, reshuffle_each_iteration=True)
        return ds


def embeddings_task(
    name: str, directory: str, shuffle_records: int = SHUFFLE_RECORDS
) -> seqio.Task:
    """A seqio task over an embedding directory; its features are compressed records.

    Use it with `features.TASK_FEATURE_LENGTHS` and an `ImagenFeatureConverter`.

    Args:
      name: letters, digits and `._:#`.
      directory: what `imagen embed` wrote.
      shuffle_records: capacity of the shuffle buffer, in compressed records.

    Raises:
      FileNotFoundError, ValueError: see `records.load_manifest`.
    """
    return seqio.Task(
        name,
        source=EmbeddingShards(directory, records.load_manifest(directory), shuffle_records),
        preprocessors=[_parse_records],
        output_features=TASK_FEATURES,
        shuffle_buffer_size=None,
    )


def register_embeddings_task(name: str, directory: str) -> seqio.Task:
    """Registers `embeddings_task(name, directory)` with seqio, for use by name and in mixtures.

    Raises:
      ValueError: the name is taken by a task or mixture.
      FileNotFoundError, ValueError: see `records.load_manifest`.
    """
    task = embeddings_task(name, directory)
    seqio.TaskRegistry.add_provider(name, task)
    return task


def _parse_records(ds: tf.data.Dataset) -> tf.data.Dataset:
    return ds.map(parse_example, num_parallel_calls=tf.data.AUTOTUNE)
