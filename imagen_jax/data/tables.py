"""A table of captions and images, CSV or parquet, as a source; shards are divided by row."""

from __future__ import annotations

import csv
import hashlib
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

from imagen_jax.data.corpora import CorpusExample
from imagen_jax.errors import UserError


class Table:
    """A CSV or parquet file with a row for each example; a `Source`.

    Args:
      path: the file, .csv or .parquet.
      image_column: holds paths of images, relative to the folder of the table, or, in parquet,
        encoded images or both, as {"bytes", "path"} of Hugging Face's datasets.
      caption_column: holds captions.

    Raises:
      UserError: there is no such file; another kind of file, a damaged one, a column that is
        missing (names those there are), or one that holds no captions or no images.
    """

    def __init__(self, path: str | Path, image_column: str, caption_column: str):
        self._path = Path(path)
        self._columns = (image_column, caption_column)
        if not self._path.is_file():
            raise UserError(f"no table {self._path}")
        if self._path.suffix not in (".csv", ".parquet"):
            raise UserError(f"{self._path} must be a .csv or .parquet file")
        self._count = self._csv_count() if self._is_csv else self._parquet_count()

    def examples_of_shard(self, shard: int, num_shards: int) -> Iterator[CorpusExample]:
        """A part of the rows, in their order; ids are the table's name and numbers of rows.

        Raises:
          UserError: the file is damaged; names it.
        """
        start, end = (self._count * edge // num_shards for edge in (shard, shard + 1))
        rows = self._csv_rows(start, end) if self._is_csv else self._parquet_rows(start, end)
        for number, (image, caption) in enumerate(rows, start):
            if isinstance(image, dict):
                image = image.get("path") if image["bytes"] is None else image["bytes"]
            if isinstance(image, str):
                file = self._path.parent / image
                image = file.read_bytes() if image and file.is_file() else None
            yield CorpusExample(f"{self._path.stem}/{number}", caption or "", image)

    def describe(self) -> dict[str, Any]:
        """The table's own hash; the images that it names are not looked at."""
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

    def _check_columns(self, names: list[str]) -> None:
        if missing := [column for column in self._columns if column not in names]:
            raise UserError(f"{self._path} has no columns {missing}; it has {names}")

    # CSV

    def _csv_lines(self) -> Iterator[list[str]]:
        """Lines that are not blank, of which the first has the names."""
        with self._path.open(newline="", encoding="utf-8") as file:
            try:
                yield from filter(None, csv.reader(file))
            except (csv.Error, UnicodeDecodeError) as error:
                raise UserError(f"{self._path} is no CSV in UTF-8: {error}") from error

    def _csv_count(self) -> int:
        lines = self._csv_lines()
        self._check_columns(next(lines, []))
        return sum(1 for _ in lines)

    def _csv_rows(self, start: int, end: int) -> Iterator[tuple[str, str]]:
        lines = self._csv_lines()
        names = next(lines)
        image, caption = (names.index(column) for column in self._columns)
        for line in islice(lines, start, end):
            line += [""] * (len(names) - len(line))  # a short line has no image or no caption
            yield line[image], line[caption]

    # parquet

    def _parquet_count(self) -> int:
        import pyarrow
        import pyarrow.parquet

        try:
            metadata = pyarrow.parquet.read_metadata(self._path)
        except pyarrow.ArrowException as error:
            raise UserError(f"{self._path} is no parquet file: {error}") from error
        schema = metadata.schema.to_arrow_schema()
        self._check_columns(schema.names)
        image, caption = (schema.field(column).type for column in self._columns)
        if pyarrow.types.is_struct(image) and image.get_field_index("bytes") >= 0:
            image = image.field("bytes").type
        if not (_is_text(image) or _is_binary(image)):
            raise UserError(
                f"{self._path}: column {self._columns[0]!r} holds {image}; it must hold images: "
                "binary, paths as string, or struct<bytes: binary, path: string>"
            )
        if not _is_text(caption):
            raise UserError(
                f"{self._path}: column {self._columns[1]!r} holds {caption}; captions must be "
                "string"
            )
        return metadata.num_rows

    def _parquet_rows(self, start: int, end: int) -> Iterator[tuple[Any, str | None]]:
        import pyarrow
        import pyarrow.parquet

        file = pyarrow.parquet.ParquetFile(self._path)
        first = 0
        for group in range(file.num_row_groups):
            rows = file.metadata.row_group(group).num_rows
            if first < end and first + rows > start:
                try:
                    table = file.read_row_group(group, columns=list(self._columns))
                except (pyarrow.ArrowException, OSError) as error:
                    raise UserError(f"{self._path} is damaged: {error}") from error
                skip = max(0, start - first)
                part = table.slice(skip, min(end - first, rows) - skip)
                images, captions = (part.column(name) for name in self._columns)
                for image, caption in zip(images, captions, strict=True):
                    yield image.as_py(), caption.as_py()
            first += rows


def _is_text(kind: Any) -> bool:
    import pyarrow.types as types

    if types.is_dictionary(kind):
        kind = kind.value_type
    return types.is_string(kind) or types.is_large_string(kind)


def _is_binary(kind: Any) -> bool:
    import pyarrow.types as types

    return types.is_binary(kind) or types.is_large_binary(kind) or types.is_fixed_size_binary(kind)
