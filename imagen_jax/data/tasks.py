"""seqio tasks over directories of precomputed text embeddings, as `imagen embed` writes them.

A task is one line, and so is a mixture:

  register_embeddings_task("scenes", "data/scenes")
  register_embeddings_task("photos", "data/photos")
  seqio.MixtureRegistry.add("both", [("scenes", 0.2), ("photos", 0.8)])

`iterator.train_batches` takes the names of both and reads them in the global order of `order`.
Read by seqio itself, records are shuffled while still compressed and before anything is decoded,
because a decoded record is several times larger: see `EmbeddingShards`.
"""

from __future__ import annotations

import os
from typing import Any

import seqio
import tensorflow as tf

from imagen_jax.data import records
from imagen_jax.data.features import TASK_FEATURES, parse_example
from imagen_jax.data.sources import check_rendering
from imagen_jax.errors import UserError
from imagen_jax.files import differences

SHUFFLE_RECORDS = 4096
"""Compressed records that are shuffled at once: by `iterator.train_batches` in windows over all
hosts; by seqio in a buffer, which tf.data saves in every checkpoint of its own iterators."""


class EmbeddingShards(seqio.FileDataSource):
    """The shards that a manifest lists: deterministic given a seed, divided over hosts by file.

    Shuffling permutes the files and then serialized records in a buffer, anew in every epoch; each
    epoch contains every record once. seqio would shuffle after preprocessing and across epochs.

    Args:
      directory: embedding directory.
      shuffle_records: capacity of the shuffle buffer.

    Attributes:
      directory: the embedding directory.
      manifest: its manifest, see `records.load_manifest`.
    """

    def __init__(self, directory: str, shuffle_records: int):
        self.directory = directory
        self.manifest = manifest = records.load_manifest(directory)
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
          UserError: the manifest has no such split.
        """
        if split not in self._shards:
            raise UserError(f"unknown split {split!r}; the manifest has {sorted(self._shards)}")
        return self._shards[split]

    def get_dataset(
        self,
        split: str = "train",
        shuffle: bool = True,
        seed: int | None = None,
        shard_info: seqio.ShardInfo | None = None,
        **unused: Any,
    ) -> tf.data.Dataset:
        """One epoch of one host's files: {"record": serialized, "position": number in it}."""
        ds = super().get_dataset(split, shuffle=shuffle, seed=seed, shard_info=shard_info)
        if shuffle:
            ds = ds.shuffle(self._shuffle_records, seed=seed, reshuffle_each_iteration=True)
        return ds.enumerate().map(lambda i, record: {"record": record, "position": i})


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
      UserError: see `records.load_manifest`.
    """
    return seqio.Task(
        name,
        source=EmbeddingShards(directory, shuffle_records),
        preprocessors=[parse_records],
        output_features=TASK_FEATURES,
        shuffle_buffer_size=None,
    )


def register_embeddings_task(name: str, directory: str) -> seqio.Task:
    """Registers `embeddings_task(name, directory)` with seqio, for use by name and in mixtures.

    Raises:
      UserError: the name is taken by a task or mixture.
      UserError: see `records.load_manifest`.
    """
    task = embeddings_task(name, directory)
    seqio.TaskRegistry.add_provider(name, task)
    return task


def open_data(data: str | os.PathLike[str]) -> list[tuple[EmbeddingShards, float]]:
    """The shards that `data` names, and their rates.

    Args:
      data: an embedding directory; several with their rates, "DIR=RATE,DIR=RATE"; or the name of a
        registered task or mixture over such directories.

    Raises:
      UserError: see `records.load_manifest`; a rate that is no number above 0;
        a task that does not read an embedding directory; or directories whose encoder or size of
        images differ, which one stage cannot be trained on.
    """
    name = os.fspath(data)
    if name in seqio.TaskRegistry.names():
        found = [(seqio.TaskRegistry.get(name), 1.0)]
    elif name in seqio.MixtureRegistry.names():
        mixture = seqio.MixtureRegistry.get(name)
        found = [(task, mixture.get_rate(task)) for task in mixture.tasks]
    elif "=" in name and not os.path.isdir(name):
        parts = [_directory_and_rate(part, name) for part in name.split(",")]
        found = [(embeddings_task(f"part{i}", part), rate) for i, (part, rate) in enumerate(parts)]
    else:
        found = [(embeddings_task("embeddings", name), 1.0)]
    for task, _ in found:
        if not isinstance(task.source, EmbeddingShards):
            raise UserError(f"task {task.name!r} of {name!r} does not read an embedding directory")
        for description in task.source.manifest["source"].values():
            check_rendering(description, task.source.directory)
    first = found[0][0].source
    for task, _ in found[1:]:
        kept = ("encoder", "image_size", "states")
        there, here = ({key: s.manifest[key] for key in kept} for s in (first, task.source))
        if lines := differences(there, here):
            raise UserError(
                f"{first.directory} and {task.source.directory} cannot be mixed:\n  "
                + "\n  ".join(lines)
            )
    return [(task.source, float(rate)) for task, rate in found]


def _directory_and_rate(part: str, whole: str) -> tuple[str, float]:
    directory, _, text = part.rpartition("=")
    try:
        rate = float(text)
    except ValueError:
        rate = 0.0
    if not directory or not 0 < rate < float("inf"):
        raise UserError(
            f"data {whole!r}: {part!r} must be of the form DIR=RATE with a rate above 0"
        )
    return directory, rate


def parse_records(ds: tf.data.Dataset) -> tf.data.Dataset:
    """{"record", "position"} -> the features of a task."""
    return ds.map(
        lambda element: parse_example(element["record"]) | {"position": element["position"]},
        num_parallel_calls=tf.data.AUTOTUNE,
    )
