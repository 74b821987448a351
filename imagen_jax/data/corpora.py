"""Corpora of captioned images as sources: TFRecords, tar files, TensorFlow Datasets.

Files are divided over the shards whole, in the order of their names, so that a shard is the same
whenever it is read and reads nothing of others. Examples of TensorFlow Datasets are divided by
their numbers. For tables see `tables`.
"""

from __future__ import annotations

import glob
import lzma
import os
import tarfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from imagen_jax.data import records
from imagen_jax.data.choices import DAMAGED_FILES
from imagen_jax.data.sources import DamagedFile
from imagen_jax.errors import UserError
from imagen_jax.files import fingerprint

IMAGE_KEYS = ("jpg", "jpeg", "png", "webp", "image")
CAPTION_KEYS = ("txt", "caption", "text")
"""Names that are looked for, the first that is there; img2dataset writes jpg, txt and caption."""
_READ = 2**20


class CorpusExample(NamedTuple):
    """An example of a corpus.

    Attributes:
      id: file and key within it.
      caption: the text; empty if there is none.
      image: encoded image; None if there is none.
    """

    id: str
    caption: str
    image: bytes | None


class DamagedFileError(UserError):
    """A file that cannot be read to its end.

    Attributes:
      fault: what is wrong with it.
    """

    def __init__(self, path: Path, fault: object):
        super().__init__(f"{path} is damaged: {fault}")
        self.fault = str(fault)


