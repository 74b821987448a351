"""Peak memory of `imagen import deepfloyd` for networks of DeepFloyd IF's full sizes.

    PYTHONPATH=tests python -m benchmarks.import_memory            # M, L and XL; 12 GB of disk

Each is a file of zeros with the names and shapes of the published float16 weights
(tests/testdata/deepfloyd_keys.json.gz), so that nothing has to be downloaded; beside it lies a T5
encoder of T5-XXL's width, but with two narrow blocks. What the import needs for T5-XXL itself,
which is loaded before the networks are read, is thus not counted. Memory is what the process
itself holds (RssAnon), looked at 50 times a second: pages of the files, which Linux drops when it
needs to, are left out. For Linux.
docs/deepfloyd.md has what it printed.
"""

from __future__ import annotations

import argparse
import gzip
import json
import math
import struct
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import deepfloyd_files  # in tests/

KEYS = Path(__file__).resolve().parent.parent / "tests" / "testdata" / "deepfloyd_keys.json.gz"
IMPORT = """
import re, sys, threading, time
import imagen_jax.main
most = 0
def watch():
    global most
    while True:
        status = open("/proc/self/status").read()
        most = max(most, int(re.search(r"RssAnon:\\s*(\\d+)", status)[1]))
        time.sleep(0.02)
threading.Thread(target=watch, daemon=True).start()
status = imagen_jax.main.main(["import", "deepfloyd", sys.argv[1], "--output", sys.argv[2]])
print(most)
sys.exit(status)
"""


def write_zeros(path: Path, shapes: Mapping[str, Sequence[int]]) -> int:
    """Writes float16 zeros as safetensors, without taking room on the disk; returns the bytes."""
    header, end = {}, 0
    for name, shape in shapes.items():
        start, end = end, end + 2 * math.prod(shape)
        header[name] = {"dtype": "F16", "shape": [*shape], "data_offsets": [start, end]}
    text = json.dumps(header).encode()
    with open(path, "wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        file.truncate(8 + len(text) + end)
    return end


def write_pipeline(directory: Path, size: str) -> int:
    """Writes stage I of a size in diffusers' layout; returns the bytes of its network."""
    with gzip.open(KEYS) as file:
        network = json.load(file)[f"I-{size}"]
    for name in ("unet", "scheduler"):
        (directory / name).mkdir(parents=True)
    (directory / "unet" / "config.json").write_text(json.dumps(network["config"]))
    scheduler = deepfloyd_files.SCHEDULER | {"sample_max_value": 1.5}
    (directory / "scheduler" / "scheduler_config.json").write_text(json.dumps(scheduler))
    name = directory / "unet" / "diffusion_pytorch_model.safetensors"
    taken = write_zeros(name, network["shapes"])
    deepfloyd_files.WIDTH = deepfloyd_files.T5["d_model"] = network["config"]["encoder_hid_dim"]
    deepfloyd_files.write_text_encoder(directory)
    return taken


def peak(code: str, *arguments: str) -> float:
    """Returns the peak memory of a process of Python, in GiB."""
    command = [sys.executable, "-c", code, *arguments]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    return int(done.stdout.split()[-1]) / 2**20


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("sizes", nargs="*", default=["M", "L", "XL"], metavar="M|L|XL")
    args = parser.parse_args()
    for size in args.sizes:
        with tempfile.TemporaryDirectory() as folder:
            taken = write_pipeline(Path(folder) / "IF", size)
            used = peak(IMPORT, str(Path(folder) / "IF"), str(Path(folder) / "out"))
        print(f"I-{size}: network {taken / 2**30:.2f} GiB, peak memory {used:.2f} GiB", flush=True)


if __name__ == "__main__":
    main()
