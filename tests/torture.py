"""Kills a small training again and again, and compares what comes out with an undisturbed one.

  python tests/torture.py --kills 30

Half of the kills are SIGKILL and half SIGTERM; a third of them come while a checkpoint is written.
"""

from __future__ import annotations

import argparse
import collections
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

TESTS = Path(__file__).resolve().parent
PREEMPTED = 75


def command(data: Path, workdir: Path, steps: int) -> list[str]:
    """The training that is killed: saves every fifth step, and keeps two checkpoints."""
    import tiny

    return [
        sys.executable, "-m", "imagen_jax.main", "train",
        "--config", str(TESTS / "tiny_config.py"), "--stage", "base",
        "--data", str(data), "--workdir", str(workdir), "--set", *tiny.ONE_LEVEL,
        f"stages.base.train.steps={steps}", "stages.base.train.checkpoint_every=5",
        "stages.base.train.log_every=5", "stages.base.train.sample_every=0",
    ]  # fmt: skip


class Torture:
    """Kills one training at random times."""

    def __init__(self, data: Path, workdir: Path, steps: int, seed: int):
        self._argv = command(data, workdir, steps)
        self._checkpoints = workdir / "base" / "checkpoints"
        self._log = workdir.with_suffix(".log")
        self._random = random.Random(seed)
        self.statuses: collections.Counter[int] = collections.Counter()
        self.during_save = 0

    def _names(self) -> set[str]:
        try:
            return {path.name for path in self._checkpoints.iterdir()}
        except FileNotFoundError:
            return set()

    def _start(self) -> subprocess.Popen[bytes]:
        with self._log.open("ab") as log:
            return subprocess.Popen(
                self._argv, stdout=log, stderr=log, cwd=TESTS.parent,
                env=os.environ | {"JAX_PLATFORMS": "cpu"},
            )  # fmt: skip

    def kill_once(self) -> None:
        """Starts training, lets it get somewhere, kills it, and waits for its end.

        Raises:
          RuntimeError: training ended before it could be killed, or not as it should.
        """
        before = self._names()
        process = self._start()
        while not self._names() - before:  # until it has saved, or begins to
            if process.poll() is not None:
                raise RuntimeError(
                    f"ended with {process.returncode}, not killed; more steps? {self._tail()}"
                )
            time.sleep(0.01)
        if self._random.random() < 1 / 3:
            while not any("tmp" in name for name in self._names()) and process.poll() is None:
                time.sleep(0.001)
            self.during_save += 1
        else:
            time.sleep(self._random.uniform(0, 0.3))
        number = self._random.choice([signal.SIGKILL, signal.SIGTERM])
        process.send_signal(number)
        status = process.wait(timeout=600)
        self.statuses[status] += 1
        expected = -signal.SIGKILL if number == signal.SIGKILL else PREEMPTED
        if status != expected:
            raise RuntimeError(f"ended with {status}, expected {expected}: {self._tail()}")

    def finish(self) -> None:
        """Trains to the end."""
        if status := self._start().wait():
            raise RuntimeError(f"ended with {status}: {self._tail()}")

    def _tail(self) -> str:
        return self._log.read_text(errors="replace")[-2000:]


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


def torture(directory: Path, data: Path, kills: int, steps: int, seed: int) -> Torture:
    """Trains undisturbed and killed `kills` times.

    Raises:
      AssertionError: the final states differ in a bit.
    """
    undisturbed = Torture(data, directory / "undisturbed", steps, seed)
    (directory / "undisturbed").mkdir()
    undisturbed.finish()
    killed = Torture(data, directory / "killed", steps, seed)
    (directory / "killed").mkdir()
    for _ in range(kills):
        killed.kill_once()
    killed.finish()
    there, here = (arrays_of(directory / name) for name in ("undisturbed", "killed"))
    assert there.keys() == here.keys()
    for name, value in there.items():
        np.testing.assert_array_equal(here[name], value, err_msg=name, strict=True)
    return killed


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=30)
    parser.add_argument("--steps", type=int, help="(default: 40 for each kill)")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    import tiny

    with tempfile.TemporaryDirectory() as directory:
        begin = time.monotonic()
        done = torture(
            Path(directory), tiny.embeddings(), args.kills, args.steps or 40 * args.kills, args.seed
        )
    print(
        f"{args.kills} kills, {done.during_save} of them during a save, statuses "
        f"{dict(done.statuses)}: bit-identical, in {time.monotonic() - begin:.0f} s"
    )


if __name__ == "__main__":
    main()
