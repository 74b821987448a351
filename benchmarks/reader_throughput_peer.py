"""The peer of benchmarks.reader_throughput: torch's DataLoader on WebDataset, on one core.

    python reader_throughput_peer.py DIR SIZE LOW_RES BATCH BATCHES

Runs in an environment of its own, with torch and webdataset and without this package.
"""

from __future__ import annotations

import io
import json
import os
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
import webdataset
from PIL import Image

WIDTH, MAX_LENGTH = 4096, 128


def example(sample: dict[str, Any], low_res: int) -> dict[str, torch.Tensor]:
    """One training example."""
    pixels = np.array(Image.open(io.BytesIO(sample["jpg"])).convert("RGB"))
    image = torch.from_numpy(pixels).float() / 127.5 - 1
    states = torch.frombuffer(bytearray(sample["emb"]), dtype=torch.bfloat16).view(-1, WIDTH)
    padded = torch.zeros(MAX_LENGTH, WIDTH, dtype=torch.bfloat16)
    padded[: len(states)] = states
    found = {
        "image": image,
        "text_emb": padded,
        "text_mask": torch.arange(MAX_LENGTH) < len(states),
    }
    if low_res:
        factor = image.shape[0] // low_res
        small = torch.nn.functional.avg_pool2d(image.permute(2, 0, 1), factor)
        found["low_res"] = small.permute(1, 2, 0)
    return found


def processor_time(workers: list[int]) -> float:
    """Seconds of processor time of this process and its workers."""
    ticks = 0
    for worker in workers:
        fields = Path(f"/proc/{worker}/stat").read_text().rpartition(")")[2].split()
        ticks += int(fields[11]) + int(fields[12])  # user and system
    return time.process_time() + ticks / os.sysconf("SC_CLK_TCK")


def main() -> None:
    """Prints examples per second as JSON."""
    directory, _, low_res, batch, batches = sys.argv[1], *map(int, sys.argv[2:])
    torch.set_num_threads(1)
    dataset = (
        webdataset.WebDataset(
            f"{directory}/train-000000.tar", shardshuffle=False, empty_check=False
        )
        .repeat()
        .shuffle(4 * batch)
        .map(lambda sample: example(sample, low_res))
    )
    loader = torch.utils.data.DataLoader(
        dataset, batch_size=batch, num_workers=1, prefetch_factor=2
    )
    iterator = iter(loader)
    workers = [worker.pid for worker in iterator._workers]
    for _ in range(8):
        next(iterator)
    started = processor_time(workers)
    for _ in range(batches):
        next(iterator)
    spent = processor_time(workers) - started
    print(json.dumps({"examples_per_core_second": batch * batches / spent}))


if __name__ == "__main__":
    main()
