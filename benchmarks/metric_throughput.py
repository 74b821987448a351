"""Images per second from PNG files to Inception features, beside torch-fidelity, on the CPU.

    python -m benchmarks.metric_throughput             # installs the peer into runs/fidelity first
    python -m benchmarks.metric_throughput --rounds 5 --count 96

Both read the same files, resize as TensorFlow 1 did and run Inception-v3 of 2015 with the same
random weights in float32, and take turns, so that what else the machine does falls on both alike.
docs/evaluation.md has what it printed.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import safetensors.numpy
from PIL import Image

from imagen_jax.eval.feature_sets import compute_features
from imagen_jax.eval.features.inception import SIZE, inception_v3
from imagen_jax.eval.features.layers import shapes
from imagen_jax.eval.features.network import load_network
from imagen_jax.eval.images import Files, list_images

ROOT = Path(__file__).resolve().parent.parent
PEER = ROOT / "runs" / "fidelity"
TORCH = ("torch==2.14.1", "torchvision==0.29.1")


def write_weights(path: Path) -> None:
    """Random weights by torch's names, which keep the scale of what passes through."""
    rng = np.random.default_rng(0)
    tensors: dict[str, np.ndarray] = {}
    for names, shape in shapes(inception_v3, SIZE).items():
        *window, inputs, outputs = shape
        fan_in = inputs * int(np.prod(window, dtype=int))
        weight = rng.standard_normal((outputs, inputs, *window), np.float32)
        tensors[f"{names.weight}.weight"] = weight * np.float32(np.sqrt(2 / fan_in))
        if len(shape) == 2:
            tensors[f"{names.weight}.bias"] = np.zeros(outputs, np.float32)
            continue
        for part, value in (("weight", 1), ("bias", 0), ("running_mean", 0), ("running_var", 1)):
            tensors[f"{names.norm}.{part}"] = np.full(outputs, value, np.float32)
    safetensors.numpy.save_file(tensors, path)


def write_images(folder: Path, count: int, side: int) -> None:
    """PNGs that compress about as photographs do."""
    rng = np.random.default_rng(1)
    for i in range(count):
        coarse = Image.fromarray(rng.integers(0, 256, (16, 16, 3), np.uint8))
        smooth = np.asarray(coarse.resize((side, side), Image.Resampling.BICUBIC), np.float32)
        noisy = smooth + rng.normal(0, 4, smooth.shape)
        Image.fromarray(noisy.clip(0, 255).astype(np.uint8)).save(folder / f"{i:05d}.png")


class Pass(NamedTuple):
    """One pass over the images: seconds, seconds of processor time, mean of the features."""

    seconds: float
    processor: float
    mean: float


class Peer:
    """torch-fidelity in a process of its own."""

    def __init__(self, python: Path, weights: Path, images: Path, batch: int) -> None:
        self.process = subprocess.Popen(
            [python, Path(__file__).with_name("metric_throughput_peer.py"), weights, images,
             str(batch)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        )  # fmt: skip

    def __call__(self) -> Pass:
        """One pass."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write("go\n")
        self.process.stdin.flush()
        return Pass(*json.loads(self.process.stdout.readline()))


def install_peer() -> Path:
    """The Python of an environment with torch-fidelity, made if it is not there."""
    python = PEER / "bin" / "python"
    if not (PEER / "installed").exists():
        subprocess.run([sys.executable, "-m", "venv", PEER], check=True)
        pip = [python, "-m", "pip", "install", "--quiet"]
        subprocess.run([*pip, *TORCH, "scipy", "tqdm", "safetensors"], check=True)
        subprocess.run([*pip, "--no-deps", "torch-fidelity==0.4.0"], check=True)
        (PEER / "installed").touch()
    return python


def main() -> None:
    """Prints both rates and their ratio."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=3, help="passes of each (default: 3)")
    parser.add_argument("--count", type=int, default=64, help="images (default: 64)")
    parser.add_argument("--side", type=int, default=256, help="their side (default: 256)")
    parser.add_argument("--batch", type=int, default=32, help="of the peer (default: 32)")
    parser.add_argument("--python", type=Path, help="Python with the peer, not runs/fidelity")
    args = parser.parse_args()
    python = args.python or install_peer()
    with tempfile.TemporaryDirectory() as directory:
        weights, folder = Path(directory) / "weights.safetensors", Path(directory) / "images"
        folder.mkdir()
        write_weights(weights)
        write_images(folder, args.count, args.side)
        network = load_network("inception-v3", weights, "tf1")
        files = Files("images", list_images(folder), args.side)

        def ours() -> Pass:
            start, start_cpu = time.perf_counter(), time.process_time()
            mean = float(compute_features(network, files).features.mean())
            return Pass(time.perf_counter() - start, time.process_time() - start_cpu, mean)

        runners: dict[str, Callable[[], Pass]] = {
            "imagen-jax": ours, "torch-fidelity": Peer(python, weights, folder, args.batch)
        }  # fmt: skip
        passes: dict[str, list[Pass]] = {name: [] for name in runners}
        for i in range(-1, args.rounds):
            for name, runner in runners.items():
                taken = runner()
                if i >= 0:  # the first compiles, or warms up
                    passes[name].append(taken)
    np.testing.assert_allclose(*(taken[0].mean for taken in passes.values()), rtol=1e-4)
    print(f"{'':<16}{'images/s':>12}{'CPU ms an image':>20}   passes, images/s")
    for name, taken in passes.items():
        rates = [args.count / of.seconds for of in taken]
        cpu = 1e3 * statistics.median(of.processor for of in taken) / args.count
        print(
            f"{name:<16}{statistics.median(rates):12.2f}{cpu:20.0f}   "
            + ", ".join(f"{rate:.1f}" for rate in rates)
        )


if __name__ == "__main__":
    main()
