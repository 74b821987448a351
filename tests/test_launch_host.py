"""launch/host.py against a server that speaks as Cloud Storage does: what a host reports."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

from bucket_server import BucketServer, serve
from launching import LAUNCH


def start(bucket: BucketServer, home: Path, prefix: str, code: str) -> subprocess.Popen[str]:
    home.mkdir(exist_ok=True)
    environment = os.environ | bucket.environment | {"HOME": str(home), "HOST_PERIOD": "0.1"}
    return subprocess.Popen(
        [sys.executable, LAUNCH / "host.py", "b", prefix, "bash", "-c", code],
        env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip


def wait_for(condition: Callable[[], bool]) -> None:
    until = time.monotonic() + 600
    while not condition():
        assert time.monotonic() < until
        time.sleep(0.02)


def status(bucket: BucketServer, name: str) -> str:
    return bucket.objects.get(f"b/{name}.status", b"").decode().rpartition(" ")[0]


def test_log_and_status_are_in_the_bucket_while_it_runs_and_in_the_end(tmp_path: Path) -> None:
    with serve() as bucket:
        bucket.attributes |= {
            "agent-worker-number": "3",
            "tpu-env": "X: '1'\nMEGASCALE_SLICE_ID: '2'",
        }
        bucket.failures = 2
        go = tmp_path / "go"
        process = start(
            bucket, tmp_path / "home", "jobs/n/1",
            f"echo first; until [ -e {go} ]; do sleep 0.05; done; echo last >&2; exit 75",
        )  # fmt: skip
        wait_for(lambda: status(bucket, "jobs/n/1/2-3") == "running")
        wait_for(lambda: bucket.objects["b/jobs/n/1/2-3.log"] == b"first\n")  # or in the next
        seconds = int(bucket.objects["b/jobs/n/1/2-3.status"].split()[-1])
        assert abs(seconds - time.time()) < 600
        go.touch()
        assert process.wait(600) == 0
        assert status(bucket, "jobs/n/1/2-3") == "ended 75"
        assert bucket.objects["b/jobs/n/1/2-3.log"] == b"first\nlast\n"


def test_a_second_start_does_nothing_and_another_round_takes_over(tmp_path: Path) -> None:
    home = tmp_path / "home"
    with serve() as bucket:
        first = start(bucket, home, "jobs/n/1", "sleep 6000")
        wait_for(lambda: status(bucket, "jobs/n/1/0-0") == "running")
        assert start(bucket, home, "jobs/n/1", "exit 1").wait(600) == 0
        assert first.poll() is None
        assert start(bucket, home, "jobs/n/2", "exit 0").wait(600) == 0
        assert first.wait(600) == 0
        assert status(bucket, "jobs/n/1/0-0") == "ended 143"
        assert status(bucket, "jobs/n/2/0-0") == "ended 0"
