"""Orbax checkpoints of one stage: <workdir>/<stage>/checkpoints/<step>/{state,ema,data}.

The moving average of the weights is an item of its own, so that sampling reads it alone. The
position in the data travels with the state, so that resumed training sees the batches it
would have seen.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import orbax.checkpoint as ocp

from imagen_jax.data.iterator import BatchIterator
from imagen_jax.train.state import TrainState


class DataPositionHandler(ocp.CheckpointHandler):
    """Saves and restores a BatchIterator as one item of an Orbax checkpoint."""

    def save(self, directory: Any, args: DataPosition) -> None:
        args.item.save(str(directory))

    def restore(self, directory: Any, args: DataPosition | None = None) -> BatchIterator:
        if args is None:
            raise ValueError("restoring a data position needs the iterator that is to take it")
        args.item.restore(str(directory))
        return args.item


@ocp.args.register_with_handler(DataPositionHandler, for_save=True, for_restore=True)
@dataclasses.dataclass
class DataPosition(ocp.args.CheckpointArgs):
    """Orbax arguments that carry the iterator."""

    item: BatchIterator


class Checkpointer:
    """Saves and restores one stage's train state together with its position in the data."""

    def __init__(self, stage_directory: str | Path, keep: int):
        """Args:
        stage_directory: <workdir>/<stage>; created if missing.
        keep: newest checkpoints that are kept.
        """
        self._manager = ocp.CheckpointManager(
            (Path(stage_directory) / "checkpoints").absolute(),
            options=ocp.CheckpointManagerOptions(max_to_keep=keep, create=True),
        )

    def save(self, state: TrainState, batches: BatchIterator) -> None:
        """Saves asynchronously; the data position is copied before this returns.

        Call it after a step and before the next batch is taken.
        """
        step = int(state.step)
        self._manager.save(
            step,
            args=ocp.args.Composite(
                state=ocp.args.StandardSave(_without_ema(state)),
                ema=ocp.args.StandardSave(state.ema),
                data=DataPosition(batches),
            ),
        )

    def restore(self, abstract: TrainState, batches: BatchIterator) -> TrainState | None:
        """The newest checkpoint, with `batches` moved to its position; None if there is none.

        Args:
          abstract: shapes and shardings of the state.
          batches: an iterator with the arguments of the saved one.

        Raises:
          ValueError: the position belongs to other data; see BatchIterator.restore.
        """
        step = self._manager.latest_step()
        if step is None:
            return None
        restored = self._manager.restore(
            step,
            args=ocp.args.Composite(
                state=ocp.args.StandardRestore(_without_ema(abstract)),
                ema=ocp.args.StandardRestore(abstract.ema),
                data=DataPosition(batches),
            ),
        )
        return TrainState(ema=restored["ema"], **restored["state"])

    def close(self) -> None:
        """Waits until everything is written."""
        self._manager.wait_until_finished()
        self._manager.close()


def _without_ema(state: TrainState) -> dict[str, Any]:
    return {"step": state.step, "params": state.params, "opt_state": state.opt_state}
