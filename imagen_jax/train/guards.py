"""Guards of training: steps that are not finite (NaN), and losses that jump."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from imagen_jax.errors import UserError

SPIKE = 6.0
"""Standard deviations of log loss above its mean, from which on a loss is reported."""
MEMORY = 100
"""Steps that the deviation remembers, and that it is learned from at first."""
MEAN_MEMORY = 20
"""Steps that the mean remembers: few, so that it follows a loss that falls."""
NAMED = 8
"""Examples that a message names at most; the file that it points to has all."""


class StepGuard:
    """Looks at each step's metrics, counts what was skipped, and ends training that diverges.

    What is noticed is written to <directory>/step_<step>_host_<host>.json with the ids of this
    host's examples of that step. With the record of the stage that is enough to compute the step
    again: its randomness follows from the seed and the step.

    Attributes:
      in_a_row: steps skipped just now, one after another.
    """

    def __init__(
        self,
        stage: str,
        directory: Path,
        max_bad_steps: int,
        rows: Sequence[int],
        report: Callable[[str], None],
    ):
        """Args:
        stage: its name, for messages.
        directory: folder for files about bad steps; created with the first one.
        max_bad_steps: skipped steps in a row that end training.
        rows: positions of this host's examples in the global batch, in the order of their ids.
        report: shows a line.
        """
        self._stage = stage
        self._directory = directory
        self._max_bad_steps = max_bad_steps
        self._rows = np.asarray(rows)
        self._report = report
        self._seen = 0
        self._mean = self._variance = 0.0
        self.in_a_row = 0

    def check(self, step: int, metrics: dict[str, Any], ids: Sequence[str]) -> bool:
        """Looks at one step.

        Args:
          step: number of the step, from 1.
          metrics: metrics of make_train_step, fetched from the devices.
          ids: ids of this host's examples.

        Returns:
          Whether the loss was finite and jumped.

        Raises:
          UserError: too many steps in a row were not finite; names examples of the last one.
        """
        loss = float(metrics["loss"])
        if metrics["finite"]:
            self.in_a_row = 0
            return self._check_spike(step, loss, metrics, ids)
        self.in_a_row += 1
        suspects = [
            name
            for name, value in zip(ids, metrics["loss_per_example"][self._rows], strict=True)
            if not np.isfinite(value)
        ]
        path = self._write(step, "skipped", metrics, ids, suspects)
        what = (
            f"the loss is {loss:g}, the gradient's norm {float(metrics['grad_norm']):g} and the "
            f"update's {float(metrics['update_norm']):g}; examples: {_some(suspects or ids)}"
        )
        if self.in_a_row >= self._max_bad_steps:
            raise UserError(
                f"{self._stage}: {self.in_a_row} steps in a row were not finite and were skipped. "
                f"At step {step} {what}; their ids are in {path.parent}. If these examples are "
                "sound, start again with a lower train.learning_rate, or train.clip_norm"
            )
        self._report(f"{self._stage}: step {step} skipped: {what}; see {path}")
        return False

    def _check_spike(
        self, step: int, loss: float, metrics: dict[str, Any], ids: Sequence[str]
    ) -> bool:
        value = math.log(max(loss, 1e-30))
        above = value - self._mean
        deviation = math.sqrt(self._variance)
        spiked = self._seen >= MEMORY and above > SPIKE * deviation
        if spiked:
            path = self._write(step, "spike", metrics, ids, [])
            self._report(
                f"{self._stage}: the loss jumped at step {step}: {loss:.4g}, after a mean of "
                f"{math.exp(self._mean):.4g}; the examples are in {path}"
            )
        # Exponentially weighted; over the first steps, with equal weights.
        self._seen += 1
        self._mean += above / min(self._seen, MEAN_MEMORY)
        if self._seen > 1:
            self._variance += (above**2 - self._variance) / min(self._seen - 1, MEMORY)
        return spiked

    def _write(
        self,
        step: int,
        kind: str,
        metrics: dict[str, Any],
        ids: Sequence[str],
        suspects: Sequence[str],
    ) -> Path:
        path = self._directory / f"step_{step:07d}_host_{jax.process_index():05d}.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        numbers = {name: str(float(metrics[name])) for name in ("loss", "grad_norm", "update_norm")}
        content = {"step": step, "kind": kind, **numbers, "ids": list(ids)}
        path.write_text(
            json.dumps(content | {"not_finite": list(suspects)}, indent=1) + "\n", "utf-8"
        )
        return path


def _some(names: Sequence[str]) -> str:
    more = len(names) - NAMED
    return ", ".join(names[:NAMED]) + (f" and {more} more" if more > 0 else "")
