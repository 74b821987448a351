"""Fewer images than devices or shards: corpora of two to seven, and as many that are sampled."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import tiny
from PIL import Image

TESTS = Path(__file__).resolve().parent
TWO_DEVICES = "--xla_force_host_platform_device_count=2"


def imagen(argv: list[str], devices: str = "") -> str:
    """Output of a command in a process of its own."""
    flags = " ".join([os.environ["XLA_FLAGS"], devices])
    done = subprocess.run(
        [sys.executable, "-m", "imagen_jax.main", *argv], capture_output=True, text=True,
        env=os.environ | {"XLA_FLAGS": flags, "PYTHONPATH": f"{TESTS}:{TESTS.parent}"},
        check=False, timeout=600,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.slow
@pytest.mark.parametrize("count", [2, 5])
def test_a_small_corpus_is_trained_on_by_two_devices(count: int, tmp_path: Path) -> None:
    (tmp_path / "corpus").mkdir()
    for i in range(count):
        pixels = np.full((tiny.SR, tiny.SR, 3), 40 * i, np.uint8)
        Image.fromarray(pixels).save(tmp_path / "corpus" / f"{i}.png")
        (tmp_path / "corpus" / f"{i}.txt").write_text(f"number {i}")
    argv = ["train", "--import", "tiny", "--config", str(TESTS / "tiny_config.py"), "--stage"]
    argv += ["base", "--data", str(tmp_path / "corpus"), "--workdir", str(tmp_path / "run")]
    said = imagen(
        [*argv, "--image-size", str(tiny.SR), "--set", *tiny.WITHOUT_SAMPLES], TWO_DEVICES
    )
    assert f"{count} examples in {tmp_path / 'run' / 'embeddings'}" in said
    assert "steps 0 -> 2 on 2 cpu device(s) of 1 host(s)" in said


@pytest.mark.slow
def test_five_images_on_two_devices_are_those_of_one(tmp_path: Path) -> None:
    cascade = tiny.write_cascade(tmp_path / "cascade")
    argv = ["sample", "--workdir", str(cascade), "a red apple", "--per-prompt", "5", "--output"]
    imagen([*argv, str(tmp_path / "one")])
    imagen([*argv, str(tmp_path / "two")], TWO_DEVICES)
    for i in range(5):
        one, two = (
            np.asarray(Image.open(tmp_path / name / f"{i:04d}.png"), float)
            for name in ("one", "two")
        )
        np.testing.assert_allclose(two, one, atol=1)
