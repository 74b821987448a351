"""Metrics of a training: its history, TensorBoard's files, and hooks that look on."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
import tensorflow as tf
from clu import metric_writers
from tensorboard.compat.proto.event_pb2 import Event

from imagen_jax.data.records import sound_records
from imagen_jax.files import atomic_path
from imagen_jax.paths import local_copy
from imagen_jax.train.state import TrainState


class Measured(NamedTuple):
    """Argument of a hook.

    Attributes:
      step: number of the step, from 1.
      metrics: metrics since the last call: means of the steps in between, and what was
        measured of the averaged weights, see docs/run-on-tpu.md.
      state: after the step; its arrays are taken back when the hook returns.
    """

    step: int
    metrics: Mapping[str, float]
    state: TrainState


Hook = Callable[[Measured], bool | None]
"""Called on every host whenever something was measured. True ends training after this step, with a
checkpoint; on several hosts all must say so."""


@dataclasses.dataclass(frozen=True)
class History:
    """Metrics of one call of `train`.

    Attributes:
      stage: its name.
      directory: <workdir>/<stage>.
      rows: rows of every step at which something was measured: "step" and the metrics.
      state: the final state, on the devices.
    """

    stage: str
    directory: Path
    rows: Sequence[Mapping[str, float]]
    state: TrainState = dataclasses.field(repr=False)

    def __getitem__(self, metric: str) -> tuple[np.ndarray, np.ndarray]:
        """Return (steps, values) of a metric, both [n], such as history["loss"].

        Raises:
          KeyError: it was never measured; the message has those that were.
        """
        found = [(row["step"], row[metric]) for row in self.rows if metric in row]
        if not found:
            raise KeyError(f"no metric {metric!r}; there are {', '.join(self.metrics) or 'none'}")
        steps, values = zip(*found, strict=True)
        return np.array(steps), np.array(values)

    @property
    def metrics(self) -> list[str]:
        """Names of all that was measured."""
        return sorted({name for row in self.rows for name in row} - {"step"})


class Log:
    """Keeps the history, writes TensorBoard's files, and calls the hooks."""

    def __init__(self, directory: Path, hooks: Sequence[Hook], step: int):
        """Args:
        directory: directory of TensorBoard's files.
        hooks: see Hook.
        step: step of the state that training starts from. What an earlier run logged after it is
          dropped from the curves: it is measured again.
        """
        self.rows: list[dict[str, float]] = []
        self._hooks = hooks
        if jax.process_index() == 0 and any(directory.glob("events.*")):
            _drop_after(directory, step)
        self._writer = metric_writers.create_default_writer(
            str(directory), just_logging=jax.process_index() != 0, asynchronous=True
        )

    def write(
        self, state: TrainState, step: int, metrics: Mapping[str, float], images: Mapping[str, Any]
    ) -> bool:
        """Log what was measured at a step; return whether a hook wants training to end.

        Args:
          state: after the step.
          step: its number.
          metrics: scalars.
          images: name -> [h, w, 3] uint8.
        """
        self.rows.append({"step": step, **metrics})
        self._writer.write_scalars(step, metrics)
        for name, image in images.items():
            self._writer.write_images(step, {name: image[None]})
        answers = [hook(Measured(step, metrics, state)) for hook in self._hooks]
        return any(answers)

    def close(self) -> None:
        """Write what is left."""
        self._writer.close()


def _drop_after(directory: Path, step: int) -> None:
    """Take all events after a step out of TensorBoard's files; it would draw curves backwards."""
    for path in directory.glob("events.*"):
        events, kept = 0, []
        # With the end of a file after a kill.
        with local_copy(path) as copy, contextlib.suppress(tf.errors.DataLossError):
            sound, _ = sound_records(copy)
            for event in tf.data.TFRecordDataset(str(copy)).take(sound).as_numpy_iterator():
                events += 1
                if Event.FromString(event).step <= step:
                    kept.append(event)
        if len(kept) < events:
            with atomic_path(path) as temporary, tf.io.TFRecordWriter(str(temporary)) as file:
                for event in kept:
                    file.write(event)
