"""The page of `imagen demo` under load: visitors who upload, brush, ask, stop, leave and misbehave.

    python -m benchmarks.page_load                              # 50 visitors for five minutes
    python -m benchmarks.page_load --visitors 10 --seconds 30

Starts the page on loopback with the demo cascade, and visitors that speak to it as browsers do,
over their own connections. Prints how long requests took to be answered, how the memory of the
page and of the process that samples grew after warm-up, and whether anybody saw the images or the
prompt of somebody else: each asks for prompts and seeds of their own.

The visitors run in one loop on the same machine, so that what they are late by themselves is in
what they measure: it is printed, too (by how much a timer of their loop was late), and so are the
slowest requests with the moment at which they were sent.

Ends with status 1 if a request took longer than --limit, the memory of one grew by more than
--growth after the first third, or somebody did.
"""

from __future__ import annotations

import argparse
import asyncio
import collections
import re
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import aiohttp
import numpy as np
import psutil

from benchmarks.page_visitor import Visitor, noise

ARRIVAL = 5.0
"""Seconds in which all visitors have come."""
TICK = 0.02
"""Seconds between looks at how late the visitors' own loop is."""


async def warm_up(visitor: Visitor) -> None:
    """Waits until the first images are made, for which programs are compiled."""
    await visitor.open()
    await visitor.make()
    state = visitor.by_class("state")[0]
    done = lambda: "done in" in str(visitor.elements[state].get("text"))  # noqa: E731
    assert await visitor.answered("first", done, 600), "nothing was made"
    await visitor.close()


def _session() -> aiohttp.ClientSession:
    """As in browsers, a websocket has a connection of its own, not that of a request before it."""
    return aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0, force_close=True))


def _seconds_of(processes: Sequence[psutil.Process]) -> float:
    """Seconds that processes have computed."""
    return sum(sum(process.cpu_times()[:2]) for process in processes)


def _waited(process: psutil.Process) -> float:
    """Seconds that the main thread of a process was ready and had no core."""
    return int(Path(f"/proc/{process.pid}/schedstat").read_text().split()[1]) / 1e9


def _megabytes_of(processes: Sequence[psutil.Process]) -> float:
    """Memory of processes, MiB."""
    return sum(process.memory_info().rss for process in processes) / 2**20


async def load(address: str, server: psutil.Process, args: argparse.Namespace) -> int:
    """Lets visitors come, and prints what they saw; the status to end with."""
    async with _session() as session:
        await warm_up(Visitor(address, args.visitors, session))
    for side in (48, 300, 900):
        noise(side)
    until = time.monotonic() + args.seconds
    parts = {"the page": [server], "sampling": server.children(recursive=True)}
    measured = parts | {"the visitors": [psutil.Process()]}
    used = {name: _seconds_of(processes) for name, processes in measured.items()}
    memory: dict[str, list[float]] = {name: [] for name in parts}

    waited = _waited(server)
    late: list[float] = []

    async def tick() -> None:
        while time.monotonic() < until:
            before = time.monotonic()
            await asyncio.sleep(TICK)
            late.append(time.monotonic() - before - TICK)

    async def watch() -> None:
        while time.monotonic() < until:
            for name, processes in parts.items():
                memory[name].append(_megabytes_of(processes))
            await asyncio.sleep(1)

    async with _session() as session:
        visitors = [Visitor(address, n, session) for n in range(args.visitors)]
        ends = await asyncio.gather(
            watch(), tick(), *(v.visit(until, ARRIVAL) for v in visitors), return_exceptions=True
        )
    waited = (_waited(server) - waited) / args.seconds
    cores = {name: (_seconds_of(measured[name]) - old) / args.seconds for name, old in used.items()}
    errors = [end for end in ends if isinstance(end, BaseException)]
    owners: dict[str, set[int]] = collections.defaultdict(set)
    foreign = 0
    for number, visitor in enumerate(visitors):
        for image in visitor.images:
            owners[image].add(number)
        foreign += sum(f"visitor {number}" != t.split(", ")[-1] for t in visitor.titles)
    shared = sum(len(of) > 1 for of in owners.values())
    waits: dict[str, list[float]] = collections.defaultdict(list)
    for visitor in visitors:
        for what, seconds, _ in visitor.waits:
            waits[what].append(seconds)
    longest = 0.0
    for what, seconds in sorted(waits.items()):
        longest = max(longest, *seconds)
        within = np.mean(np.array(seconds) <= args.limit)
        print(f"{what:8} {len(seconds):6} answered, {within:.1%} within {args.limit:g} s, median "
              f"{statistics.median(seconds):.3f} s, 99% {np.quantile(seconds, 0.99):.3f} s, "
              f"longest {max(seconds):.3f} s")  # fmt: skip
    began = until - args.seconds
    slowest = sorted((w for v in visitors for w in v.waits), key=lambda w: -w[1])[:5]
    told = [f"{what} of {wait:.2f} s at second {at - began:.0f}" for what, wait, at in slowest]
    print(f"slowest: {', '.join(told)}")
    print(f"the visitors' own loop was late by {np.quantile(late, 0.99):.3f} s in 1% of its turns, "
          f"by {max(late):.3f} s at most")  # fmt: skip
    busy = ", ".join(f"{name} {used:.2f}" for name, used in cores.items())
    print(f"cores of {psutil.cpu_count()} that were used: {busy}; the page waited for one "
          f"{waited:.0%} of the time")  # fmt: skip
    grown = 0.0
    for name, sizes in memory.items():
        third = len(sizes) // 3
        by = statistics.mean(sizes[-third:]) - statistics.mean(sizes[third : 2 * third])
        grown = max(grown, by)
        print(
            f"memory of {name}: {sizes[0]:.0f} MiB at first, {sizes[third]:.0f} after a third, "
            f"{sizes[-1]:.0f} in the end; {by:+.0f} from the second third to the last"
        )
    prompts = sum(len(visitor.titles) for visitor in visitors)
    print(f"{len(owners)} images, {shared} seen by two; {prompts} prompts, {foreign} of others; "
          f"{len(errors)} visitors ended by an error")  # fmt: skip
    for error in errors[:3]:
        print(f"  {type(error).__name__}: {error}")
    bad = longest > args.limit or grown > args.growth or shared or foreign or errors or not prompts
    return int(bool(bad))


def main() -> int:
    """Starts the page, and the load on it."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--visitors", type=int, default=50)
    parser.add_argument("--seconds", type=float, default=300)
    parser.add_argument("--workdir", type=Path, help="a cascade (default: the demo)")
    parser.add_argument("--limit", type=float, default=1.0, help="seconds of an answer")
    parser.add_argument("--growth", type=float, default=64.0, help="MiB")
    args = parser.parse_args()
    command = [sys.executable, "-m", "imagen_jax.main", "demo", "--port", "0"]
    command += ["--workdir", str(args.workdir)] if args.workdir else []
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            found = re.search(r"http://\S+", process.stdout.readline())
            assert found, "the page did not start"
            status = asyncio.run(load(found[0], psutil.Process(process.pid), args))
        finally:
            process.terminate()
    return status


if __name__ == "__main__":
    sys.exit(main())
