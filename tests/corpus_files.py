"""Small corpora of every kind, for the tests of what reads and embeds them."""

from __future__ import annotations

import csv
import io
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
import pyarrow.parquet
import tensorflow as tf
import tiny
from PIL import Image

from imagen_jax.data.corpora import CorpusExample
from imagen_jax.embed import embed

SIZE = 8
CAPTIONS = ["a red dog", "two blue cats", "a red dog", "one tree"]


def pixels(index: int, height: int = SIZE, width: int = SIZE) -> np.ndarray:
    return np.random.default_rng(index).integers(0, 256, (height, width, 3), np.uint8)


def encoded(array: np.ndarray, kind: str = "PNG", **options: Any) -> bytes:
    file = io.BytesIO()
    Image.fromarray(array).save(file, kind, **options)
    return file.getvalue()


IMAGES = [encoded(pixels(i), "JPEG" if i % 2 else "PNG") for i in range(len(CAPTIONS))]


def write_tfrecords(directory: Path) -> None:
    """Two files as img2dataset writes them."""

    def feature(value: Any) -> tf.train.Feature:
        if isinstance(value, int):
            return tf.train.Feature(int64_list=tf.train.Int64List(value=[value]))
        return tf.train.Feature(bytes_list=tf.train.BytesList(value=[value]))

    for i in range(2):
        with tf.io.TFRecordWriter(str(directory / f"{i:05d}.tfrecord")) as writer:
            for j in range(2):
                n = 2 * i + j
                values = {
                    "key": f"{n:09d}".encode(), "jpg": IMAGES[n], "txt": CAPTIONS[n].encode(),
                    "caption": CAPTIONS[n].encode(), "width": SIZE, "status": b"success",
                }  # fmt: skip
                features = tf.train.Features(feature={k: feature(v) for k, v in values.items()})
                writer.write(tf.train.Example(features=features).SerializeToString())


def write_tars(directory: Path) -> None:
    for i in range(2):
        with tarfile.open(directory / f"{i:05d}.tar", "w") as tar:
            for j in range(2):
                n = 2 * i + j
                for extension, content in (
                    ("jpg", IMAGES[n]), ("json", b"{}"), ("txt", CAPTIONS[n].encode())
                ):  # fmt: skip
                    member = tarfile.TarInfo(f"{n:09d}.{extension}")
                    member.size = len(content)
                    tar.addfile(member, io.BytesIO(content))


def write_csv(directory: Path) -> None:
    with (directory / "table.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["image", "caption", "other"])
        for n, caption in enumerate(CAPTIONS):
            (directory / f"{n}.png").write_bytes(IMAGES[n])
            writer.writerow([f"{n}.png", caption, "a, b\nc"])


def write_parquet(directory: Path) -> None:
    table = pyarrow.table({"image": IMAGES, "caption": CAPTIONS})
    pyarrow.parquet.write_table(table, directory / "table.parquet", row_group_size=3)


def write_tfds(directory: Path) -> None:
    import tensorflow_datasets as tfds

    features = tfds.features.FeaturesDict(
        {
            "image": tfds.features.Image(),
            "captions": tfds.features.Sequence({"text": tf.string}),
            "label": tf.int64,
        }
    )
    tfds.dataset_builders.store_as_tfds_dataset(
        name="pairs", version="1.0.0", features=features, data_dir=directory,
        split_datasets={"train": [
            (n, {"image": pixels(n), "captions": {"text": [caption]}, "label": n})
            for n, caption in enumerate(CAPTIONS)
        ]},
    )  # fmt: skip


KINDS = {
    "tfrecords": (write_tfrecords, lambda d: [f"{d}/*.tfrecord"]),
    "webdataset": (write_tars, lambda d: [f"{d}/{{00000..00001}}.tar"]),
    "csv": (write_csv, lambda d: [f"{d}/table.csv", "--shards", "2"]),
    "parquet": (write_parquet, lambda d: [f"{d}/table.parquet", "--shards", "2"]),
    "tfds": (write_tfds, lambda d: ["pairs:train", "--kind", "tfds", "--data-dir", str(d),
                                    "--shards", "2", "--caption-key", "captions/text"]),
}  # fmt: skip


class Pairs:
    """A corpus from a list."""

    def __init__(self, *pairs: tuple[str, bytes | None]):
        self.pairs = pairs

    def examples_of_shard(self, shard: int, num_shards: int) -> Any:
        for i in range(shard, len(self.pairs), num_shards):
            yield CorpusExample(str(i), *self.pairs[i])

    def describe(self) -> dict[str, Any]:
        return {"name": "pairs", "count": len(self.pairs)}


GOOD = encoded(pixels(0))


def embed_pairs(
    directory: Path, *pairs: tuple[str, bytes | None], **options: Any
) -> dict[str, Any]:
    defaults = {"split": "train", "image_size": SIZE, "num_shards": 1}
    return embed(Pairs(*pairs), directory, encoder=tiny.encoder(), **{**defaults, **options})  # type: ignore[return-value]
