"""Corpora damaged at random: an error in one line, or every record given out or counted; no hang.

PYTHONPATH=tests python tests/fuzz_corpora.py --count 2000 --seed 0
"""

from __future__ import annotations

import argparse
import collections
import gzip
import json
import os
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
import pyarrow.parquet
import tiny
from corpus_files import encoded, pixels, write_tars, write_tfrecords

from imagen_jax.data.choices import DAMAGED_FILES
from imagen_jax.data.corpora import open_corpus
from imagen_jax.embed.prepare import Handling, prepare
from imagen_jax.errors import UserError

EXAMPLES, SECONDS = 4, 300
IMAGES = [encoded(pixels(i, 16, 16), kind) for i, kind in
          enumerate(("PNG", "JPEG", "WEBP", "GIF", "TIFF", "BMP", "AVIF"))]  # fmt: skip


def _rows(folder: Path) -> list[dict[str, str]]:
    for i in range(EXAMPLES):
        (folder / f"{i}.png").write_bytes(IMAGES[0])
    return [{"image": f"{i}.png", "caption": f'a "large" dog, {i}'} for i in range(EXAMPLES)]


def _csv(folder: Path) -> None:
    cells = [f'{row["image"]},"a ""large"" dog, {i}"' for i, row in enumerate(_rows(folder))]
    (folder / "t.csv").write_text("image,caption\n" + "\n".join(cells) + "\n")


def _tsv(folder: Path) -> None:
    cells = [f"{row['image']}\t{row['caption']}" for row in _rows(folder)]
    (folder / "t.tsv").write_text("image\tcaption\n" + "\n".join(cells) + "\n")


def _jsonl(folder: Path) -> None:
    (folder / "t.jsonl").write_text("".join(json.dumps(row) + "\n" for row in _rows(folder)))


def _json(folder: Path) -> None:
    (folder / "t.json").write_text(json.dumps(_rows(folder)))


def _table() -> pyarrow.Table:
    captions = [f"number {i}" for i in range(EXAMPLES)]
    return pyarrow.table({"image": [IMAGES[i % 7] for i in range(EXAMPLES)], "caption": captions})


def _parquet(folder: Path) -> None:
    pyarrow.parquet.write_table(_table(), folder / "t.parquet", row_group_size=3)


def _arrow(folder: Path) -> None:
    with pyarrow.ipc.new_stream(str(folder / "t.arrow"), _table().schema) as writer:
        writer.write_table(_table(), max_chunksize=3)


def _folder(folder: Path) -> None:
    for i in range(EXAMPLES):
        (folder / f"{i}.png").write_bytes(IMAGES[i])  # whatever it is
        (folder / f"{i}.txt").write_text(f"number {i}\n")


def _zipped(write: Callable[[Path], None], suffix: str) -> Callable[[Path], None]:
    def zipped(folder: Path) -> None:
        write(folder)
        for path in folder.glob(f"*{suffix}"):
            path.with_name(path.name + ".gz").write_bytes(gzip.compress(path.read_bytes()))
            path.unlink()

    return zipped


KINDS: dict[str, tuple[Callable[[Path], None], str, bool]] = {
    "tar": (write_tars, "*.tar", False),
    "tar.gz": (_zipped(write_tars, ".tar"), "*.tar.gz", False),
    "tfrecord": (write_tfrecords, "*.tfrecord", False),
    "tfrecord.gz": (_zipped(write_tfrecords, ".tfrecord"), "*.tfrecord.gz", False),
    "parquet": (_parquet, "*.parquet", True),
    "arrow": (_arrow, "*.arrow", True),
    "csv": (_csv, "*.csv", True),
    "csv.gz": (_zipped(_csv, ".csv"), "*.csv.gz", True),
    "tsv": (_tsv, "*.tsv", True),
    "jsonl": (_jsonl, "*.jsonl", True),
    "json": (_json, "*.json", True),
    "images": (_folder, "*.*", True),
}
"""Kind -> writer, files to damage, and True if rows are counted when opened."""


