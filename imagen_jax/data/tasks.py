"""Embedding directories, as `imagen embed` writes them, opened for training and for seqio.

A task is one line, and so is a mixture:

  register_embeddings_task("scenes", "data/scenes")
  register_embeddings_task("photos", "data/photos")
  seqio.MixtureRegistry.add("both", [("scenes", 0.2), ("photos", 0.8)])

`iterator.train_batches` takes the names of both. It and seqio itself read by the same
`reading.OrderedReader`; seqio then shuffles once more, records that are still compressed.
"""

from __future__ import annotations

import functools
import os
import random
from dataclasses import dataclass
from typing import Any

import seqio
import tensorflow as tf

from imagen_jax.data.features import TASK_FEATURES, parse_example
from imagen_jax.data.manifest import Manifest, check_shards, load_manifest
from imagen_jax.data.order import FileOrder, GlobalOrder
from imagen_jax.data.reading import Order, OrderedReader, ShardTable
from imagen_jax.data.sources import check_rendering
from imagen_jax.errors import UserError
from imagen_jax.files import differences, fingerprint
from imagen_jax.paths import as_path

SHUFFLE_RECORDS = 4096
"""Compressed records that are shuffled at once, over all hosts."""


class EmbeddingShards(seqio.DataSource):
    """The shards that a manifest lists, as a source of seqio.

    Args:
      directory: embedding directory.

    Attributes:
      directory: the embedding directory.
      manifest: its manifest, see `load_manifest`.
    """

    def __init__(self, directory: str | os.PathLike[str]):
        self.directory = str(as_path(directory))
        self.manifest = load_manifest(self.directory, check_files=False)
        # num_input_examples stays unset: below 10,000 examples seqio would cache the first epoch in
        # memory, and the cache would become part of every iterator checkpoint.
        super().__init__(splits=self.manifest["splits"], caching_permitted=False)

    @property
    def supports_arbitrary_sharding(self) -> bool:
        """Hosts divide the records of the order, not files."""
        return True

    def shards(self, split: str) -> list[tuple[str, int]]:
        """Return (path, number of records) of every shard of a split.

        Raises:
          UserError: the manifest has no such split.
        """
        if split not in self.manifest["splits"]:
            raise UserError(
                f"unknown split {split!r}; the manifest has {sorted(self.manifest['splits'])}"
            )
        entry = self.manifest["splits"][split]
        paths = [os.path.join(self.directory, name) for name in entry["shards"]]
        return list(zip(paths, entry["shard_examples"], strict=True))

    def check_files(self, split: str, host: int) -> None:
        """Check the shards of a split, on the first host alone; the others find out on reading.

        Raises:
          UserError: see `check_shards`.
        """
        if host == 0:
            check_shards(self.directory, self.manifest, split)

    def list_shards(self, split: str) -> list[str]:
        """Return the paths of a split's shards."""
        return [path for path, _ in self.shards(split)]

    def get_dataset(
        self,
        split: str = "train",
        shuffle: bool = True,
        seed: Any = None,
        shard_info: seqio.ShardInfo | None = None,
        **unused: Any,
    ) -> tf.data.Dataset:
        """Return one host's part of one epoch: {"record": serialized, "position": number in it}.

        Args:
          split: split of the manifest.
          shuffle: in the global order of the first epoch; else as they lie in the files.
          seed: seed of the order; None for another one in every call.
          shard_info: index of this host and number of hosts.
        """
        host, hosts = (shard_info.index, shard_info.num_shards) if shard_info else (0, 1)
        table = ShardTable.of(self.shards(split))
        self.check_files(split, host)
        examples = self.manifest["splits"][split]["examples"]
        window_steps = max(1, SHUFFLE_RECORDS // hosts)
        order: Order = FileOrder(hosts)
        if shuffle:
            seed = random.getrandbits(64) if seed is None else int(seed) % 2**64
            order = GlobalOrder([examples], [1.0], hosts, window_steps, seed)
        steps = len(range(host, examples, hosts))
        return OrderedReader(order, table, range(host, host + 1), window_steps, steps).dataset()


def embeddings_task(name: str, directory: str | os.PathLike[str]) -> seqio.Task:
    """Return a seqio task over an embedding directory; its features are compressed records.

    Use it with `features.TASK_FEATURE_LENGTHS` and an `ImagenFeatureConverter`.

    Args:
      name: letters, digits and `._:#`.
      directory: output folder of `imagen embed`.

    Raises:
      UserError: see `load_manifest`; the shards are checked when they are read.
    """
    return seqio.Task(
        name,
        source=EmbeddingShards(directory),
        preprocessors=[parse_records],
        output_features=TASK_FEATURES,
        shuffle_buffer_size=SHUFFLE_RECORDS,
    )


def register_embeddings_task(name: str, directory: str | os.PathLike[str]) -> seqio.Task:
    """Register `embeddings_task(name, directory)` with seqio, for use by name and in mixtures.

    Raises:
      ValueError: the name is taken by a task or mixture.
      UserError: see `load_manifest`.
    """
    task = embeddings_task(name, directory)
    seqio.TaskRegistry.add_provider(name, task)
    return task


def parse_records(ds: tf.data.Dataset) -> tf.data.Dataset:
    """{"record", "position"} -> the features of a task."""
    return ds.map(
        lambda element: parse_example(element["record"]) | {"position": element["position"]},
        num_parallel_calls=tf.data.AUTOTUNE,
    )


@dataclass(frozen=True)
class EmbeddingData:
    """One or several embedding directories that fit together.

    Attributes:
      name: as the user gave it.
      sources: the directories.
      rates: rate of each in a batch; only their ratios count.
    """

    name: str
    sources: tuple[EmbeddingShards, ...]
    rates: tuple[float, ...]

    def table(self, split: str) -> ShardTable:
        """Return where the records of all sources are."""
        return ShardTable.of([shard for source in self.sources for shard in source.shards(split)])

    def examples(self, split: str) -> list[int]:
        """Return the number of records of each source."""
        return [source.manifest["splits"][split]["examples"] for source in self.sources]

    def check_lengths(self, split: str, most: int) -> None:
        """Raise a UserError if a caption has more tokens than `most`, text.max_length."""
        for source in self.sources:
            longest = source.manifest["splits"][split].get("longest", 0)
            if longest > most:
                raise UserError(
                    f"{source.directory} has captions of up to {longest} tokens, and the config "
                    f"takes {most}: --set text.max_length={longest}, or embed the corpus again by "
                    "imagen train --data CORPUS, which leaves out longer ones, or cuts them with "
                    "--long-captions truncate"
                )

    def identity(self, split: str) -> list[Any]:
        """Return [fingerprint, rate] of each source: what fixes its records, wherever they lie."""
        # Not the whole manifest's fingerprint: adding another split leaves this one as it is.
        return [
            [fingerprint([m["encoder"], m["states"], m["image_size"], m["splits"][split]]), rate]
            for m, rate in zip((s.manifest for s in self.sources), self.rates, strict=True)
        ]

    @functools.cached_property
    def manifest(self) -> Manifest:
        """The manifest of one source, or what a run should remember of several."""
        manifests = [source.manifest for source in self.sources]
        if len(manifests) == 1:
            return manifests[0]

        def mixture(split: str) -> dict[str, Any]:
            pairs = zip(manifests, self.rates, strict=True)
            parts = [{"rate": rate, "source": m["source"].get(split)} for m, rate in pairs]
            return {"name": "mixture", "parts": parts}

        splits = sorted({split for manifest in manifests for split in manifest["source"]})
        shared = ("format", "encoder", "states", "image_size")
        return {
            **{key: manifests[0][key] for key in shared},
            "source": {split: mixture(split) for split in splits},
        }


def open_data(data: str | os.PathLike[str]) -> EmbeddingData:
    """Open what `data` names.

    Args:
      data: an embedding directory; several with their rates, "DIR=RATE,DIR=RATE"; or the name of a
        registered task or mixture over such directories.

    Raises:
      UserError: see `load_manifest`; a rate that is no number above 0; a task that does not
        read an embedding directory; or directories whose encoder or size of images differ, which
        one stage cannot be trained on.
    """
    name = os.fspath(data)
    if name in seqio.TaskRegistry.names():
        found = [(seqio.TaskRegistry.get(name).source, 1.0)]
    elif name in seqio.MixtureRegistry.names():
        mixture = seqio.MixtureRegistry.get(name)
        found = [(task.source, float(mixture.get_rate(task))) for task in mixture.tasks]
    elif "=" in name and not as_path(name).is_dir():
        parts = [_directory_and_rate(part, name) for part in name.split(",")]
        found = [(EmbeddingShards(part), rate) for part, rate in parts]
    else:
        found = [(EmbeddingShards(name), 1.0)]
    sources, rates = zip(*found, strict=True)
    for source in sources:
        if not isinstance(source, EmbeddingShards):
            raise UserError(f"{name!r} names a task that does not read an embedding directory")
        for description in source.manifest["source"].values():
            check_rendering(description, source.directory)
        kept = ("encoder", "image_size", "states")
        there, here = ({key: s.manifest[key] for key in kept} for s in (sources[0], source))
        if lines := differences(there, here):
            raise UserError(
                f"{sources[0].directory} and {source.directory} cannot be mixed: "
                + "; ".join(lines)
            )
    return EmbeddingData(name, sources, rates)


def _directory_and_rate(part: str, whole: str) -> tuple[str, float]:
    directory, _, text = part.rpartition("=")
    try:
        rate = float(text)
    except ValueError:
        rate = 0.0
    if not directory or not 0 < rate < float("inf"):
        raise UserError(
            f"data {whole!r}: there is no such directory, and as a mixture each part must be "
            f"DIR=RATE with a rate above 0, which {part!r} is not"
        )
    return directory, rate
