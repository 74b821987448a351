"""Start of a training's reader on many shards: questions to the storage a host, time and memory.

  python -m benchmarks.start_load                                   # 1,000 to 100,000 shards
  python -m benchmarks.start_load --shards 100000 --hosts 256 --records 1000000000

Makes a manifest of shards whose files have the right size and hold nothing (they are sparse), opens
the data as the first and as the last of all hosts does, and plans the first window of batches,
that is, finds the place of every record in it. Counts calls that ask the storage for a file's
state, and files that are opened. What is not measured is the reading of the records.
"""

from __future__ import annotations

import argparse
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from imagen_jax.data import records
from imagen_jax.data.manifest import FORMAT, MANIFEST, manifest_fingerprint
from imagen_jax.files import write_json

BATCH = 2048


def write_empty_shards(directory: Path, shards: int, examples: int) -> None:
    """An embedding directory of so many shards, whose files are sparse."""
    names = [records.shard_name("train", shard, shards) for shard in range(shards)]
    each = examples // shards
    for name in names:
        for path, size in (
            (directory / name, 100 * each),
            (records.offsets_path(directory / name), records.offsets_size(each)),
        ):
            with path.open("wb") as file:
                file.truncate(size)
    entry = {
        "shards": names,
        "shard_examples": [each] * shards,
        "shard_bytes": [100 * each] * shards,
        "shard_sha256": ["0" * 64] * shards,
        "examples": each * shards,
        "longest": 1,
    }
    manifest: dict[str, Any] = {
        "format": FORMAT,
        "encoder": {"name": "none", "width": 8},
        "states": "bfloat16",
        "image_size": 64,
        "source": {"train": {"name": "none"}},
        "splits": {"train": entry},
    }
    manifest["fingerprint"] = manifest_fingerprint(manifest)
    write_json(directory / MANIFEST, manifest)


def measure(directory: str, host: int, hosts: int) -> None:
    """Prints what one host does at the start, in this process."""
    from imagen_jax.data.features import View
    from imagen_jax.data.iterator import train_batches

    asked = {"stat": 0, "open": 0}
    stat = os.stat

    def counted(path: Any, *args: Any, **options: Any) -> os.stat_result:
        asked["stat"] += str(path).startswith(directory)
        return stat(path, *args, **options)

    def opened(event: str, args: tuple[Any, ...]) -> None:
        if event == "open" and str(args[0]).startswith(directory):
            asked["open"] += 1

    os.stat = counted  # type: ignore[assignment]
    sys.addaudithook(opened)
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    started, used = time.perf_counter(), time.process_time()
    batches = train_batches(directory, View(64, None, 8, None), BATCH, 0, host=(host, hosts))
    batches._reader.table.runs(np.unique(batches._reader.window(0)))
    took, cpu = time.perf_counter() - started, time.process_time() - used
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - memory) / 1024
    print(f"{asked['stat']:>9}{asked['open']:>7}{took:>9.2f}{cpu:>8.2f}{grown:>7.0f}")


def main() -> None:
    """Does what the command line says."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--shards", type=int, nargs="+", default=[1000, 10_000, 100_000])
    parser.add_argument("--hosts", type=int, default=256, help="default: 256")
    parser.add_argument("--records", type=int, default=10**9, help="default: a billion")
    parser.add_argument("--one", nargs=3, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.one:
        directory, host, hosts = args.one
        measure(directory, int(host), int(hosts))
        return
    print(f"{'shards':>8}{'host':>6}{'states':>9}{'opens':>7}{'seconds':>9}{'CPU s':>8}{'MiB':>7}")
    for shards in args.shards:
        with tempfile.TemporaryDirectory() as directory:
            write_empty_shards(Path(directory), shards, args.records)
            for host in (0, args.hosts - 1):
                command = [sys.executable, "-m", "benchmarks.start_load", "--one"]
                command += [directory, str(host), str(args.hosts)]
                done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
                print(f"{shards:>8}{host:>6}{done.stdout.rstrip()}", flush=True)


if __name__ == "__main__":
    main()
