"""Tables of captions and images as a corpus: one or many files of one kind, by row."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Protocol

from imagen_jax.data.corpora import storage
from imagen_jax.data.corpora.arrow_tables import ArrowTable
from imagen_jax.data.corpora.captions import (
    CAPTION_KEYS,
    IMAGE_KEYS,
    at,
    check_encoding,
    choose_key,
)
from imagen_jax.data.corpora.json_tables import JsonTable, coco_folder, json_lines
from imagen_jax.data.corpora.rows import Row, RowCorpus
from imagen_jax.data.corpora.text_tables import (
    Delimited,
    Fault,
    JsonLines,
    Line,
    TextTable,
)
from imagen_jax.data.sources import Dropped
from imagen_jax.errors import UserError


class Table(Protocol):
    """One file of a table."""

    place: str
    columns: dict[str, Any]
    sha256: str

    def index(self, on_fault: str) -> None: ...
    def __len__(self) -> int: ...
    def rows(self, start: int, end: int) -> Iterator[Line]: ...


class Tables:
    """The rows of several tables one after another; `Rows` of a RowCorpus.

    Args:
      tables: tables of one kind.
      image_key, caption_key: columns, or paths with / in nested ones; None looks for usual names.
      image_folder: folder that image paths are relative to; None is the folder of each table.
      on_fault: treatment of broken rows, "stop" or "drop".

    Attributes:
      image_key, caption_key: the columns.
    """

    def __init__(
        self,
        tables: Sequence[Table],
        image_key: str | None,
        caption_key: str | None,
        image_folder: str | None,
        on_fault: str,
    ):
        first = tables[0]
        columns, where = first.columns, first.place
        if isinstance(first, Delimited):
            where += " (whose first line must name the columns)"
        self.image_key = choose_key(columns, image_key, IMAGE_KEYS, "image", where)
        self.caption_key = choose_key(columns, caption_key, CAPTION_KEYS, "caption", where)
        self._tables = tables
        self._folder = None if image_folder is None else storage.plain(image_folder)
        self._names = storage.names_of([table.place for table in tables])
        for table in tables:
            if not isinstance(table, JsonTable | JsonLines):  # whose keys may differ by row
                for key in (self.image_key, self.caption_key):
                    if _column(table, key) not in table.columns:
                        raise UserError(
                            f"{table.place} has no column {key!r}, which {first.place} has; it has "
                            f"{', '.join(map(repr, table.columns))}"
                        )
            if isinstance(table, ArrowTable):
                used = [_column(table, key) for key in (self.image_key, self.caption_key)]
                table.wanted = [name for name in table.columns if name in used]
                table.text = used[1]
            if isinstance(table, Delimited | ArrowTable):
                for key in (self.image_key, self.caption_key):
                    if _column(table, key) in table.twice:
                        raise UserError(
                            f"{table.place} has several columns {_column(table, key)!r}: rename "
                            "all but the one that is meant"
                        )
            table.index(on_fault)

    def __len__(self) -> int:
        return sum(map(len, self._tables))

    def rows(self, start: int, end: int) -> Iterator[Row | Dropped]:
        """See `Rows`."""
        first = 0
        for table, name in zip(self._tables, self._names, strict=True):
            a, b = max(start - first, 0), min(end - first, len(table))
            folder = self._folder
            if folder is None:
                folder = storage.folder_of(table.place)
                if isinstance(table, JsonTable) and table.coco:
                    folder = coco_folder(table, folder, self.image_key)
            for i, line in enumerate(table.rows(a, b) if a < b else (), a):
                number = f"{name}/{i}"
                if isinstance(line.cells, Fault):
                    place = "line" if isinstance(table, TextTable) else "row"
                    detail = f"{table.place}, {place} {line.number}: {line.cells.detail}"
                    yield Dropped(number, line.cells.reason, detail)
                else:
                    image = at(line.cells, self.image_key)
                    caption = at(line.cells, self.caption_key)
                    yield Row(number, image, caption, folder)
            first += len(table)


KIND_NAMES = {
    "csv": "CSV", "tsv": "TSV", "jsonl": "JSON lines", "json": "JSON",
    "coco": "COCO's annotations", "parquet": "parquet", "arrow": "Arrow",
}  # fmt: skip


def _column(table: Table, key: str) -> str:
    """The column that a key, or a path of keys, begins with."""
    return key if key in table.columns else key.partition("/")[0]


def table_corpus(
    places: Sequence[str],
    kind: str,
    image_key: str | None,
    caption_key: str | None,
    image_folder: str | None,
    encoding: str,
    on_fault: str,
) -> RowCorpus:
    """Tables as a corpus.

    Args:
      places: the files.
      kind: "csv", "tsv", "jsonl", "json", "coco", "parquet" or "arrow".
      image_key, caption_key, image_folder, on_fault: see Tables.
      encoding: encoding of text.

    Raises:
      UserError: see TextTable, ArrowTable, JsonTable and Tables.
    """
    check_encoding(encoding)
    made: list[Any] = []
    for place in places:
        if kind in ("csv", "tsv"):
            made.append(Delimited(place, encoding))
        elif kind == "jsonl":
            made.append(json_lines(place, encoding))
        elif kind in ("json", "coco"):
            made.append(JsonTable(place, encoding))
        else:
            made.append(ArrowTable(place))
    tables = Tables(made, image_key, caption_key, image_folder, on_fault)
    names = storage.names_of(places)
    description = {
        "name": kind,
        "tables": [[name, table.sha256] for name, table in zip(names, made, strict=True)],
        "image_key": tables.image_key,
        "caption_key": tables.caption_key,
    }
    files = places[0] if len(places) == 1 else f"{len(places)} files"
    summary = (
        f"{KIND_NAMES[kind]} {files}: {len(tables):,} rows, images in {tables.image_key!r}, "
        f"captions in {tables.caption_key!r}"
    )
    return RowCorpus(tables, description, summary, encoding)