def damage(content: bytes, rng: np.random.Generator) -> bytes:
    """Bytes changed, cut off, left out, doubled or put in."""
    result = bytearray(content)
    place = int(rng.integers(len(result)))
    match int(rng.integers(6)):
        case 0:
            for _ in range(int(rng.integers(1, 6))):
                result[int(rng.integers(len(result)))] = int(rng.integers(256))
        case 1:
            del result[place:]
        case 2:
            del result[place : place + int(rng.integers(1, 600))]
        case 3:
            result[place:place] = rng.integers(
                0, 256, int(rng.integers(1, 600)), np.uint8
            ).tobytes()
        case 4:
            result += content
        case _:
            result[place : place + int(rng.integers(1, 600))] = bytes(int(rng.integers(1, 600)))
    return bytes(result)


class HangError(Exception):
    """A corpus took longer than SECONDS."""


def _hangs(*_: Any) -> None:
    raise HangError(f"more than {SECONDS} s")


def read(folder: Path, damaged_files: str, numbered: bool) -> str:
    """Outcome of a corpus: "refused", "dropped" or "whole".

    Raises:
      AssertionError: a record is neither given out nor counted.
    """
    try:
        corpus = open_corpus(folder, damaged_files=damaged_files)
        shards = [(0, corpus.examples_of_shard(0, 1))]
        chunks = list(prepare(shards, tiny.encoder(), Handling(8, "crop", "truncate")))
    except UserError:
        return "refused"
    kept, lost = sum(len(c.examples) for c in chunks), sum(len(c.dropped) for c in chunks)
    assert kept + lost == sum(chunk.seen for chunk in chunks)
    if numbered:
        assert kept + lost >= len(corpus), f"{kept} and {lost} of {len(corpus)}"  # type: ignore[arg-type]
    else:
        assert kept >= EXAMPLES or lost, f"{kept} of {EXAMPLES}, and nothing is said"
    return "dropped" if lost else "whole"


def fuzz(count: int, seed: int, keep: Path | None = None) -> tuple[collections.Counter, list[str]]:
    """Reads `count` damaged corpora: (what came of them, by kind; what must not happen)."""
    rng = np.random.default_rng(seed)
    found: collections.Counter = collections.Counter()
    wrong = []
    signal.signal(signal.SIGALRM, _hangs)
    for number in range(count):
        kind = list(KINDS)[number % len(KINDS)]
        write, pattern, numbered = KINDS[kind]
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            write(folder)
            paths = sorted(folder.glob(pattern))
            path = paths[int(rng.integers(len(paths)))]
            path.write_bytes(damage(path.read_bytes(), rng))
            for damaged_files in DAMAGED_FILES:
                started = time.monotonic()
                signal.alarm(SECONDS)
                try:
                    found[kind, read(folder, damaged_files, numbered)] += 1
                except Exception:
                    wrong.append(f"{number} {kind} {damaged_files}: {traceback.format_exc()}")
                    if keep is not None:
                        shutil.copytree(folder, keep / str(number), dirs_exist_ok=True)
                finally:
                    signal.alarm(0)
                found[kind, "slowest ms"] = max(
                    found[kind, "slowest ms"], round(1000 * (time.monotonic() - started))
                )
    return found, wrong


def main() -> int:
    """Does what the command line says."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--keep", type=Path, help="folder for corpora that were read wrongly")
    args = parser.parse_args()
    found, wrong = fuzz(args.count, args.seed, args.keep)
    for (kind, what), number in sorted(found.items()):
        print(f"{kind:12} {what:12} {number}")
    print("\n".join(wrong))
    print(f"{args.count} corpora, {len(wrong)} read wrongly")
    return bool(wrong)


if __name__ == "__main__":
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    sys.exit(main())
