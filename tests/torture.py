"""Kills a small training again and again, and compares what comes out with an undisturbed one.

  python tests/torture.py --kills 30

Half of the kills are SIGKILL and half SIGTERM; half of them come while a checkpoint is written.
"""

from __future__ import annotations

import argparse
import os
import signal
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import tiny
from forks import fork, imagen, wait

from imagen_jax.data.iterator import BatchIterator
from imagen_jax.train.interruption import PREEMPTED

TESTS = Path(__file__).resolve().parent

STARTED, SAVING, SAVED = "started", "saving", "saved"
"""Moments: before this start has saved anything, while it writes a checkpoint, and after that."""


class Kill(NamedTuple):
    """A signal at a moment."""

    signal: signal.Signals
    moment: str


KILLS = (
    Kill(signal.SIGKILL, STARTED),
    Kill(signal.SIGKILL, SAVING),
    Kill(signal.SIGTERM, SAVING),
    Kill(signal.SIGTERM, SAVED),
)


def arguments(data: Path, workdir: Path, steps: int) -> list[str]:
    """The training that is killed: saves every fifth step, and keeps two checkpoints."""
    return [
        "train", "--config", str(TESTS / "tiny_config.py"), "--stage", "base",
        "--data", str(data), "--workdir", str(workdir), "--set", *tiny.ONE_LEVEL,
        f"stages.base.train.steps={steps}", "stages.base.train.checkpoint_every=5",
        "stages.base.train.log_every=5", "stages.base.train.sample_every=0",
    ]  # fmt: skip


def hold_at(step: int) -> None:
    """Has this process wait for its kill, should it come so far: a busy machine may be late."""
    take = BatchIterator.__next__

    def told() -> bool:
        preemption = getattr(signal.getsignal(signal.SIGTERM), "__self__", None)
        return getattr(preemption, "_noticed_at", None) is not None

    def take_and_wait(batches: BatchIterator) -> dict[str, Any]:
        batch = take(batches)
        until = time.monotonic() + 600
        while batches.step == step and not told() and time.monotonic() < until:
            time.sleep(0.05)
        return batch

    BatchIterator.__next__ = take_and_wait  # type: ignore[method-assign]


class Torture:
    """Kills one training."""

    def __init__(self, data: Path, workdir: Path, steps: int):
        workdir.mkdir()
        self._argv = arguments(data, workdir, steps)
        self._last = steps
        self._checkpoints = workdir / "base" / "checkpoints"
        self._log = workdir.with_suffix(".log")
        self._log.touch()

    def _names(self) -> set[str]:
        try:
            return {path.name for path in self._checkpoints.iterdir()}
        except FileNotFoundError:
            return set()

    def _start(self, held: bool = False) -> int:
        def train() -> int:
            if held:
                hold_at(self._last - 1)
            return imagen(self._argv)

        return fork(train, self._log)

    def _end(self, child: int, expected: int) -> None:
        if (status := wait(child)) != expected:
            said = self._log.read_text(errors="replace")[-2000:]
            raise RuntimeError(f"ended with {status}, expected {expected}: {said}")

    def kill_once(self, kill: Kill) -> None:
        """Starts training, kills it at a moment, and waits for its end.

        Raises:
          RuntimeError: it did not come to that moment, or did not end as it should.
        """
        printed, before = self._log.stat().st_size, self._names()
        child = self._start(held=True)

        def reached() -> bool:
            if kill.moment == STARTED:
                return b"steps " in self._log.read_bytes()[printed:]
            new = self._names() - before
            return any(("tmp" in name) == (kill.moment == SAVING) for name in new)

        while not reached():
            if os.waitid(os.P_PID, child, os.WEXITED | os.WNOHANG | os.WNOWAIT):
                break  # and its status tells that it was too soon
            time.sleep(0.001)
        os.kill(child, kill.signal)
        killed = kill.signal == signal.SIGKILL
        self._end(child, -signal.SIGKILL if killed else PREEMPTED)

    def finish(self) -> None:
        """Trains to the end."""
        self._end(self._start(), 0)


def arrays_of(workdir: Path) -> dict[str, np.ndarray]:
    """Every array of the newest checkpoint by its name."""
    import jax
    import orbax.checkpoint as ocp

    from imagen_jax.checkpoints.reading import newest_checkpoint

    path = newest_checkpoint(workdir / "base").absolute()
    found = {}
    for item in ("state", "ema"):
        tree = ocp.StandardCheckpointer().restore(path / item)
        leaves, _ = jax.tree_util.tree_flatten_with_path(tree)
        found |= {item + jax.tree_util.keystr(path): np.asarray(leaf) for path, leaf in leaves}
    return found


def torture(directory: Path, kills: Sequence[Kill], steps: int) -> None:
    """Trains undisturbed and killed again and again.

    Raises:
      AssertionError: the final states differ in a bit.
    """
    data = directory / "data"

    def embed() -> None:
        tiny.embed_colours(data)

    assert wait(fork(embed)) == 0
    undisturbed, killed = (
        Torture(data, directory / name, steps) for name in ("undisturbed", "killed")
    )
    undisturbed.finish()
    for kill in kills:
        killed.kill_once(kill)
    killed.finish()
    there, here = (arrays_of(directory / name) for name in ("undisturbed", "killed"))
    assert there.keys() == here.keys()
    for name, value in there.items():
        np.testing.assert_array_equal(here[name], value, err_msg=name, strict=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=30)
    parser.add_argument("--steps", type=int, help="(default: 40 for each kill)")
    args = parser.parse_args()
    kills = [KILLS[i % len(KILLS)] for i in range(args.kills)]
    with tempfile.TemporaryDirectory() as directory:
        begin = time.monotonic()
        torture(Path(directory), kills, args.steps or 40 * args.kills)
    print(f"{args.kills} kills: bit-identical, in {time.monotonic() - begin:.0f} s")


if __name__ == "__main__":
    main()
