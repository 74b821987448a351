"""Training that is killed ends bit-identical; with more kills: python tests/torture.py."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).with_name("torture.py")


@pytest.mark.slow
def test_training_that_is_killed_at_four_moments_ends_bit_identical() -> None:
    command = [sys.executable, SCRIPT, "--kills", "4", "--steps", "40"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=1800)
    assert done.returncode == 0, done.stderr
    assert "4 kills: bit-identical" in done.stdout
