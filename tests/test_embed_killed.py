"""An embedding job that is killed again and again ends with the bytes of one that was not."""

from __future__ import annotations

import multiprocessing
import os
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from imagen_jax.data.corpora import CorpusExample
from imagen_jax.data.fitting import record_image
from imagen_jax.embed import embed
from imagen_jax.text.encoder import TextEncoder

KILLS = int(os.environ.get("IMAGEN_TEST_KILLS", "4"))
SIZE, SHARDS, EXAMPLES = 8, 6, 240


class Slow:
    """A corpus that is read slowly enough to be killed anywhere; some of it cannot be used."""

    def __init__(self, seconds: float):
        self.seconds = seconds

    def examples_of_shard(self, shard: int, num_shards: int) -> Iterator[CorpusExample]:
        for i in range(shard, EXAMPLES, num_shards):
            time.sleep(self.seconds)
            pixels = np.random.default_rng(i).integers(0, 256, (SIZE, SIZE, 3), np.uint8)
            image = None if i % 17 == 0 else record_image(pixels, SIZE, "exact").content
            yield CorpusExample(str(i), f"number {i % 40}", image)

    def describe(self) -> dict[str, str]:
        return {"name": "slow"}


def encoder() -> TextEncoder:
    """States without JAX, which a forked process must not have started."""

    def network(params: None, ids: np.ndarray, mask: np.ndarray) -> np.ndarray:
        return np.stack([np.sin(ids), np.cos(ids)], -1)

    return TextEncoder(
        "sines", 2, 8, "sines", lambda captions: [np.frombuffer(c.encode(), np.uint8)[-8:]
                                                  .astype(np.int32) for c in captions],
        network, None,
    )  # fmt: skip


def job(directory: Path, seconds: float) -> None:
    embed(
        Slow(seconds), directory, encoder=encoder(), image_size=SIZE, num_shards=SHARDS,
        states="int8",
    )  # fmt: skip


def contents(directory: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in directory.iterdir() if path.is_file()}


@pytest.mark.slow
def test_killed_at_random(tmp_path: Path) -> None:
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    # Processes are forked from one that has loaded everything.
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["imagen_jax.embed", "imagen_jax.data.corpora", "tensorflow"])
    first = context.Process(target=job, args=(whole, 0))
    first.start()
    first.join()
    assert first.exitcode == 0
    rng = np.random.default_rng(0)
    kills = 0
    while kills < KILLS:
        process = context.Process(target=job, args=(killed, 0.01))
        process.start()
        # From before the first shard to after the manifest.
        process.join(rng.uniform(0, 0.01 * EXAMPLES / 2))
        if not process.is_alive():
            assert process.exitcode == 0
            assert contents(killed) == contents(whole)
            killed = tmp_path / f"killed{kills}"  # finished before the last kill: once more
            continue
        process.kill()
        process.join()
        kills += 1
    last = context.Process(target=job, args=(killed, 0))
    last.start()
    last.join()
    assert last.exitcode == 0
    found = contents(killed)
    assert found.keys() == contents(whole).keys()
    assert found == contents(whole)
    assert sum(name.endswith(".dropped") for name in found) == SHARDS
