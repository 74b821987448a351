"""Run a command on a host of a TPU, with its log and status in a bucket.

    python3 host.py BUCKET PREFIX COMMAND ARGUMENT ...

tpu.sh starts it on every host of a TPU, detached from the connection that started it, and reads
what it uploads below gs://BUCKET/PREFIX while the command runs:

    SLICE-WORKER.log      all that the command has printed
    SLICE-WORKER.status   "running TIME" or, once it has ended, "ended STATUS TIME"

TIME is in seconds since 1970: an old one says that the host has died. Started a second time for the
same PREFIX it does nothing; for another, it first ends what still runs. It needs a Python of 3.8 or
later and no package.
"""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
import urllib.parse
import urllib.request
from pathlib import Path

from fetch import open_url, storage, token

PERIOD = float(os.environ.get("HOST_PERIOD", "30"))
"""Seconds between uploads."""
GRACE = 60.0
"""Seconds that an earlier command gets to end in."""


def attribute(name: str) -> str:
    """Return what the metadata server says about this host, "" if nothing."""
    host = os.environ.get("GCE_METADATA_HOST", "metadata.google.internal")
    url = f"http://{host}/computeMetadata/v1/instance/attributes/{name}"
    try:
        with open_url(url, {"Metadata-Flavor": "Google"}) as answer:
            return answer.read().decode()
    except OSError:
        return ""


def which() -> str:
    """Return the slice and the number in it of this host, such as 0-3."""
    found = re.search(r"MEGASCALE_SLICE_ID: *'?(\d+)", attribute("tpu-env"))
    return f"{found[1] if found else 0}-{attribute('agent-worker-number').strip() or 0}"


def upload(bucket: str, name: str, body: bytes) -> None:
    """Write an object; OSError if it cannot be written."""
    url = f"{storage()}/upload/storage/v1/b/{bucket}/o?uploadType=media"
    url += f"&name={urllib.parse.quote(name, safe='')}"
    headers = {"Authorization": f"Bearer {token()}", "Content-Type": "text/plain"}
    request = urllib.request.Request(url, data=body, headers=headers, method="POST")
    urllib.request.urlopen(request, timeout=300).close()


class Reports:
    """Log and status of the command, in the bucket.

    Attributes:
      log: file that the command prints into.
    """

    def __init__(self, bucket: str, prefix: str, log: Path):
        self.log = log
        self._bucket = bucket
        self._name = f"{prefix}/{which()}"
        self._uploaded = -1

    def send(self, status: str) -> bool:
        """Upload the log, if it has grown, and the status; return whether that succeeded."""
        try:
            text = self.log.read_bytes()
            if len(text) != self._uploaded:
                upload(self._bucket, f"{self._name}.log", text)
                self._uploaded = len(text)
            upload(self._bucket, f"{self._name}.status", f"{status} {time.time():.0f}\n".encode())
        except (OSError, ValueError) as error:
            print(f"cannot upload to gs://{self._bucket}/{self._name}: {error}", flush=True)
            return False
        return True


def end_earlier(note: Path, prefix: str) -> bool:
    """End what runs for another prefix; return whether this prefix's command runs already."""
    try:
        process, _, other = note.read_text().partition(" ")
        os.killpg(int(process), 0)
    except (OSError, ValueError):
        return False
    if other == prefix:
        return True
    for number, seconds in ((signal.SIGTERM, GRACE), (signal.SIGKILL, GRACE)):
        until = time.time() + seconds
        try:
            os.killpg(int(process), number)
            while time.time() < until:
                os.killpg(int(process), 0)
                time.sleep(0.2)
        except ProcessLookupError:
            break
    return False


def main(bucket: str, prefix: str, *command: str) -> int:
    """Run the command and report it; return 0, for its own status is in the bucket."""
    folder = Path.home() / "imagen-job"
    folder.mkdir(exist_ok=True)
    note = folder / "process"
    if end_earlier(note, prefix):
        return 0
    log = folder / "log"
    with log.open("wb") as file:
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=file, stderr=subprocess.STDOUT,
            start_new_session=True,
        )  # fmt: skip
    note.write_text(f"{process.pid} {prefix}")
    reports = Reports(bucket, prefix, log)
    while True:
        try:
            status = process.wait(PERIOD if reports.send("running") else PERIOD / 4)
            break
        except subprocess.TimeoutExpired:
            continue
    status = 128 - status if status < 0 else status
    for pause in (1, 2, 4, 8, 16, 32):
        if reports.send(f"ended {status}"):
            break
        time.sleep(min(pause, PERIOD))
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