class Files:
    """Files that hold many examples each; a `Source`.

    Args:
      name: of the kind of corpus, for its description.
      pattern: of the files, such as "laion/*.tar".
      read: (path, names of images, names of captions) -> its examples, with ids that are unique
        in the file; raises DamagedFileError.
      image_keys, caption_keys: names of images and captions, in order of preference.
      damaged: one of choices.DAMAGED_FILES: "stop" is an error at the first damaged file; "drop"
        yields, where the damage begins, a DamagedFile in place of the rest of the file.

    Raises:
      UserError: no file matches; `damaged` is none of the choices.
    """

    def __init__(
        self,
        name: str,
        pattern: str,
        read: Callable[[Path, Sequence[str], Sequence[str]], Iterator[CorpusExample]],
        image_keys: Sequence[str] = IMAGE_KEYS,
        caption_keys: Sequence[str] = CAPTION_KEYS,
        damaged: str = DAMAGED_FILES[0],
    ):
        if damaged not in DAMAGED_FILES:
            raise UserError(f"damaged is {damaged!r}; choices: {', '.join(DAMAGED_FILES)}")
        self.files = [Path(path) for path in sorted(set(glob.glob(pattern, recursive=True)))]
        if not self.files:
            raise UserError(f"no file matches {pattern!r}")
        folder = os.path.commonpath([path.parent for path in self.files])
        self._names = [os.path.relpath(path, folder) for path in self.files]
        stems = [os.path.splitext(name)[0] for name in self._names]
        self._prefixes = stems if len(set(stems)) == len(stems) else self._names
        self._name = name
        self._read = read
        self._image_keys = tuple(image_keys)
        self._caption_keys = tuple(caption_keys)
        self._damaged = damaged

    def examples_of_shard(
        self, shard: int, num_shards: int
    ) -> Iterator[CorpusExample | DamagedFile]:
        """The examples of a shard's files.

        Their ids begin with the file's path from the folder of all files, without its extension.

        Raises:
          UserError: at once: more shards than files; on iteration: a damaged file; names it.
        """
        if num_shards > len(self.files):
            raise UserError(
                f"{num_shards} shards of {len(self.files)} files: files are not divided; choose at "
                f"most {len(self.files)} shards"
            )
        start, end = (len(self.files) * edge // num_shards for edge in (shard, shard + 1))
        return self._examples(range(start, end))

    def _examples(self, numbers: range) -> Iterator[CorpusExample | DamagedFile]:
        for i in numbers:
            try:
                for example in self._read(self.files[i], self._image_keys, self._caption_keys):
                    yield example._replace(id=f"{self._prefixes[i]}/{example.id}")
            except DamagedFileError as error:
                if self._damaged != "drop":
                    raise UserError(
                        f"{error}; to leave out what cannot be read of such files, counted and "
                        "listed: --damaged-files drop"
                    ) from error
                yield DamagedFile(self._names[i], error.fault)

    def describe(self) -> dict[str, Any]:
        """The kind, and a hash over names and sizes of the files.

        What is done with damaged ones is not in it: a job that has stopped at one may go on.
        """
        sizes = [
            [name, path.stat().st_size] for name, path in zip(self._names, self.files, strict=True)
        ]
        return {
            "name": self._name,
            "files": len(self.files),
            "bytes": sum(size for _, size in sizes),
            "sha256": fingerprint(sizes),
            "image_keys": list(self._image_keys),
            "caption_keys": list(self._caption_keys),
        }


def read_tfrecord(
    path: Path, image_keys: Sequence[str], caption_keys: Sequence[str]
) -> Iterator[CorpusExample]:
    """Examples of a TFRecord file of tf.train.Examples, as img2dataset writes it.

    Raises:
      DamagedFileError: where the damage begins.
    """
    tf = records.tensorflow()
    from google.protobuf.message import DecodeError

    from imagen_jax.data.damage import first_line

    try:
        for number, serialized in enumerate(tf.data.TFRecordDataset(str(path)).as_numpy_iterator()):
            try:
                features = tf.train.Example.FromString(serialized).features.feature
            except DecodeError as error:
                fault = f"record {number} is no tf.train.Example ({error})"
                raise DamagedFileError(path, fault) from error
            values = {
                name: feature.bytes_list.value[0]
                for name, feature in features.items()
                if feature.bytes_list.value
            }
            key = values.get("key", str(number).encode()).decode(errors="replace")
            caption = (_first(values, caption_keys) or b"").decode(errors="replace")
            yield CorpusExample(key, caption, _first(values, image_keys) or None)
    except tf.errors.DataLossError as error:
        raise DamagedFileError(path, first_line(error)) from error


def read_tar(
    path: Path, image_keys: Sequence[str], caption_keys: Sequence[str]
) -> Iterator[CorpusExample]:
    """Examples of a tar file in WebDataset's form: files of one example differ after the first dot.

    Raises:
      DamagedFileError: where the damage begins; the last example before it may be incomplete and
        is not given out.
    """
    key, parts = "", dict[str, bytes]()

    def example() -> CorpusExample:
        caption = _first(parts, caption_keys) or b""
        return CorpusExample(key, caption.decode(errors="replace"), _first(parts, image_keys))

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
            _check_end(tar)
    except OSError as error:
        if error.errno is not None:  # of the system, such as a missing permission
            raise OSError(error.errno, error.strerror, str(path)) from error
        raise DamagedFileError(path, error) from error
    except (tarfile.TarError, EOFError, ValueError, zlib.error, lzma.LZMAError) as error:
        raise DamagedFileError(path, error) from error
    if parts:
        yield example()


def _check_end(tar: tarfile.TarFile) -> None:
    """Raises unless the file ends where reading has: Python stops at a damaged header, too."""
    file = tar.fileobj
    assert file is not None  # of an open archive
    file.seek(tar.offset)
    end = file.read(tarfile.BLOCKSIZE)
    if len(end) < tarfile.BLOCKSIZE:
        raise tarfile.ReadError(f"cut off at byte {tar.offset}: no end-of-archive block")
    if any(end):
        raise tarfile.ReadError(f"damaged header at byte {tar.offset}")
    while end := file.read(_READ):
        if any(end):
            raise tarfile.ReadError(f"data behind the end-of-archive block at byte {tar.offset}")


def _first(values: dict[str, bytes], keys: Sequence[str]) -> bytes | None:
    return next((values[key] for key in keys if key in values), None)


class TensorFlowDataset:
    """A dataset of tensorflow_datasets that is prepared on this machine; a `Source`.

    Args:
      name: "NAME" or "NAME/CONFIG:VERSION", as tfds.builder takes it.
      split: such as "train".
      image_key, caption_key: features, such as "image" and "captions/text"; of several captions
        the first is taken.
      data_dir: where it was prepared; None for TFDS's own default.

    Raises:
      UserError: no such dataset, split or feature, or it is not prepared; names the choices.
    """

    def __init__(
        self, name: str, split: str, image_key: str, caption_key: str, data_dir: str | None = None
    ):
        records.tensorflow()
        import tensorflow_datasets as tfds

        try:
            self._builder = tfds.builder(name, data_dir=data_dir)
        except tfds.core.DatasetNotFoundError as error:
            raise UserError(f"no dataset {name!r} in tensorflow_datasets") from error
        splits = self._builder.info.splits
        if split not in splits:
            raise UserError(
                f"{self._builder.info.full_name} has no split {split!r}; it has {sorted(splits)}. "
                "If it has none, prepare it first: tfds build, or builder.download_and_prepare()"
            )
        for key in (image_key, caption_key):
            features: Any = self._builder.info.features
            for part in key.split("/"):
                if part not in features:
                    raise UserError(
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
            if not isinstance(caption, bytes):
                raise UserError(
                    f"{self._builder.info.full_name}: feature {self._caption_key!r} holds no "
                    f"strings, but {caption!r}"
                )
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
