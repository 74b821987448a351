"""Growth of embedding: processor time and peak memory by rows, and by shards.

  python -m benchmarks.embed_load
  python -m benchmarks.embed_load --rows 1000 10000 100000 --shards 100 1000 10000

Each size is embedded by a process of its own, from a generator of images of 32 pixels, with an
encoder that looks tokens up (a real one would hide all else). Time per row and memory should not
depend on the size; a line shows how time grows against the size before.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from typing import Any

import numpy as np

from imagen_jax.data.corpora import CorpusExample
from imagen_jax.data.fitting import record_image
from imagen_jax.embed import embed
from imagen_jax.text.encoder import TextEncoder

SIDE, WIDTH, IMAGES = 32, 64, 64


class Generated:
    """`rows` captions, all different, of a few images."""

    def __init__(self, rows: int):
        self._rows = rows
        rng = np.random.default_rng(0)
        pixels = rng.integers(0, 256, (IMAGES, SIDE, SIDE, 3), np.uint8)
        self._images = [record_image(image, SIDE, "exact").content for image in pixels]

    def __len__(self) -> int:
        return self._rows

    def examples_of_shard(self, shard: int, num_shards: int) -> Iterator[CorpusExample]:
        """Examples by number."""
        start, end = (self._rows * edge // num_shards for edge in (shard, shard + 1))
        for i in range(start, end):
            yield CorpusExample(str(i), f"image number {i} of all", self._images[i % IMAGES])

    def describe(self) -> dict[str, Any]:
        """Its size."""
        return {"name": "generated", "rows": self._rows}


def light_encoder() -> TextEncoder:
    """States from a table of random numbers."""
    table = np.random.default_rng(0).normal(size=(256, WIDTH)).astype(np.float32)

    def tokenize(captions: Any) -> list[np.ndarray]:
        return [np.frombuffer(c.encode(), np.uint8)[:128].astype(np.int32) for c in captions]

    def network(params: Any, ids: Any, mask: Any) -> Any:
        return params[ids]

    return TextEncoder("light", WIDTH, 128, "light", tokenize, network, table)


def measure(rows: int, shards: int) -> dict[str, float]:
    """Embeds in this process: {"cpu": seconds, "wall": seconds, "mb": peak memory}."""
    source, encoder = Generated(rows), light_encoder()
    with tempfile.TemporaryDirectory() as output:  # imports of TensorFlow are not to be measured
        embed(Generated(100), output, encoder=encoder, image_size=SIDE)
    with tempfile.TemporaryDirectory() as output:
        used, started = time.process_time(), time.monotonic()
        embed(source, output, encoder=encoder, image_size=SIDE, num_shards=shards)
        cpu, wall = time.process_time() - used, time.monotonic() - started
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return {"cpu": cpu, "wall": wall, "mb": peak}


def main() -> None:
    """Does what the command line says."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, nargs="+", default=[1000, 10_000, 100_000])
    parser.add_argument("--shards", type=int, nargs="+", default=[100, 1000, 10_000])
    parser.add_argument("--one", type=int, nargs=2, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.one:
        print(json.dumps(measure(*args.one)))
        return
    jobs = [("rows", rows, -(-rows // 10_000)) for rows in args.rows]
    jobs += [("shards", 2 * shards, shards) for shards in args.shards]
    form = "{:<8}{:>9}{:>8}{:>9}{:>12}{:>9}{:>18}"
    print(form.format("by", "rows", "shards", "CPU s", "CPU ms/row", "peak MB", "growth"))
    before: tuple[str, int, dict[str, float]] | None = None
    for by, rows, shards in jobs:
        command = [sys.executable, "-m", "benchmarks.embed_load", "--one", str(rows), str(shards)]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        found = json.loads(done.stdout.splitlines()[-1])
        growth = ""
        if before is not None and before[0] == by:
            times = found["cpu"] / before[2]["cpu"]
            growth = f"{times:.2f} x for {rows / before[1]:.0f} x"
        cpu, each = f"{found['cpu']:.2f}", f"{1000 * found['cpu'] / rows:.3f}"
        line = form.format(by, rows, shards, cpu, each, f"{found['mb']:.0f}", growth)
        print(line, flush=True)
        before = (by, rows, found)


if __name__ == "__main__":
    main()
