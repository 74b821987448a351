"""Orbax checkpoints of one stage: <workdir>/<stage>/checkpoints/<step>/{state,ema,data,...}.

The moving average of the weights is an item of its own, so that sampling reads it alone; so is
every further average, ema_<decay>. The position in the data travels with the state, so that resumed
training sees the batches it would have seen. Checksums of all arrays are stored beside them, and
compared after reading: a checkpoint is restored whole or not at all.

A checkpoint is written in the background, under a temporary name until it is complete.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp
from jax.experimental import multihost_utils
from orbax.checkpoint import checkpoint_managers

from imagen_jax.checksums import checksums
from imagen_jax.data.iterator import BatchIterator
from imagen_jax.errors import UserError
from imagen_jax.quality import quality
from imagen_jax.train.state import TrainState
from imagen_jax.workdir import (
    CHECKPOINTS,
    DamagedCheckpoint,
    check_restored,
    ema_item,
    reason,
)

DAMAGED = "damaged_checkpoints"


class DataPositionHandler(ocp.CheckpointHandler):
    """Saves and restores a BatchIterator as one item of an Orbax checkpoint."""

    def save(self, directory: Any, args: DataPosition) -> None:
        args.item.save(str(directory))

    def restore(self, directory: Any, args: DataPosition | None = None) -> BatchIterator:
        if args is None:
            raise UserError("restoring a data position needs the iterator that is to take it")
        args.item.restore(str(directory))
        return args.item


@ocp.args.register_with_handler(DataPositionHandler, for_save=True, for_restore=True)
@dataclasses.dataclass
class DataPosition(ocp.args.CheckpointArgs):
    """Orbax arguments that carry the iterator."""

    item: BatchIterator


class Checkpointer:
    """Saves and restores one stage's train state together with its position in the data."""

    def __init__(
        self,
        stage_directory: str | Path,
        keep: int,
        keep_every_hours: float,
        keep_best: int,
        best_metric: str,
        report: Callable[[str], None],
    ):
        """Args:
        stage_directory: <workdir>/<stage>; created if missing.
        keep: newest checkpoints that are kept.
        keep_every_hours: of older ones, one in so many hours is kept; 0 is none.
        keep_best: so many of the best by `best_metric` are kept.
        best_metric: key of quality.BETTER.
        report: shows a line.
        """
        self._directory = (Path(stage_directory) / CHECKPOINTS).absolute()
        self._report = report
        self._report_unfinished()
        policies: list[Any] = [checkpoint_managers.LatestN(keep)]
        if keep_every_hours:
            policies.append(checkpoint_managers.EveryNSeconds(3600 * keep_every_hours))
        self._best_metric = best_metric
        if keep_best:
            policies.append(
                checkpoint_managers.BestN(
                    get_metric_fn=quality, n=keep_best, keep_checkpoints_without_metrics=False
                )
            )
        self._manager = ocp.CheckpointManager(
            self._directory,
            options=ocp.CheckpointManagerOptions(
                # With it, metrics are stored, and read by a resumed run.
                best_fn=quality if keep_best else None,
                preservation_policy=checkpoint_managers.AnyPreservationPolicy(policies),
                create=True,
                cleanup_tmp_directories=True,
                # Created in the background, a directory that cannot be is waited for ten minutes.
                async_options=ocp.AsyncOptions(create_directories_asynchronously=False),
            ),
        )

    def save(
        self,
        state: TrainState,
        batches: BatchIterator,
        metrics: Mapping[str, float] | None = None,
    ) -> None:
        """Saves asynchronously; the data position is copied before this returns.

        Call it after a step and before the next batch is taken.

        Args:
          state: what training changes.
          batches: the iterator that the next batch will come from.
          metrics: what was measured of the state, if anything; what ranks it is stored.

        Raises:
          OSError: this checkpoint, or the one before it, could not be written.
        """
        ranking = {k: v for k, v in (metrics or {}).items() if k == self._best_metric}
        items = _items(state)
        sums = {name: checksums(item) for name, item in items.items()}
        with self._writing():
            self._manager.save(
                int(state.step),
                args=ocp.args.Composite(
                    **{name: ocp.args.StandardSave(item) for name, item in items.items()},
                    data=DataPosition(batches),
                    checksums=ocp.args.JsonSave(sums),
                ),
                metrics=ranking or None,
            )

    def check(self) -> None:
        """Raises an OSError if a checkpoint could not be written in the background."""
        with self._writing():
            self._manager.check_for_errors()

    def restore(
        self, abstract: TrainState, batches: BatchIterator, fall_back: bool
    ) -> TrainState | None:
        """The newest checkpoint, with `batches` moved to its position; None if there is none.

        Args:
          abstract: shapes and shardings of the state.
          batches: an iterator with the arguments of the saved one.
          fall_back: where the newest is damaged, set it aside and take the newest that is whole.

        Raises:
          DamagedCheckpoint: the newest is damaged, and not to be replaced by an older one; or all
            are.
          UserError: the position belongs to other data; see BatchIterator.restore.
        """
        steps = sorted(self._manager.all_steps(), reverse=True)
        for step in steps:
            try:
                return self._restore(step, abstract, batches)
            except DamagedCheckpoint as damage:
                older = [s for s in steps if s < step]
                if not fall_back:
                    raise DamagedCheckpoint(
                        f"{damage}. " + (f"Older ones: {', '.join(map(str, older))}; "
                        "--fall-back resumes from the newest of them that is whole"
                        if older else "There is no older one")
                    ) from damage  # fmt: skip
                self._set_aside(step, str(damage))
        if steps:
            raise DamagedCheckpoint(
                f"none of the checkpoints of steps {', '.join(map(str, steps))} is whole; they are "
                f"in {self._directory.parent / DAMAGED}"
            )
        return None

    def wait(self) -> None:
        """Waits until everything is written; raises an OSError if it could not be."""
        with self._writing():
            self._manager.wait_until_finished()

    def close(self) -> None:
        """Waits as `wait` does, and ends the background's threads."""
        try:
            self.wait()
        finally:
            self._manager.close()

    @contextlib.contextmanager
    def _writing(self) -> Iterator[None]:
        """Turns whatever the library's parts raise into an error that says where that leaves us."""
        try:
            yield
        except jax.errors.JaxRuntimeError:  # of the devices, or another host
            raise
        except Exception as error:
            raise OSError(
                f"cannot write a checkpoint to {self._directory}: {reason(error)}; those before it "
                "are as they were"
            ) from error

    def _restore(self, step: int, abstract: TrainState, batches: BatchIterator) -> TrainState:
        path = self._directory / str(step)
        wanted = _items(abstract)
        try:
            restored = self._manager.restore(
                step,
                args=ocp.args.Composite(
                    **{name: ocp.args.StandardRestore(item) for name, item in wanted.items()},
                    checksums=ocp.args.JsonRestore(),
                ),
            )
        except Exception as error:  # of whatever kind the library's parts raise on damage
            raise DamagedCheckpoint(f"{path} cannot be read: {reason(error)}") from error
        for name in wanted:
            check_restored(path / name, restored["checksums"].get(name, {}), restored[name])
        try:
            self._manager.restore(step, args=ocp.args.Composite(data=DataPosition(batches)))
        except (OSError, KeyError, json.JSONDecodeError) as error:
            raise DamagedCheckpoint(f"{path} cannot be read: {reason(error)}") from error
        extra = {decay: restored[ema_item(decay)] for decay in abstract.extra_ema}
        return TrainState(ema=restored["ema"], extra_ema=extra, **restored["state"])

    def _set_aside(self, step: int, reason: str) -> None:
        target = self._directory.parent / DAMAGED / str(step)
        self._report(f"WARNING: {reason}; moved to {target}, and falling back to an older one")
        if jax.process_index() == 0:
            target.parent.mkdir(exist_ok=True)
            (self._directory / str(step)).rename(target)
        multihost_utils.sync_global_devices(f"checkpoint {step} set aside")
        self._manager.reload()

    def _report_unfinished(self) -> None:
        for path in sorted(self._directory.glob(f"*{ocp.path.atomicity_types.TMP_DIR_SUFFIX}*")):
            self._report(
                f"{path.name.split('.')[0]} in {self._directory} was not written to its end when "
                "training was interrupted; it is removed"
            )


def _items(state: TrainState) -> dict[str, Any]:
    """What is saved of a state, as items of a checkpoint."""
    main = ("step", "skipped", "params", "opt_state")
    return {
        "state": {name: getattr(state, name) for name in main},
        "ema": state.ema,
        **{ema_item(decay): average for decay, average in state.extra_ema.items()},
    }
