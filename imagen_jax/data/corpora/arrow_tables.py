"""Parquet and Arrow files: tables of columns, read in order without holding a whole row group."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from typing import Any

from imagen_jax.data.corpora import storage
from imagen_jax.data.corpora.text_tables import Fault, Line
from imagen_jax.errors import UserError

BATCH_ROWS = 256
_FOOTER = 8  # length of the footer, and PAR1


class ArrowTable:
    """A parquet file, or an Arrow file or stream as Hugging Face's datasets keeps it.

    Args:
      place: the file.

    Attributes:
      place: the file.
      columns: its columns, with the type of each.
      twice: names that several columns have.
      wanted: the columns that rows are to have.
      text: the column whose text is given as bytes, whether or not they are UTF-8.
      sha256: of the footer of a parquet file, which has sizes, places and statistics of all its
        parts; of the schema and the number of rows of an Arrow file.

    Raises:
      OSError: it cannot be read.
      UserError: it is empty, damaged, or no such file.
    """

    def __init__(self, place: str):
        import pyarrow

        self.place = place
        if not storage.size(place):
            raise UserError(f"{place} is empty")
        try:
            self._parts = _Parquet(place) if is_parquet(place) else _Arrow(place)
        except (pyarrow.ArrowException, OSError, ValueError) as error:
            if isinstance(error, OSError) and error.errno is not None:
                raise
            said = next(iter(str(error).splitlines()), "")
            raise UserError(f"{place} {_not_read(place)}: {said}") from error
        self.columns: dict[str, Any] = {
            field.name: _shape(field.type) for field in self._parts.schema
        }
        names = Counter(field.name for field in self._parts.schema)
        self.twice = {name for name, count in names.items() if count > 1}
        self.sha256 = self._parts.sha256
        self._on_fault = "stop"
        self.wanted: list[str] = list(self.columns)
        self.text: str | None = None
        self._next: tuple[int, Generator[Line]] | None = None

    def index(self, on_fault: str) -> None:
        """Sets what is done with what cannot be read: "stop" or "drop"."""
        self._on_fault = on_fault

    def __len__(self) -> int:
        return sum(self._parts.counts)

    def rows(self, start: int, end: int) -> Iterator[Line]:
        """Rows from `start` up to `end`, with the columns `wanted`.

        A range that begins where the last one ended continues it: nothing is read twice.

        Raises:
          UserError: with "stop", a damaged part; with "drop" each of its rows is a Fault.
        """
        if self._next is not None and self._next[0] == start:
            lines = self._next[1]
        else:
            lines = self._lines(start)
        self._next = None  # while these rows are read
        for _ in range(start, end):
            yield next(lines)
        if end < len(self):
            self._next = (end, lines)
        else:
            lines.close()

    def _lines(self, start: int) -> Generator[Line]:
        with self._parts.opened() as opened:
            first = 0
            for part, count in enumerate(self._parts.counts):
                if first + count > start:
                    batches = self._parts.batches(opened, part, self.wanted)
                    yield from self._part(batches, first, first + count, start)
                first += count

    def _part(self, batches: Iterator[Any], first: int, end: int, start: int) -> Iterator[Line]:
        """Rows of a part, which are those from `first` to `end`, but none before `start`."""
        import pyarrow

        at = first
        said = "fewer rows than it says"
        try:
            for batch in batches:
                skip = max(0, start - at)
                if skip < batch.num_rows:
                    yield from _rows(batch.slice(skip), at + skip, self.text)
                at += batch.num_rows
        except (pyarrow.ArrowException, OSError, ValueError) as error:
            if isinstance(error, OSError) and error.errno is not None:
                raise
            said = next(iter(str(error).splitlines()), type(error).__name__)
        if at < end and self._on_fault == "stop":
            raise UserError(
                f"{self.place} is damaged in rows {at} to {end - 1}: {said}; to leave them out, "
                "counted and listed: --damaged-files drop"
            )
        for number in range(max(start, at), end):
            yield Line(number, Fault("rest of a damaged file", said))


def _rows(batch: Any, number: int, text: str | None) -> Iterator[Line]:
    columns = [(name, _untyped(batch.column(name), name == text)) for name in batch.schema.names]
    for i in range(batch.num_rows):
        try:
            yield Line(number + i, {name: column[i].as_py() for name, column in columns})
        except UnicodeDecodeError as error:
            yield Line(number + i, Fault("row is not in utf-8", str(error)))


def _untyped(column: Any, text_as_bytes: bool) -> Any:
    """A column without a dictionary; what is no UTF-8 is found where captions are decoded.

    Arrow does not look at what it reads: a damaged offset would end the process.

    Raises:
      pyarrow.ArrowInvalid: it is damaged.
    """
    import pyarrow

    if pyarrow.types.is_dictionary(column.type):
        column.validate(full=True)
        column = column.dictionary_decode()
    if text_as_bytes and pyarrow.types.is_string(column.type):
        column = column.cast(pyarrow.binary())
    elif text_as_bytes and pyarrow.types.is_large_string(column.type):
        column = column.cast(pyarrow.large_binary())
    column.validate(full=True)
    return column


def _shape(kind: Any) -> Any:
    """A stand-in for a value of a type, with its fields."""
    import pyarrow

    if pyarrow.types.is_struct(kind):
        return {field.name: _shape(field.type) for field in kind}
    if pyarrow.types.is_list(kind) or pyarrow.types.is_large_list(kind):
        return [_shape(kind.value_type)]
    return str(kind)


class _Parquet:
    """Row groups of a parquet file."""

    def __init__(self, place: str):
        self._place = place
        with self.opened() as opened:
            groups = [opened.metadata.row_group(i) for i in range(opened.num_row_groups)]
            self.counts = [group.num_rows for group in groups]
            self.schema = opened.schema_arrow
        size = storage.size(place)
        with storage.open_file(place) as file:
            file.seek(size - _FOOTER)
            length = int.from_bytes(file.read(4), "little")
            file.seek(max(0, size - _FOOTER - length))
            self.sha256 = hashlib.sha256(file.read(length)).hexdigest()

    @contextmanager
    def opened(self) -> Iterator[Any]:
        import pyarrow.parquet

        with storage.open_file(self._place) as file:
            yield pyarrow.parquet.ParquetFile(file)

    def batches(self, opened: Any, part: int, columns: list[str]) -> Iterator[Any]:
        return opened.iter_batches(BATCH_ROWS, row_groups=[part], columns=columns)


class _Arrow:
    """An Arrow file or stream as one part."""

    def __init__(self, place: str):
        self._place = place
        with self.opened() as opened:
            self.schema = _reader(opened).schema
            self.counts = [sum(batch.num_rows for batch in _arrow_batches(opened))]
        told = f"{self.schema}{self.counts}{storage.size(place)}"
        self.sha256 = hashlib.sha256(told.encode("utf-8", "surrogateescape")).hexdigest()

    @contextmanager
    def opened(self) -> Iterator[Any]:
        import pyarrow

        with storage.local_copy(self._place) as path, pyarrow.memory_map(str(path)) as file:
            yield file

    def batches(self, opened: Any, part: int, columns: list[str]) -> Iterator[Any]:
        for batch in _arrow_batches(opened):
            for start in range(0, batch.num_rows, BATCH_ROWS):
                yield batch.select(columns).slice(start, BATCH_ROWS)


def _reader(file: Any) -> Any:
    import pyarrow.ipc

    file.seek(0)
    is_file = bytes(file.read(6)) == b"ARROW1"
    file.seek(0)
    return (pyarrow.ipc.open_file if is_file else pyarrow.ipc.open_stream)(file)


def _arrow_batches(file: Any) -> Iterator[Any]:
    reader = _reader(file)
    if hasattr(reader, "num_record_batches"):
        for i in range(reader.num_record_batches):
            yield reader.get_batch(i)
    else:
        yield from reader


def _not_read(place: str) -> str:
    with storage.open_file(place) as file:
        start = file.read(512)
    if start.startswith((b"PAR1", b"ARROW1", b"\xff\xff\xff\xff")):
        return "is damaged"
    kind = storage.kind_of(start)
    return f"is no parquet or Arrow file; it is {kind}" if kind else "is no parquet or Arrow file"


def is_parquet(place: str) -> bool:
    """Does it begin and end as a parquet file?"""
    with storage.open_file(place) as file:
        return file.read(4) == b"PAR1"
