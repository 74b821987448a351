"""The peer of benchmarks.metric_throughput: torch-fidelity, in an environment of its own.

    python metric_throughput_peer.py WEIGHTS IMAGES BATCH

For every line on standard input it extracts the features of all images and writes [seconds,
seconds of processor time, mean of the features] as JSON.
"""

from __future__ import annotations

import json
import resource
import sys
import tempfile
import time
from pathlib import Path

import safetensors.torch
import torch
from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3
from torch_fidelity.utils import extract_featuresdict_from_input_id


def processor_time() -> float:
    """Seconds of this process and of the workers that have ended."""
    children = resource.getrusage(resource.RUSAGE_CHILDREN)
    return time.process_time() + children.ru_utime + children.ru_stime


def main() -> None:
    """Serves until standard input ends."""
    weights, images, batch = sys.argv[1], sys.argv[2], int(sys.argv[3])
    answers, sys.stdout = sys.stdout, sys.stderr
    with tempfile.TemporaryDirectory() as folder:
        path = str(Path(folder) / "weights.pth")
        torch.save(safetensors.torch.load_file(weights), path)
        extractor = FeatureExtractorInceptionV3(
            "inception-v3-compat", ["2048"], feature_extractor_weights_path=path
        ).eval()
    for _ in sys.stdin:
        start, start_cpu = time.perf_counter(), processor_time()
        features = extract_featuresdict_from_input_id(
            1, extractor, input1=images, batch_size=batch, cuda=False, verbose=False
        )["2048"]
        seconds, cpu = time.perf_counter() - start, processor_time() - start_cpu
        print(json.dumps([seconds, cpu, float(features.mean())]), file=answers, flush=True)


if __name__ == "__main__":
    main()
