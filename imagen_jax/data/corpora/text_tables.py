"""CSV, TSV and JSON lines: tables of text, read by row from any row on.

A file is read through once when it is opened, to count its rows and remember where every
INDEX_EVERY-th begins, and then once more by the shards. What is not plain UTF-8 on this machine
(another encoding, gzip, an address, old Macintosh line ends) is first copied to a temporary file.
"""

from __future__ import annotations

import codecs
import csv
import hashlib
import io
import lzma
import re
import tempfile
import zlib
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from itertools import islice
from typing import IO, Any, NamedTuple

from imagen_jax.data.corpora import storage, unfolding
from imagen_jax.data.corpora.captions import load_json
from imagen_jax.errors import UserError

INDEX_EVERY = 1000
LOOKED_AT = 100
"""Rows of JSON that keys are looked for in: not every row has all."""
DELIMITERS = (",", ";", "\t", "|")
_BOM = codecs.BOM_UTF8
_READ = 2**20
_IMAGE_SUFFIX = re.compile(r"\.(jpe?g|png|webp|gif|bmp|tiff?|avif|heic)$", re.IGNORECASE)
_ADDRESS = re.compile(r"[a-z][a-z0-9]*://", re.IGNORECASE)
_EXCEL_DELIMITER = re.compile(r'"?sep=(.)"?', re.IGNORECASE)
_FIRST_END = re.compile(rb"\r\n|\r|\n")
_FAULTS = (
    ("new-line character", "carriage return in a cell without quotes"),
    ("field larger", "cell of more than 64 MiB"),
)

csv.field_size_limit(2**26)  # cells may hold images in base64


class Fault(NamedTuple):
    """A row that cannot be read as one: what is wrong with it."""

    reason: str
    detail: str


class Line(NamedTuple):
    """A row with the number of its line in the file, from 1."""

    number: int
    cells: dict[str, Any] | Fault


