"""A folder of images: one file for each image of some requests, never mixed with another run's.

    with Folder("samples", [request]) as folder:
        folder.make(cascade)
        folder.save_grid()

A run that was stopped resumes: images that are there with the same record are not made again. What
another run wrote is never replaced, and no two processes write into one folder at a time.
"""

from __future__ import annotations

import contextlib
import csv
import functools
import re
import tempfile
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

import numpy as np

from imagen_jax.buckets import BucketPath
from imagen_jax.cascade.files import BLACK, FORMATS, read_record, save_image
from imagen_jax.cascade.images import read_image
from imagen_jax.cascade.request import Request
from imagen_jax.cascade.run import Finished
from imagen_jax.errors import UserError
from imagen_jax.files import atomic_path, only_writer, unused_name
from imagen_jax.grid import labelled_grid
from imagen_jax.paths import as_path, those_there
from imagen_jax.progress import progress

if TYPE_CHECKING:
    from imagen_jax.cascade.cascade import Cascade

GRID = "grid.png"
CAPTIONS = "metadata.csv"
PROCESSES = ".processes"
"""Holds a lock for each of several processes that share the work."""
CHUNK = 64
"""Images that go through all stages together."""
SHOWN = 64
"""Most images of a grid."""


class Folder:
    """Images of requests in a directory, 0000.png, 0001.png, ..., in the order of the requests.

    Attributes:
      directory: the directory, made when it is entered.
      paths: paths of all images, whether they are there or not.
      written: paths of those that were written by this object.
    """

    def __init__(
        self,
        directory: str | Path,
        requests: Sequence[Request],
        file_format: str = "png",
        share: tuple[int, int] = (0, 1),
    ):
        """Args:
        directory: path of the folder.
        requests: the requests.
        file_format: one of files.FORMATS.
        share: (which of several processes this is, how many there are): they take chunks in turn,
          and each writes its own images alone.

        Raises:
          UserError: an unknown format.
        """
        if file_format not in FORMATS:
            raise UserError(f"format is {file_format!r}; choices: {', '.join(FORMATS)}")
        self.directory = as_path(directory)
        self.requests = list(requests)
        self.written: list[Path] = []
        count = sum(map(len, self.requests))
        self.paths = [self.directory / f"{i:04d}.{file_format}" for i in range(count)]
        self._share = share
        self._claim: contextlib.ExitStack | None = None
        self._earlier: list[tuple[int, Finished]] = []

    @classmethod
    def unused(
        cls, name: str | Path, requests: Sequence[Request], file_format: str = "png"
    ) -> Folder:
        """Return the folder `name`, or name-2, name-3 and so on: the first that has no other run's
        images and that no other process writes into. It is entered."""
        number = 1
        while True:
            path = as_path(name if number == 1 else f"{name}-{number}")
            folder = cls(path, requests, file_format)
            try:
                return folder.__enter__()
            except UserError:
                number += 1

    def __enter__(self) -> Folder:
        """Make the directory, and claim it.

        Raises:
          OSError: it cannot be written to.
          UserError: it has images of another run, or another process writes into it.
        """
        if self._claim is not None:
            return self
        with contextlib.ExitStack() as opened:
            index, count = self._share
            lock = self.directory if count == 1 else self.directory / PROCESSES / f"{index:05d}"
            opened.enter_context(only_writer(lock, "imagen sample"))
            if not isinstance(self.directory, BucketPath):  # where the lock was written just now
                with tempfile.TemporaryFile(dir=self.directory):
                    pass  # or an OSError now, and not after the first batch
            self._check()
            own = self._own()
            for part in self.directory.glob("[0-9][0-9][0-9][0-9]*.*.tmp"):
                number = part.name.partition(".")[0]
                if number.isdecimal() and (count == 1 or int(number) in own):
                    part.unlink()  # a killed run's: nobody else writes these
            self._claim = opened.pop_all()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        where: TracebackType | None,
    ) -> None:
        if self._claim is not None:
            self._claim.close()
            self._claim = None

    def make(
        self, cascade: Cascade, *, batch_size: int | None = None, show_progress: bool = True
    ) -> None:
        """Make the images that are missing, CHUNK at a time, and write each when it is done.

        Chunks are always the same, so that images do not depend on where an earlier run stopped.

        Args:
          cascade: cascade that the requests were made for.
          batch_size: see Cascade.run.
          show_progress: draw a bar of images, or of the steps of each stage where there is one
            chunk alone.
        """
        chunks = self._chunks()
        many = len(chunks) > 1
        hidden = not (many and show_progress)
        there = those_there(self.paths)  # nobody else writes this process's
        total = sum(stop - start for _, start, stop in chunks)
        with progress(total, "images", "images", disable=hidden) as bar:
            for request, start, stop in chunks:
                first = self._starts()[request] + start
                part = self.requests[request].rows(start, stop)
                paths = self.paths[first : first + len(part)]
                if not there.issuperset(paths):
                    self._earlier = []
                    cascade.run(
                        part, batch_size=batch_size, show_progress=show_progress and not many,
                        on_finished=functools.partial(self.write, first),
                    )  # fmt: skip
                bar.update(len(part))
        self._earlier = []

    def save_grid(self, columns: int = 4) -> Path:
        """Write grid.png of the first images, at most SHOWN, labelled with their prompts."""
        prompts = [str(prompt) for request in self.requests for prompt in request.prompts]
        return self.draw_grid(GRID, 0, prompts[:SHOWN], columns)

    def save_captions(self) -> Path:
        """Write metadata.csv, which makes the folder a corpus: the prompt of each image."""
        path = self.directory / CAPTIONS
        prompts = [str(prompt) for request in self.requests for prompt in request.prompts]
        with atomic_path(path) as part, open(part, "w", encoding="utf-8", newline="") as file:
            table = csv.writer(file)
            table.writerow(["file_name", "text"])
            table.writerows(zip((at.name for at in self.paths), prompts, strict=True))
        return path

    def draw_grid(self, name: str, first: int, labels: Sequence[str], columns: int) -> Path:
        """Write a grid of the images from `first` on, as many as there are labels."""
        images = np.stack([read_image(path) for path in self.paths[first : first + len(labels)]])
        scale = max(1, 192 // images.shape[1])
        sheet = labelled_grid(images, labels, columns=min(len(labels), columns), scale=scale)
        path = self.directory / name
        with atomic_path(path) as part:
            sheet.save(part, format="png")
        return path

    def interrupted(self) -> str:
        """Write what earlier stages made of images that are not done; return what there is."""
        kept: list[Path] = []
        for first, done in self._earlier:
            for row, image in zip(done.rows, done.images, strict=True):
                path = self.paths[first + row]
                if path.is_file():
                    continue
                name, record = (
                    path.with_suffix(f".{done.stage}{path.suffix}"),
                    done.request.record(row),
                )
                if not _says(name, record):
                    name = save_image(image, record, unused_name(name))
                kept.append(name)
        there = len(those_there(self.paths))
        said = f"; {there} of {len(self.paths)} images are done"
        if there:
            said += f", in {self.directory}, and the same command resumes"
        if kept:
            said += (
                f"; {len(kept)} of earlier stages are kept, such as {kept[-1]}: --image enlarges it"
            )
        return said

    def _chunks(self) -> list[tuple[int, int, int]]:
        """Return (number of a request, start, stop) of this process's chunks of images."""
        index, count = self._share
        return [
            (number, start, min(start + CHUNK, len(request)))
            for number, request in enumerate(self.requests)
            for start in range(0, len(request), CHUNK)
        ][index::count]

    def _own(self) -> set[int]:
        """Return the numbers of this process's images."""
        starts = self._starts()
        return {
            starts[request] + row
            for request, start, stop in self._chunks()
            for row in range(start, stop)
        }

    def _starts(self) -> list[int]:
        """Return the number of each request's first image."""
        return np.cumsum([0, *map(len, self.requests)])[:-1].tolist()

    def write(self, first: int, done: Finished) -> None:
        """Write images of the last stage that are not there; keep those of others for interrupted.

        Args:
          first: number of the first image of their request.
          done: images of one stage.
        """
        if not done.is_last:
            self._earlier.append((first, done))
            return
        for row, image, black in zip(done.rows, done.images, done.black, strict=True):
            path = self.paths[first + row]
            if not path.is_file():
                record = done.request.record(row) | ({BLACK: black} if black else {})
                self.written.append(save_image(image, record, path))

    def black(self) -> list[str]:
        """Return for each image that is there why the safety checker made it black, "" where it did
        not: those of earlier runs, too."""
        if all(request.safety is None for request in self.requests):
            return []
        return [read_record(path).get(BLACK, "") for path in sorted(those_there(self.paths))]

    def _check(self) -> None:
        """Raise UserError unless all images that are there are those that are asked for; of other
        processes' images, the names are."""
        found = {p for p in self.directory.iterdir() if re.fullmatch(r"\d{4,}\.(png|webp)", p.name)}
        other = sorted(found - set(self.paths))
        grids = sorted([*self.directory.glob("grid*.png"), *self.directory.glob(CAPTIONS)])
        if grids and not found:
            other = grids
        at = dict(zip(self.paths, range(len(self.paths)), strict=True))
        starts, own = self._starts(), self._own()
        for path in sorted(found & {self.paths[i] for i in own}):
            which = int(np.searchsorted(starts, at[path], "right")) - 1
            if not _says(path, self.requests[which].record(at[path] - starts[which])):
                other.append(path)
                break
        if other:
            raise UserError(
                f"{self.directory} has images of another run, such as {other[0].name}, and nothing "
                "is overwritten; choose another folder"
            )


def _says(path: Path, record: dict[str, Any]) -> bool:
    """True for the file of an image that was made as a record says."""
    try:
        found = read_record(path)
        found.pop(BLACK, None)
        return found == record
    except UserError:
        return False
