"""A training that is killed has the curves of one that was not: every step once, none lost.

What a kill leaves is a copy of the work directory at that moment: what had not been written to it
yet is lost, as with the process.
"""

from __future__ import annotations

import os
import shutil
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

from imagen_jax.checkpoints.reading import checkpoint_steps
from imagen_jax.checkpoints.writing import Checkpointer
from imagen_jax.low_noise import X0Errors
from imagen_jax.train import log, loop

RUN = (
    *tiny.ONE_LEVEL,
    *(
        f"stages.base.train.{change}"
        for change in (
            "steps=12", "log_every=1", "sample_every=3", "checkpoint_every=3", "keep_checkpoints=3",
            "validation_batches=1",
        )
    ),
)  # fmt: skip
LOGGED, SAVING, SAVED = "logged", "saving", "saved"
"""Moments: when curves of a step are in the file, while its checkpoint is written, and when that is
whole, but nothing has told the file's writer to hurry since."""


class Killed(BaseException):
    """In the place of a kill."""


class Measure:
    """Stands for what validates and samples, whose programs would take long to compile."""

    x0_errors = X0Errors((), (), ())

    def __init__(self, *_: Any) -> None:
        pass

    def __call__(self, params: Any) -> dict[str, float]:
        return {"validation_loss": float(sum(jnp.abs(x).sum() for x in jax.tree.leaves(params)))}

    def write(self, step: int, params: Any) -> tuple[np.ndarray, dict[str, float]]:
        value = self(params)["validation_loss"]
        return np.full((2, 2, 3), 255 * (value % 1), np.uint8), {"colour_drift_red": value}


def train(
    workdir: Path, killed: tuple[str, int, Path] | None = None, fall_back: bool = False
) -> None:
    """Trains, or is killed at a moment of a step, and leaves a directory."""
    moment, at, left = killed or ("", 0, Path())
    write, save, rename = log.Log.write, Checkpointer.save, os.rename
    savers: list[Checkpointer] = []
    may_be_whole = threading.Event()

    def renamed(source: Any, target: Any) -> None:
        if (moment, str(at)) == (SAVING, Path(target).name):
            assert may_be_whole.wait(600)
        rename(source, target)

    def kill() -> None:
        while not left.exists():
            try:
                shutil.copytree(workdir, left)
            except shutil.Error:  # a part of a checkpoint was renamed meanwhile
                shutil.rmtree(left)
        may_be_whole.set()
        raise Killed

    def logged(self: Any, state: Any, step: int, *measured: Any) -> bool:
        answer = write(self, state, step, *measured)
        if (moment, step) == (LOGGED, at):
            for saver in savers:
                saver.wait()
            self._writer.flush()
            kill()
        return answer

    def saved(self: Checkpointer, step: int, *state: Any) -> None:
        savers.append(self)
        save(self, step, *state)
        if step == at and moment in (SAVING, SAVED):
            if moment == SAVED:
                self.wait()
            kill()

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(log.Log, "write", logged)
        patch.setattr(Checkpointer, "save", saved)
        patch.setattr(os, "rename", renamed)  # with which a checkpoint becomes whole
        patch.setattr(loop, "Validation", Measure)
        patch.setattr(loop, "SampleGrid", Measure)
        config = tiny.config(*RUN)
        loop.train(config, "base", tiny.embeddings(), workdir, fall_back=fall_back)


def curves(workdir: Path) -> Mapping[str, list[tuple[int, Any]]]:
    """(step, value) of every event by tag, in the order of the files: as TensorBoard draws them."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    from tensorboard.util.tensor_util import make_ndarray

    events = EventAccumulator(
        str(workdir / "base" / "logs"), {"tensors": 0}, purge_orphaned_data=False
    )
    events.Reload()
    return {
        tag: [(event.step, make_ndarray(event.tensor_proto)) for event in events.Tensors(tag)]
        for tag in events.Tags()["tensors"]
    }


@pytest.mark.slow
def test_killed_again_and_again(tmp_path: Path) -> None:
    train(tmp_path / "undisturbed")
    workdir = tmp_path / "0"
    for number, (moment, at, kept) in enumerate(
        (
            (LOGGED, 5, [3]),
            (SAVING, 6, [3]),
            (SAVED, 6, [3, 6]),
            (LOGGED, 9, [3, 6]),
            (SAVED, 9, [3, 6, 9]),
        ),
        1,
    ):
        left = tmp_path / str(number)
        with pytest.raises(Killed):
            train(workdir, (moment, at, left))
        workdir = left
        assert checkpoint_steps(workdir / "base") == kept
    # The newest is damaged: steps that have been logged come again.
    for path in (workdir / "base" / "checkpoints" / "9" / "state").rglob("*"):
        if path.is_file():
            path.write_bytes(b"")
    train(workdir, fall_back=True)
    assert checkpoint_steps(workdir / "base") == [6, 9, 12]

    found, expected = curves(workdir), curves(tmp_path / "undisturbed")
    assert found.keys() == expected.keys()
    for tag, points in expected.items():
        assert [step for step, _ in found[tag]] == [step for step, _ in points], tag
    for tag in ("samples", "loss", "validation_loss", "colour_drift_red"):
        for (_, here), (_, there) in zip(found[tag], expected[tag], strict=True):
            np.testing.assert_array_equal(here, there, err_msg=tag)
