"""A lock in a bucket, which has no locks: an object that its holder writes again and again."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import sys
import threading
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from imagen_jax.buckets import BucketPath
from imagen_jax.errors import MachineError, UserError

RENEWED = 15.0
"""Seconds between two writings of a lock by its holder."""
EXPIRED = 60.0
"""Seconds without one after which its holder is taken to be gone."""

_held = set[BucketPath]()


@contextlib.contextmanager
def locked(lock: BucketPath, work: str, wait: bool = False) -> Iterator[None]:
    """Hold a lock in a bucket: an object that its holder writes again every RENEWED seconds.

    Locks are taken by writing under the condition that nobody else has written, so two never hold
    one. A holder that was killed is gone at once for a process of the same machine, and for others
    after EXPIRED seconds without a writing. One that was held up, and finds its lock taken, is
    interrupted as by Ctrl-C: it must not write any more. Where Ctrl-C is ignored, it ends at once.

    Args:
      lock: its object.
      work: what the holder does, for messages to others.
      wait: for a holder to end; else it is an error.

    Raises:
      UserError: another process holds it; says which.
    """
    generation, own = _free(lock, wait), uuid.uuid4().hex
    here = {"work": work, "process": os.getpid(), "host": _here(), "id": own}

    def text() -> bytes:
        return json.dumps(here | {"at": time.time()}).encode()

    while not lock.write_if(text(), generation):  # another was faster
        generation = _free(lock, wait)
    _held.add(lock)
    ended = threading.Event()

    def renew() -> None:
        while not ended.wait(RENEWED):
            with contextlib.suppress(MachineError):  # the next one may succeed
                found = lock.read()
                if found.state == "value" and _holder(found).get("id") != own:
                    print(f"imagen: {lock} was taken by another process, which took this one to "
                          "be gone; this one ends", file=sys.stderr)  # fmt: skip
                    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # a script's background
                        os._exit(1)
                    signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)
                    return
                lock.write_if(text(), found.stamp.generation)

    keeper = threading.Thread(target=renew, daemon=True)
    keeper.start()
    try:
        yield
    finally:
        ended.set()
        keeper.join()
        _held.discard(lock)
        with contextlib.suppress(MachineError):
            if _holder(lock.read()).get("id") == own:
                lock.unlink(missing_ok=True)


def _holder(found: Any) -> dict[str, Any]:
    """Return what the object of a lock says; {} where it is something else."""
    try:
        holder = json.loads(found.value)
    except ValueError:
        return {}
    return holder if isinstance(holder, dict) else {}


def _free(lock: BucketPath, wait: bool) -> bytes:
    """Return the generation of a lock that nobody holds, once it is so."""
    told = False
    while True:
        found = lock.read()
        if found.state == "missing":
            return bytes(found.stamp.generation)
        holder = _holder(found)
        name = "another process"
        if "process" in holder:
            name = f"{holder.get('work')} (process {holder['process']} on {holder.get('host')})"
        if holder.get("host") == _here() and _ended(lock, holder["process"]):
            return bytes(found.stamp.generation)
        if not told and not wait:
            print(f"imagen: {lock.parent} was last written by {name}; looking for up to "
                  f"{EXPIRED:g} s whether it still is", file=sys.stderr)  # fmt: skip
            told = True
        if not _changes(lock, bytes(found.stamp.generation)):
            return bytes(found.stamp.generation)
        if not wait and lock.is_file():
            raise UserError(
                f"{lock.parent} is being written by {name}; wait for its end, stop it, or choose "
                "another directory"
            )


def _changes(lock: BucketPath, generation: bytes) -> bool:
    """Wait until a lock is written again or removed; False if it is not within EXPIRED seconds."""
    end = time.monotonic() + EXPIRED
    while time.monotonic() < end:
        if bytes(lock.read(slice(0, 0)).stamp.generation) != generation:
            return True
        time.sleep(min(1.0, EXPIRED / 10))
    return False


def _here() -> str:
    """This machine, or container: processes have numbers of their own in each."""
    space = ""
    with contextlib.suppress(OSError):
        space = f" in {Path('/proc/self/ns/pid').readlink()}"
    return socket.gethostname() + space


def _ended(lock: BucketPath, process: int) -> bool:
    if process == os.getpid():
        return lock not in _held
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return True
    except OSError:
        return False
    return False
