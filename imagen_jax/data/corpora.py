"""Corpora of captioned pictures as sources: TFRecords, tar files, tables, TensorFlow Datasets.

Files are divided over the shards whole, in the order of their names, so that a shard is the same
whenever it is read and reads nothing of others. Rows of tables and examples of TensorFlow Datasets
are divided by their numbers.
"""

from __future__ import annotations

import csv
import glob
import hashlib
import tarfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from imagen_jax.data import records

IMAGE_KEYS = ("jpg", "jpeg", "png", "webp", "image")
CAPTION_KEYS = ("txt", "caption", "text")
"""Names that are looked for, the first that is there; img2dataset writes jpg, txt and caption."""


class CorpusExample(NamedTuple):
    """An example of a corpus.

    Attributes:
      id: file and key within it.
      caption: the text; empty if there is none.
      image: encoded picture; None if there is none.
    """

    id: str
    caption: str
    image: bytes | None


class Files:
    """Files that hold many examples each; a `Source`.

    Args:
      name: of the kind of corpus, for its description.
      pattern: of the files, such as "laion/*.tar".
      read: (path, names of pictures, names of captions) -> its examples.
      image_keys, caption_keys: names of pictures and captions, in order of preference.

    Raises:
      FileNotFoundError: no file matches.
    """

    def __init__(
        self,
        name: str,
        pattern: str,
        read: Callable[[Path, Sequence[str], Sequence[str]], Iterator[CorpusExample]],
        image_keys: Sequence[str] = IMAGE_KEYS,
        caption_keys: Sequence[str] = CAPTION_KEYS,
    ):
        self.files = [Path(path) for path in sorted(glob.glob(pattern, recursive=True))]
        if not self.files:
            raise FileNotFoundError(f"no file matches {pattern!r}")
        self._name = name
        self._read = read
        self._image_keys = tuple(image_keys)
        self._caption_keys = tuple(caption_keys)

    def examples_of_shard(self, shard: int, num_shards: int) -> Iterator[CorpusExample]:
        """The examples of a shard's files.

        Raises:
          ValueError: more shards than files, or a damaged file; names it.
        """
        if num_shards > len(self.files):
            raise ValueError(
                f"{num_shards} shards of {len(self.files)} files: files are not divided; choose at "
                f"most {len(self.files)} shards"
            )
        start, end = (len(self.files) * edge // num_shards for edge in (shard, shard + 1))
        for path in self.files[start:end]:
            yield from self._read(path, self._image_keys, self._caption_keys)

    def describe(self) -> dict[str, Any]:
        """The kind, and a hash over names and sizes of the files."""
        sizes = [[path.name, path.stat().st_size] for path in self.files]
        return {
            "name": self._name,
            "files": len(self.files),
            "bytes": sum(size for _, size in sizes),
            "sha256": records.json_fingerprint(sizes),
            "image_keys": list(self._image_keys),
            "caption_keys": list(self._caption_keys),
        }


def read_tfrecord(
    path: Path, image_keys: Sequence[str], caption_keys: Sequence[str]
) -> Iterator[CorpusExample]:
    """Examples of a TFRecord file of tf.train.Examples, as img2dataset writes it.

    Raises:
      ValueError: the file is damaged.
    """
    tf = records.tensorflow()
    try:
        for number, serialized in enumerate(tf.data.TFRecordDataset(str(path)).as_numpy_iterator()):
            features = tf.train.Example.FromString(serialized).features.feature
            values = {
                name: feature.bytes_list.value[0]
                for name, feature in features.items()
                if feature.bytes_list.value
            }
            key = values.get("key", str(number).encode()).decode(errors="replace")
            caption = (_first(values, caption_keys) or b"").decode(errors="replace")
            yield CorpusExample(f"{path.stem}/{key}", caption, _first(values, image_keys) or None)
    except tf.errors.DataLossError as error:
        raise ValueError(f"{path} is damaged: {error.message}") from error


def read_tar(
    path: Path, image_keys: Sequence[str], caption_keys: Sequence[str]
) -> Iterator[CorpusExample]:
    """Examples of a tar file in WebDataset's form: files of one example differ after the first dot.

    Raises:
      ValueError: the file is damaged.
    """
    key, parts = "", dict[str, bytes]()

    def example() -> CorpusExample:
        caption = _first(parts, caption_keys) or b""
        return CorpusExample(
            f"{path.stem}/{key}", caption.decode(errors="replace"), _first(parts, image_keys)
        )

    try:
        with tarfile.open(path) as tar:
            for member in tar:
                if not member.isfile():
                    continue
                folder, slash, name = member.name.rpartition("/")
                stem, _, extension = name.partition(".")
                if folder + slash + stem != key:
                    if parts:
                        yield example()
                    key, parts = folder + slash + stem, {}
                content = tar.extractfile(member)
                assert content is not None  # of a regular file
                parts[extension.lower()] = content.read()
    except (tarfile.TarError, OSError, EOFError) as error:
        raise ValueError(f"{path} is damaged: {error}") from error
    if parts:
        yield example()


def _first(values: dict[str, bytes], keys: Sequence[str]) -> bytes | None:
    return next((values[key] for key in keys if key in values), None)


class Table:
    """A CSV or parquet file with a row for each example; a `Source`.

    Args:
      path: the file, .csv or .parquet.
      image_column: holds paths of pictures, relative to the folder of the table, or, in parquet,
        encoded pictures.
      caption_column: holds captions.

    Raises:
      FileNotFoundError: there is no such file.
      ValueError: another kind of file, or a column is missing; names those there are.
    """

    def __init__(self, path: str | Path, image_column: str, caption_column: str):
        self._path = Path(path)
        self._columns = (image_column, caption_column)
        if not self._path.is_file():
            raise FileNotFoundError(f"no table {self._path}")
        if self._path.suffix not in (".csv", ".parquet"):
            raise ValueError(f"{self._path} must be a .csv or .parquet file")
        names = self._names()
        if missing := [column for column in self._columns if column not in names]:
            raise ValueError(f"{self._path} has no columns {missing}; it has {names}")
        self._count = self._rows()

    def examples_of_shard(self, shard: int, num_shards: int) -> Iterator[CorpusExample]:
        """A part of the rows, in their order."""
        start, end = (self._count * edge // num_shards for edge in (shard, shard + 1))
        rows = self._read_csv(start, end) if self._is_csv else self._read_parquet(start, end)
        for number, (image, caption) in enumerate(rows, start):
            if isinstance(image, str):
                file = self._path.parent / image
                image = file.read_bytes() if image and file.is_file() else None
            yield CorpusExample(f"{self._path.stem}/{number}", caption or "", image)

    def describe(self) -> dict[str, Any]:
        """The table's own hash; the pictures that it names are not looked at."""
        with self._path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        return {
            "name": "table", "rows": self._count, "sha256": digest, "columns": list(self._columns)
        }  # fmt: skip

    def __len__(self) -> int:
        return self._count

    @property
    def _is_csv(self) -> bool:
        return self._path.suffix == ".csv"

    def _names(self) -> list[str]:
        if self._is_csv:
            with self._path.open(newline="", encoding="utf-8") as file:
                return next(csv.reader(file), [])
        import pyarrow.parquet

        return pyarrow.parquet.read_schema(self._path).names

    def _rows(self) -> int:
        if self._is_csv:
            with self._path.open(newline="", encoding="utf-8") as file:
                return max(0, sum(1 for _ in csv.reader(file)) - 1)
        import pyarrow.parquet

        return pyarrow.parquet.read_metadata(self._path).num_rows

    def _read_csv(self, start: int, end: int) -> Iterator[tuple[str, str]]:
        with self._path.open(newline="", encoding="utf-8") as file:
            for number, row in enumerate(csv.DictReader(file)):
                if number >= end:
                    return
                if number >= start:
                    yield row[self._columns[0]], row[self._columns[1]]

    def _read_parquet(self, start: int, end: int) -> Iterator[tuple[Any, str]]:
        import pyarrow.parquet

        file = pyarrow.parquet.ParquetFile(self._path)
        first = 0
        for group in range(file.num_row_groups):
            rows = file.metadata.row_group(group).num_rows
            if first < end and first + rows > start:
                table = file.read_row_group(group, columns=list(self._columns))
                skip = max(0, start - first)
                part = table.slice(skip, min(end - first, rows) - skip)
                images, captions = (part.column(name) for name in self._columns)
                for image, caption in zip(images, captions, strict=True):
                    yield image.as_py(), caption.as_py()
            first += rows


class TensorFlowDataset:
    """A dataset of tensorflow_datasets that is prepared on this machine; a `Source`.

    Args:
      name: "NAME" or "NAME/CONFIG:VERSION", as tfds.builder takes it.
      split: such as "train".
      image_key, caption_key: features, such as "image" and "captions/text"; of several captions
        the first is taken.
      data_dir: where it was prepared; None for TFDS's own default.

    Raises:
      ValueError: no such dataset, split or feature, or it is not prepared; names the choices.
    """

    def __init__(
        self, name: str, split: str, image_key: str, caption_key: str, data_dir: str | None = None
    ):
        records.tensorflow()
        import tensorflow_datasets as tfds

        try:
            self._builder = tfds.builder(name, data_dir=data_dir)
        except tfds.core.DatasetNotFoundError as error:
            raise ValueError(f"no dataset {name!r} in tensorflow_datasets") from error
        splits = self._builder.info.splits
        if split not in splits:
            raise ValueError(
                f"{self._builder.info.full_name} has no split {split!r}; it has {sorted(splits)}. "
                "If it has none, prepare it first: tfds build, or builder.download_and_prepare()"
            )
        for key in (image_key, caption_key):
            features: Any = self._builder.info.features
            for part in key.split("/"):
                if part not in features:
                    raise ValueError(
                        f"{self._builder.info.full_name} has no feature {key!r}; there are "
                        f"{sorted(features)}"
                    )
                features = features[part]
        self._split, self._image_key, self._caption_key = split, image_key, caption_key

    def examples_of_shard(self, shard: int, num_shards: int) -> Iterator[CorpusExample]:
        """A part of the split, in TFDS's order."""
        import tensorflow_datasets as tfds

        start, end = (len(self) * edge // num_shards for edge in (shard, shard + 1))
        dataset = self._builder.as_dataset(
            split=f"{self._split}[{start}:{end}]",
            decoders={self._image_key: tfds.decode.SkipDecoding()},
            read_config=tfds.ReadConfig(interleave_cycle_length=1, try_autocache=False),
        )
        for number, example in enumerate(dataset.as_numpy_iterator(), start):
            captions = np.ravel(_at(example, self._caption_key))
            caption = captions[0] if len(captions) else b""
            image = _at(example, self._image_key)
            yield CorpusExample(f"{self._split}/{number}", caption.decode(errors="replace"), image)

    def describe(self) -> dict[str, Any]:
        """Name with version, split and features."""
        return {
            "name": "tfds", "dataset": self._builder.info.full_name, "split": self._split,
            "image_key": self._image_key, "caption_key": self._caption_key, "count": len(self),
        }  # fmt: skip

    def __len__(self) -> int:
        return int(self._builder.info.splits[self._split].num_examples)


def _at(example: Any, key: str) -> Any:
    for part in key.split("/"):
        example = example[part]
    return example
