"""Overhead that data loading, metrics and checkpoints add to the time of a training step.

  python -m benchmarks.training_overhead --config configs/quickstart.py --stage base \\
      --data runs/quickstart/embeddings

Rounds of each kind of step follow one another, and what is compared is a round with the one beside
it: the machine's own ups and downs fall out. Checkpoints are too rare for that: a round that begins
with a save is compared with one that does not, and the difference is spread over the steps between
two checkpoints.
"""

from __future__ import annotations

import argparse
import collections
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import jax
import numpy as np
from clu import metric_writers

from imagen_jax import sharding
from imagen_jax.checkpoints.writing import Checkpointer
from imagen_jax.config import load_config
from imagen_jax.stage import make_stage
from imagen_jax.stage_config import VALIDATION_LOSS
from imagen_jax.train.guards import StepGuard
from imagen_jax.train.loop import STEPS_AHEAD
from imagen_jax.train.metrics import summarise
from imagen_jax.train.start import open_batches
from imagen_jax.train.state import create_state
from imagen_jax.train.step import jit_train_step


class Rounds:
    """Training steps of one stage, with and without the work around them."""

    def __init__(self, config: str, stage: str, data: str, directory: str, steps: int):
        self.stage = make_stage(load_config(config, []), stage)
        self._steps = steps
        mesh = sharding.make_mesh()
        self._state = create_state(self.stage, mesh)
        self._step = jit_train_step(self.stage, mesh)
        self._batches = open_batches(self.stage, data, mesh)
        self._shardings = sharding.batch_shardings(mesh, self.stage.batch_names)
        self._batch = jax.device_put(next(self._batches), self._shardings)
        rows = range(self.stage.train.batch_size)
        self._guard = StepGuard(stage, Path(directory), self.stage.train.max_bad_steps, rows, print)
        self._writer = metric_writers.create_default_writer(
            str(Path(directory) / "logs"), asynchronous=True
        )
        self._directory = Path(directory)
        self._saves = 0
        self.time()  # compiles

    def time(self, load: bool = False, look: bool = False, save: bool = False) -> float:
        """Seconds of one round.

        Args:
          load: takes its batches from the embeddings, in place of one that is on the device.
          look: looks at every step's metrics, and logs as often as the config says.
          save: begins with a checkpoint, and ends when that is written.
        """
        seen: list[Any] = []
        taken: collections.deque[Any] = collections.deque()
        checkpointer = None
        if save:
            self._saves += 1
            checkpointer = Checkpointer(
                self._directory / str(self._saves), keep=1, keep_every_hours=0, keep_best=0,
                best_metric=VALIDATION_LOSS, report=print,
            )  # fmt: skip
        begin = time.monotonic()
        if checkpointer:
            state = self._state
            checkpointer.save(int(state.step), state.items(), self._batches.position())
        for n in range(1, self._steps + 1):
            batch = self._batch
            if load:
                batch = jax.device_put(next(self._batches), self._shardings)
            self._state, metrics = self._step(self._state, batch)
            if look:
                taken.append(metrics)
                while len(taken) > STEPS_AHEAD:
                    seen.append(jax.device_get(taken.popleft()))
                    self._guard.check(n, seen[-1], [""] * self.stage.train.batch_size)
                if n % self.stage.train.log_every == 0 and seen:
                    self._writer.write_scalars(n, summarise(seen))
                    seen = []
        jax.block_until_ready(self._state)
        if checkpointer:
            checkpointer.close()
        return time.monotonic() - begin


def main() -> None:
    """Measures, and prints what was measured."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    for name in ("config", "stage", "data"):
        parser.add_argument(f"--{name}", required=True)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--steps", type=int, default=50, help="of a round")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as directory:
        rounds = Rounds(args.config, args.stage, args.data, directory, args.steps)
        ratios: dict[str, list[float]] = {"data loading": [], "metrics": [], "both": []}
        bare: list[float] = []
        extra: list[float] = []
        rounds.time(load=True, look=True, save=True)  # compiles what these need
        for _ in range(args.rounds):
            for name, kind in (
                ("data loading", {"load": True}),
                ("metrics", {"look": True}),
                ("both", {"load": True, "look": True}),
            ):
                bare.append(rounds.time())
                ratios[name].append(rounds.time(**kind) / bare[-1])
            extra.append(rounds.time(save=True) - bare[-1])
        step = statistics.median(bare) / args.steps
    print(f"step: {1000 * step:.1f} ms on {jax.devices()[0].device_kind}")
    for name, values in ratios.items():
        low, middle, high = (100 * (np.quantile(values, q) - 1) for q in (0.25, 0.5, 0.75))
        print(f"{name}: {middle:+.2f}% ({low:+.2f} to {high:+.2f}, half of {len(values)} rounds)")
    every = rounds.stage.train.checkpoint_every
    middle = statistics.median(extra)
    print(
        f"checkpoint: {middle:.2f} s more ({min(extra):.2f} to {max(extra):.2f}), "
        f"{100 * middle / (every * step):+.2f}% as there is one in {every} steps"
    )


if __name__ == "__main__":
    main()