class TextTable:
    """A table of text.

    Args:
      place: the file.
      encoding: encoding of the file.

    Attributes:
      place: the file.
      columns: its columns, with an example of each; of JSON lines, the keys of the first.
      sha256: of its content.

    Raises:
      OSError: it cannot be read.
      UserError: it is empty, of another encoding, or has no header.
    """

    def __init__(self, place: str, encoding: str = "utf-8"):
        self.place = place
        self._file, plain = _plain_file(place, encoding)
        self._plain = plain
        self._start = len(_BOM) if self._read_start(3) == _BOM else 0
        self._first_line = 1
        self.columns: dict[str, Any] = {}
        self._open()
        self._index: list[tuple[int, int]] = []
        self._count = 0
        self.sha256 = ""

    def _open(self) -> None:
        """Finds the columns."""
        raise NotImplementedError

    def _lines(self, file: IO[bytes], offset: int, number: int) -> Iterator[tuple[int, Line]]:
        """(offset where it begins, row) from a row on."""
        raise NotImplementedError

    def _read_start(self, size: int) -> bytes:
        with self._opened() as file:
            return file.read(size)

    def _opened(self) -> IO[bytes]:
        return open(self._plain, "rb")

    def index(self, on_fault: str) -> None:
        """Counts the rows.

        Args:
          on_fault: "stop" or "drop".

        Raises:
          UserError: with "stop", the first row that is not one; names file and line.
        """
        if self._index:
            return
        with self._opened() as file:
            for offset, line in self._lines(file, self._start, self._first_line):
                if on_fault == "stop" and isinstance(line.cells, Fault):
                    raise UserError(
                        f"{self.place}, line {line.number}: {line.cells.reason}: "
                        f"{line.cells.detail}; to leave out such lines, counted and listed: "
                        "--damaged-files drop"
                    )
                if self._count % INDEX_EVERY == 0:
                    self._index.append((offset, line.number))
                self._count += 1
        with open(self._plain, "rb") as whole:
            self.sha256 = hashlib.file_digest(whole, "sha256").hexdigest()

    def __len__(self) -> int:
        return self._count

    def rows(self, start: int, end: int) -> Iterator[Line]:
        """Rows from `start` up to `end`."""
        if start >= end:
            return
        offset, number = self._index[start // INDEX_EVERY]
        with self._opened() as file:
            skip = start % INDEX_EVERY
            for i, (_, line) in enumerate(self._lines(file, offset, number)):
                if i >= skip + end - start:
                    return
                if i >= skip:
                    yield line


class Delimited(TextTable):
    """CSV or TSV; the first line names the columns. Before it may stand Excel's "sep=;".

    Attributes:
      twice: names that several columns have.

    Cells may be quoted and then hold delimiters and line breaks. A quote that opens and does not
    close, or closes inside a cell, makes a Fault of its line alone; lines are never merged into
    one row by it. In TSV such a line is taken without quoting if it has as many cells as columns.
    """

    def _open(self) -> None:
        with self._opened() as file:
            file.seek(self._start)
            header, number = b"", 0
            while not header.strip():
                header = file.readline()
                number += 1
                if not header:
                    raise UserError(f"{self.place} is empty")
            text = header.decode("utf-8", "surrogateescape").rstrip("\r\n")
            if told := _EXCEL_DELIMITER.fullmatch(text):
                text = file.readline().decode("utf-8", "surrogateescape").rstrip("\r\n")
                number += 1
                self._delimiter = told.group(1)
            elif re.search(r"\.(tsv|tab)(\.\w+)?$", self.place) and "\t" in text:
                self._delimiter = "\t"
            else:
                self._delimiter = max(DELIMITERS, key=text.count)
            further = text.split(self._delimiter)[1:]
            # "image, caption": then cells begin behind the space, and quotes, too.
            self._spaced = bool(further) and all(name.startswith(" ") for name in further)
            try:
                self._names = next(self._reader([text]))
            except (csv.Error, StopIteration) as error:
                raise UserError(
                    f"{self.place}, line {number}, which names the columns: {error}"
                ) from error
            self._names = [name.strip() for name in self._names]
            self.twice = {name for name, count in Counter(self._names).items() if count > 1}
            self._start = file.tell()
            self._first_line = number + 1
        self.columns = dict.fromkeys(self._names, "")

    def _reader(self, lines: Iterable[str]) -> Iterator[list[str]]:
        return csv.reader(
            lines, delimiter=self._delimiter, strict=True, skipinitialspace=self._spaced
        )

    def _lines(self, file: IO[bytes], offset: int, number: int) -> Iterator[tuple[int, Line]]:
        while True:
            feeder = _Feeder(file, offset, number)
            reader = self._reader(feeder)
            while True:
                offset, number = feeder.begin()
                try:
                    cells = next(reader)
                    several = len(feeder.pending) > 1
                    fault = self._merged(cells, feeder.pending) if several else ""
                except StopIteration:
                    return
                except csv.Error as error:
                    cells, fault = [], str(error)
                if fault:
                    yield offset, Line(number, self._without_quotes(feeder.pending[0], fault))
                    offset, number = offset + feeder.first_bytes, number + 1
                    break  # again from the next line
                if cells:
                    yield offset, Line(number, self._row(cells))

    def _row(self, cells: list[str]) -> dict[str, Any] | Fault:
        if len(cells) > len(self._names):
            if not any(cells[len(self._names) :]):  # delimiters at the end of the line
                cells = cells[: len(self._names)]
            else:
                return Fault(
                    "row of more cells than columns",
                    f"{len(cells)} cells, {len(self._names)} columns; a caption with "
                    f"{self._delimiter!r} in it must be quoted",
                )
        return dict(zip(self._names, cells, strict=False))

    def _merged(self, row: Sequence[str], lines: Sequence[str]) -> str:
        """Says so if what a quoted cell spans are rows: cells enough, and an image among them, or
        a number or an address where the row has one, too."""
        for line in lines[1:]:
            cells = line.rstrip('\r\n"').split(self._delimiter)
            if len(cells) == len(self._names) and (
                any(map(_IMAGE_SUFFIX.search, cells)) or any(map(_alike, row, cells))
            ):
                return "what follows its quote looks like further rows"
        return ""

    def _without_quotes(self, line: str, fault: str) -> dict[str, Any] | Fault:
        for words, reason in _FAULTS:
            if words in fault:
                return Fault(reason, "quote it, or end all lines alike")
        cells = line.rstrip("\r\n").split(self._delimiter)
        if self._delimiter == "\t" and len(cells) == len(self._names):
            return dict(zip(self._names, cells, strict=True))
        return Fault("a quote that does not close, or closes within a cell", fault)


def _alike(cell: str, other: str) -> bool:
    """True of two numbers and of two addresses."""
    return (cell.isdigit() and other.isdigit()) or bool(
        _ADDRESS.match(cell) and _ADDRESS.match(other)
    )


class _Feeder:
    """Lines of a file for csv.reader, with where a row began.

    Attributes:
      pending: lines of the row so far.
      first_bytes: size of the first of them.
    """

    def __init__(self, file: IO[bytes], offset: int, number: int):
        file.seek(offset)
        self._file = file
        self._offset, self._number = offset, number
        self.pending: list[str] = []
        self.first_bytes = 0

    def begin(self) -> tuple[int, int]:
        """A row begins: (offset, number of the line)."""
        self.pending = []
        return self._offset, self._number

    def __iter__(self) -> Iterator[str]:
        return self

    def __next__(self) -> str:
        line = self._file.readline()
        if not line:
            raise StopIteration
        if not self.pending:
            self.first_bytes = len(line)
        self._offset += len(line)
        self._number += 1
        text = line.decode("utf-8", "surrogateescape")
        self.pending.append(text)
        return text


class JsonLines(TextTable):
    """A JSON object on every line."""

    def _open(self) -> None:
        with self._opened() as file:
            for _, line in islice(self._lines(file, self._start, 1), LOOKED_AT):
                if isinstance(line.cells, dict):
                    self.columns = {**line.cells, **self.columns}
        if not self.columns:
            raise UserError(f"{self.place} is empty, or has no JSON object on its first lines")

    def begins_with_a_row(self) -> bool:
        """Is its first line, of those that are not blank, whole?"""
        with self._opened() as file:
            first = next(self._lines(file, self._start, 1), None)
        return first is not None and isinstance(first[1].cells, dict)

    def _lines(self, file: IO[bytes], offset: int, number: int) -> Iterator[tuple[int, Line]]:
        file.seek(offset)
        for i, line in enumerate(file, number):
            if line.strip():
                yield offset, Line(i, _parsed(line))
            offset += len(line)


def _parsed(line: bytes) -> dict[str, Any] | Fault:
    try:
        found = load_json(line.decode("utf-8", "surrogateescape"))
    except (ValueError, RecursionError) as error:
        return Fault("line is not JSON", str(error))
    if not isinstance(found, dict):
        return Fault("line is not a JSON object", f"{type(found).__name__}")
    return found


@contextmanager
def damage_named(place: str, encoding: str) -> Iterator[None]:
    """Turns what decompression and decoding raise into a UserError that names the file."""
    try:
        yield
    except UnicodeError as error:
        raise UserError(
            f"{place} is not in {encoding} ({error}); --encoding names another encoding"
        ) from error
    except (OSError, EOFError, lzma.LZMAError, zlib.error) as error:
        if isinstance(error, OSError) and error.errno is not None:  # of the system
            raise
        raise UserError(f"{place} is damaged: {error}") from error


def _has_old_ends(start: bytes) -> bool:
    """Does the first line end as on old Macintoshes? Line feeds may stand in cells then."""
    end = _FIRST_END.search(start)
    return end is not None and end.group() == b"\r"


def _plain_file(place: str, encoding: str) -> tuple[Any, str]:
    """(what keeps a temporary file, path of the file in UTF-8 on this machine)."""
    with unfolding.unfolded(place) as file, damage_named(place, encoding):
        start = file.read(2**16)
        if not start:
            raise UserError(f"{place} is empty")
        kind = storage.kind_of(start)
        if kind not in ("", "text", "compressed by gzip"):
            raise UserError(f"{place} is {kind}, and no table of text")
        utf8 = codecs.lookup(encoding).name in ("utf-8", "utf-8-sig", "ascii")
        utf16 = storage.utf16_of(start)
        if utf16 and utf8:
            marked = utf16 in ("utf-16", "utf-32")
            mark = f"the byte order mark of {utf16.upper()}" if marked else "letters of UTF-16"
            raise UserError(f"{place} begins with {mark}: --encoding {utf16} reads it")
        old_ends = utf8 and _has_old_ends(start)
        stored_plain = isinstance(file, io.BufferedReader) and not storage.is_remote(place)
        if utf8 and stored_plain and not old_ends:
            return None, place
        copy = tempfile.NamedTemporaryFile(prefix="imagen-jax-")  # noqa: SIM115, kept by the table
        file.seek(0)
        decoder = codecs.getincrementaldecoder(encoding)()
        part = b"-"
        while part:
            part = file.read(_READ)
            plain = part if utf8 else decoder.decode(part, final=not part).encode()
            if not copy.tell():
                old_ends = _has_old_ends(plain)
            copy.write(plain.replace(b"\r", b"\n") if old_ends else plain)
        copy.flush()
        return copy, copy.name
