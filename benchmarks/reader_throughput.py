"""Examples per second that one processor core reads, against torch's DataLoader on WebDataset.

    python -m benchmarks.reader_throughput --peers PEERS
    python -m benchmarks.reader_throughput --stages "sr 1024" --examples 128     # ours alone

Both read the same JPEGs with the same token states, of T5-XXL's width and of realistic lengths, and
give the same batches: images in [-1, 1], a low-resolution image where the stage has one, states
padded to 128 tokens, a mask. Each is bound to one core, and they take turns; what counts is the
processor time of all threads and worker processes, which other jobs on the machine disturb little.
The peers' libraries go into an environment of their own at PEERS, made if it is not there; without
it ours alone is measured, as it is on the stage that trains on random crops, which they lack.
docs/data.md shows the table.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import statistics
import subprocess
import sys
import tarfile
import tempfile
import time
import venv
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
from PIL import Image

from imagen_jax.data import records
from imagen_jax.data.manifest import FORMAT, MANIFEST, manifest_fingerprint
from imagen_jax.data.records import Record
from imagen_jax.files import write_json

PEERS = ("torch==2.13.0", "webdataset==1.0.2", "numpy", "pillow")
PEER_SCRIPT = Path(__file__).with_name("reader_throughput_peer.py")
WIDTH, MAX_LENGTH = 4096, 128
STAGES = {"base 64": (64, None, None), "sr 256": (256, 64, None), "sr 1024": (1024, 256, 256)}
"""Name -> sizes of the image, of the low-resolution image, and of random crops."""


def images(count: int, size: int) -> list[bytes]:
    """JPEGs about as large as photographs are: noise with a photograph's spectrum."""
    rng = np.random.default_rng(0)
    frequency = np.hypot(*np.meshgrid(np.fft.fftfreq(size), np.fft.rfftfreq(size), indexing="ij"))
    found = []
    for _ in range(count):
        noise = np.fft.rfft2(rng.normal(size=(3, size, size)))
        image = np.fft.irfft2(noise / np.maximum(frequency, 1 / size) ** 1.2, s=(size, size))
        image = 127 + 45 * image / image.std()
        file = io.BytesIO()
        pixels = np.clip(image, 0, 255).astype(np.uint8).transpose(1, 2, 0)
        Image.fromarray(pixels).save(file, "JPEG", quality=90)
        found.append(file.getvalue())
    return found


def lengths(count: int) -> np.ndarray:
    """Tokens of captions: log-normal with mean 20, as alt texts of the web have, at most 128."""
    return np.clip(np.random.default_rng(1).lognormal(2.85, 0.55, count), 3, MAX_LENGTH).astype(int)


def write(directory: Path, size: int, count: int) -> None:
    """The same examples as an embedding directory and as a tar file."""
    shard, tar = records.shard_name("train", 0, 1), directory / "train-000000.tar"
    rng = np.random.default_rng(2)
    with records.record_writer(directory / shard) as writer, tarfile.open(tar, "w") as file:
        for i, (image, length) in enumerate(zip(images(count, size), lengths(count), strict=True)):
            states = rng.normal(size=(length, WIDTH)).astype(ml_dtypes.bfloat16)
            record = Record(str(i), (f"caption {i}",), image, (states,))
            writer.write(records.serialize_record(record))
            for extension, content in (("jpg", image), ("emb", states.tobytes())):
                member = tarfile.TarInfo(f"{i:09d}.{extension}")
                member.size = len(content)
                file.addfile(member, io.BytesIO(content))
    entry = {
        "shards": [shard], "shard_examples": [count], "examples": count,
        "shard_bytes": [(directory / shard).stat().st_size], "shard_sha256": [""],
    }  # fmt: skip
    manifest: dict[str, Any] = {
        "format": FORMAT, "states": "bfloat16", "image_size": size,
        "encoder": {"name": "t5", "fingerprint": "", "width": WIDTH, "max_length": MAX_LENGTH},
        "source": {"train": {"name": "noise"}}, "splits": {"train": entry},
    }  # fmt: skip
    manifest["fingerprint"] = manifest_fingerprint(manifest)
    write_json(directory / MANIFEST, manifest)


def ours(
    directory: str, size: int, low_res: int | None, crop: int | None, batch: int, batches: int
) -> float:
    """Examples per second of processor time of the input pipeline, once it has started."""
    from imagen_jax.data.features import View
    from imagen_jax.data.iterator import train_batches

    view = View(size, low_res, MAX_LENGTH, crop)
    iterator = train_batches(directory, view, batch, 0, threads=1, shuffle_records=4 * batch)
    for _ in range(8):
        next(iterator)
    started = time.process_time()
    for _ in range(batches):
        next(iterator)
    return batch * batches / (time.process_time() - started)


def peers_python(directory: Path) -> Path:
    """The Python of an environment with the peers' libraries."""
    python = directory / "bin" / "python"
    if not python.exists():
        venv.create(directory, with_pip=True)
    subprocess.run([python, "-m", "pip", "install", "--quiet", *PEERS], check=True)
    return python


def measured(command: list[str], core: int) -> dict[str, float]:
    """JSON output of a process that may run on one core only."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "JAX_PLATFORMS": "cpu"}
    done = subprocess.run(
        command, check=True, stdout=subprocess.PIPE, text=True, env=environment,
        preexec_fn=lambda: os.sched_setaffinity(0, {core}),
    )  # fmt: skip
    return json.loads(done.stdout.splitlines()[-1])


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--peers", type=Path, help="environment of the peers (default: ours alone)")
    parser.add_argument("--stages", nargs="+", choices=STAGES, default=list(STAGES))
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--batches", type=int, default=16)
    parser.add_argument("--examples", type=int, default=1024)
    parser.add_argument("--only", nargs=5, metavar=("DIR", "SIZE", "LOW_RES", "CROP", "BATCH"))
    args = parser.parse_args()
    if args.only:
        directory, (size, low_res, crop, batch) = args.only[0], map(int, args.only[1:])
        speed = ours(directory, size, low_res or None, crop or None, batch, args.batches)
        print(json.dumps({"examples_per_core_second": speed}))
        return
    peers = peers_python(args.peers) if args.peers else None
    core = max(os.sched_getaffinity(0))
    print(f"{'stage':<10}{'ours':>10}{'torch + webdataset':>22}{'ratio':>8}   examples/s/core")
    for name in args.stages:
        size, low_res, crop = STAGES[name]
        with tempfile.TemporaryDirectory() as directory:
            write(Path(directory), size, args.examples)
            sizes = [directory, str(size), str(low_res or 0)]
            commands = {
                "ours": [sys.executable, "-m", "benchmarks.reader_throughput", "--only", *sizes,
                         str(crop or 0), str(args.batch), "--batches", str(args.batches)],
            }  # fmt: skip
            if peers and not crop:
                commands["theirs"] = [
                    str(peers), str(PEER_SCRIPT), *sizes, str(args.batch), str(args.batches)
                ]  # fmt: skip
            found: dict[str, list[float]] = {key: [] for key in commands}
            for _ in range(args.rounds):
                for key, command in commands.items():
                    found[key].append(measured(command, core)["examples_per_core_second"])
            mine, *others = (statistics.median(found[key]) for key in commands)
            theirs = "".join(f"{other:>22.0f}{mine / other:>8.2f}" for other in others)
            print(f"{name:<10}{mine:>10.0f}{theirs or ' ' * 30}   all: {found}")


if __name__ == "__main__":
    main()
