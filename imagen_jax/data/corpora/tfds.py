"""Datasets of TensorFlow Datasets that are prepared on this machine."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any

from imagen_jax.data import records
from imagen_jax.data.corpora import storage
from imagen_jax.data.corpora.captions import CAPTION_KEYS, IMAGE_KEYS, at, choose_key
from imagen_jax.data.corpora.rows import Row, RowCorpus
from imagen_jax.errors import UserError


class TensorFlowDataset:
    """A split of a prepared dataset; `Rows` of a RowCorpus, in TFDS's order.

    Args:
      name: "NAME" or "NAME/CONFIG:VERSION", as tfds.builder takes it, or the folder of a dataset.
      split: such as "train"; None is the only one, or train.
      image_key, caption_key: features, such as "image" and "captions/text"; None looks for usual
        ones.
      data_dir: folder of the prepared dataset; None for TFDS's default.

    Raises:
      UserError: no such dataset, split or feature, or it is not prepared; names the choices.
    """

    def __init__(
        self,
        name: str,
        split: str | None,
        image_key: str | None = None,
        caption_key: str | None = None,
        data_dir: str | None = None,
    ):
        records.tensorflow()
        import tensorflow_datasets as tfds

        try:
            self._builder = (
                tfds.builder_from_directory(name)
                if storage.is_folder(name)
                else tfds.builder(name, data_dir=data_dir and os.path.expanduser(data_dir))
            )
        except tfds.core.DatasetNotFoundError as error:
            raise UserError(f"no dataset {name!r} in tensorflow_datasets") from error
        except (ValueError, OSError, RuntimeError, ImportError) as error:
            said = next(iter(str(error).splitlines()), type(error).__name__)
            raise UserError(f"the dataset {name!r} cannot be opened: {said}") from error
        self.full_name = self._builder.info.full_name
        splits = self._builder.info.splits
        if split is None:
            split = next(iter(splits)) if len(splits) == 1 else "train"
        if split not in splits:
            raise UserError(
                f"{self.full_name} has no split {split!r}; it has {sorted(splits)}. If it has "
                "none, prepare it first: tfds build, or builder.download_and_prepare()"
            )
        features = self._builder.info.features
        self.image_key = choose_key(features, image_key, IMAGE_KEYS, "image", self.full_name)
        self.caption_key = choose_key(
            features, caption_key, CAPTION_KEYS, "caption", self.full_name
        )
        for key in (self.image_key, self.caption_key):
            if not _has(features, key):
                raise UserError(
                    f"{self.full_name} has no feature {key!r}; there are {sorted(features)}"
                )
        self.split = split

    def __len__(self) -> int:
        return int(self._builder.info.splits[self.split].num_examples)

    def rows(self, start: int, end: int) -> Iterator[Row]:
        """A part of the split.

        Raises:
          UserError: its files are damaged.
        """
        import tensorflow_datasets as tfds

        tf = records.tensorflow()
        from imagen_jax.data.damage import first_line

        if start >= end:
            return
        dataset = self._builder.as_dataset(
            split=f"{self.split}[{start}:{end}]",
            decoders={self.image_key: tfds.decode.SkipDecoding()},
            read_config=tfds.ReadConfig(interleave_cycle_length=1, try_autocache=False),
        )
        try:
            for number, example in enumerate(dataset.as_numpy_iterator(), start):
                image, captions = _in(example, self.image_key), _in(example, self.caption_key)
                yield Row(f"{self.split}/{number}", image, captions, "")
        except tf.errors.OpError as error:
            raise UserError(f"{self.full_name} is damaged: {first_line(error)}") from error


def tfds_corpus(
    name: str,
    split: str | None,
    image_key: str | None,
    caption_key: str | None,
    data_dir: str | None,
    encoding: str,
) -> RowCorpus:
    """A prepared dataset as a corpus; arguments as TensorFlowDataset has them."""
    rows = TensorFlowDataset(name, split, image_key, caption_key, data_dir)
    description = {
        "name": "tfds", "dataset": rows.full_name, "split": rows.split,
        "image_key": rows.image_key, "caption_key": rows.caption_key,
    }  # fmt: skip
    summary = (
        f"split {rows.split!r} of TensorFlow Datasets' {rows.full_name}: {len(rows):,} examples, "
        f"images in {rows.image_key!r}, captions in {rows.caption_key!r}"
    )
    return RowCorpus(rows, description, summary, encoding)


def _has(features: Any, key: str) -> bool:
    return _in(features, key) is not None


def _in(value: Any, key: str) -> Any:
    """The value at a path of keys, through TFDS's features as through mappings."""
    if at(value, key) is not None:
        return at(value, key)
    for part in key.split("/"):
        try:
            value = value[part]
        except (KeyError, TypeError, IndexError):
            return None
    return value
