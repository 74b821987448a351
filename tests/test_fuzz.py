"""A few damaged files for every reader; `python tests/fuzz_readers.py` tries thousands."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from fuzz_readers import READERS

SCRIPT = Path(__file__).parent / "fuzz_readers.py"
LIGHT = ("safetensors", "torch", "torch-legacy", "graph", "votes", "png", "jpeg", "webp", "tiff")


@pytest.mark.parametrize(
    ("readers", "count"), [(LIGHT, 150), ([r for r in READERS if r not in LIGHT], 25)],
    ids=["light", "heavy"],
)  # fmt: skip
@pytest.mark.slow
def test_damaged_files_are_read_or_refused(readers: tuple[str, ...], count: int) -> None:
    done = subprocess.run(
        [sys.executable, str(SCRIPT), "--count", str(count), "--readers", *readers],
        capture_output=True, text=True, check=False, timeout=1800,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
