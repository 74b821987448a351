"""Thresholding and samplers on eight devices, in a process of their own."""

import os
import pathlib
import subprocess
import sys

import pytest


@pytest.mark.slow
def test_eight_devices_equal_one():
    program = pathlib.Path(__file__).with_name("eight_devices.py")
    root = program.parents[2]
    environment = os.environ | {
        "JAX_NUM_CPU_DEVICES": "8",
        "JAX_PLATFORMS": "cpu",
        "PYTHONPATH": str(root),
    }
    done = subprocess.run(
        [sys.executable, str(program)], env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-4000:]
    assert done.stdout.split("\n")[:2] == ["thresholding: ok", "samplers: ok"]
