"""Trains in several processes on several devices each, and moves on: python tests/hosts.py LEGS ...

  python tests/hosts.py 1x8:2,4x2:4 ARGUMENT OF imagen train ...

trains in one process on eight devices, which is told to stop at step 2, then in four on two each.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from typing import Any

import jax
from forks import fork, imagen, wait
from ports import free_port

from imagen_jax.data.iterator import BatchIterator
from imagen_jax.train.interruption import PREEMPTED


def stop_at(step: int) -> None:
    """Tells this process to stop when it takes the batch of a step, and waits until it knows."""
    take = BatchIterator.__next__

    def take_and_stop(batches: BatchIterator) -> dict[str, Any]:
        batch = take(batches)
        if batches.step == step:
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(1)
        elif batches.step > step:  # it takes longer until all know
            time.sleep(3)
        return batch

    BatchIterator.__next__ = take_and_stop  # type: ignore[method-assign]


def leg(hosts: int, devices: int, stop: int, argv: list[str]) -> None:
    """Trains until told to stop; AssertionError unless all processes end as they then should."""
    port = free_port()

    def train(host: int) -> int:
        stop_at(stop)
        where = ["--multi-host", f"{host}/{hosts}@localhost:{port}"] if hosts > 1 else []
        status = imagen(["train", *argv, *where], devices)
        if hosts > 1:
            jax.distributed.shutdown()  # waits for the others
        return status

    children = [fork(lambda host=host: train(host)) for host in range(hosts)]
    ended = [wait(child) for child in children]
    assert ended == [PREEMPTED] * hosts, ended


if __name__ == "__main__":
    for text in sys.argv[1].split(","):
        leg(*(int(number) for number in text.replace("x", ":").split(":")), sys.argv[2:])
