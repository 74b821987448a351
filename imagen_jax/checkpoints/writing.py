"""Save and restore the train state of one stage: <stage>/checkpoints/<step>/{state,ema,data,...}.

A checkpoint consists of items. The moving average of the weights is one of them, so that sampling
reads it alone; so is every further average, ema_<decay>. The position in the data is saved with the
state, so that a resumed run sees the batches it would have seen. Checksums of all arrays are stored
beside them and compared after reading: a checkpoint is restored whole or not at all.

A checkpoint is written in the background, under a temporary name until it is complete.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import orbax.checkpoint as ocp
from jax.experimental import multihost_utils
from orbax.checkpoint import checkpoint_managers
from orbax.checkpoint._src.path import gcs_utils

from imagen_jax.buckets import BucketPath
from imagen_jax.checkpoints.checksums import checksums
from imagen_jax.checkpoints.reading import (
    CHECKPOINTS,
    DamagedCheckpoint,
    check_restored,
    checkpoint_steps,
    quality,
    reason,
)
from imagen_jax.errors import MachineError
from imagen_jax.paths import as_path

DAMAGED = "damaged_checkpoints"


def _is_not_raised_too(record: logging.LogRecord) -> bool:
    """Leave out failures that Orbax, and CLU's writer of metrics, log with hundreds of lines of
    tracebacks and also raise."""
    libraries = {"orbax", "clu"}.intersection(Path(record.pathname).parts)
    return record.levelno < logging.ERROR or not libraries


# Where a folder of a bucket is removed, Orbax asks by google-cloud-storage, and with the right to
# read the bucket's settings, whether there are folders apart from objects. They would be empty.
gcs_utils.is_hierarchical_namespace_enabled = lambda path: False


logging.getLogger("absl").addFilter(_is_not_raised_too)


class Saved(NamedTuple):
    """Content of a checkpoint.

    Attributes:
      items: name -> pytree of arrays.
      position: in the data, as JSON.
    """

    items: dict[str, Any]
    position: dict[str, Any]


class Checkpointer:
    """Saves and restores one stage's train state together with its position in the data."""

    def __init__(
        self,
        stage_directory: str | Path,
        *,
        keep: int,
        keep_every_hours: float,
        keep_best: int,
        best_metric: str,
        report: Callable[[str], None],
    ):
        """Args:
        stage_directory: <workdir>/<stage>; created if missing.
        keep: number of the newest checkpoints to keep.
        keep_every_hours: hours between older checkpoints that are kept; 0 keeps none.
        keep_best: number of the best checkpoints to keep by `best_metric`.
        best_metric: key of stage_config.BETTER.
        report: shows a line.
        """
        self._directory = (as_path(stage_directory) / CHECKPOINTS).absolute()
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

    def __enter__(self) -> Checkpointer:
        return self

    def __exit__(self, kind: type[BaseException] | None, *exception: object) -> None:
        """Close, but where another host may be gone: what is being saved would wait for it."""
        lost = kind is not None and issubclass(kind, jax.errors.JaxRuntimeError)
        if not (lost and jax.process_count() > 1):
            self.close()

    def prepare(self, items: Mapping[str, Any]) -> None:
        """Compile the checksums of items, for which the first save would hold up training."""
        for item in items.values():
            checksums(item)

    def save(
        self,
        step: int,
        items: Mapping[str, Any],
        position: Mapping[str, Any],
        metrics: Mapping[str, float] | None = None,
    ) -> None:
        """Save in the background; the arrays are copied before this returns.

        Args:
          step: number of the step that the state follows.
          items: name -> pytree of arrays.
          position: in the data, as JSON: where the next batch comes from.
          metrics: measurements of the state, if there are any; the one that ranks it is stored.

        Raises:
          MachineError: this checkpoint, or the one before it, could not be written.
        """
        ranking = {k: v for k, v in (metrics or {}).items() if k == self._best_metric}
        sums = {name: checksums(item) for name, item in items.items()}
        with self._writing():
            self._manager.save(
                step,
                args=ocp.args.Composite(
                    **{name: ocp.args.StandardSave(item) for name, item in items.items()},
                    data=ocp.args.JsonSave(dict(position)),
                    checksums=ocp.args.JsonSave(sums),
                ),
                metrics=ranking or None,
            )

    def check(self) -> None:
        """Raise a MachineError if a checkpoint could not be written in the background."""
        with self._writing():
            self._manager.check_for_errors()

    def restore(self, abstract: Mapping[str, Any], fall_back: bool) -> Saved | None:
        """Return the newest checkpoint; None if there is none.

        Args:
          abstract: shapes and shardings of the items.
          fall_back: if the newest is damaged, set it aside and take the newest that is whole.

        Raises:
          DamagedCheckpoint: the newest is damaged, and not to be replaced by an older one; or all
            are.
        """
        steps = sorted(self._manager.all_steps(), reverse=True)
        for step in steps:
            try:
                return self._restore(step, abstract)
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
        """Wait until everything is written; raise a MachineError if it could not be."""
        with self._writing():
            self._manager.wait_until_finished()

    def close(self) -> None:
        """Wait as `wait` does, and end the background threads."""
        try:
            self.wait()
        finally:
            self._manager.close()

    @contextlib.contextmanager
    def _writing(self) -> Iterator[None]:
        """Turn whatever the library's parts raise into an error that says where that leaves us."""
        try:
            yield
        except jax.errors.JaxRuntimeError:  # of the devices, or another host
            raise
        except Exception as error:
            raise MachineError(
                f"cannot write a checkpoint to {self._directory}: {reason(error)}; those before it "
                "are as they were"
            ) from error

    def _restore(self, step: int, abstract: Mapping[str, Any]) -> Saved:
        path = self._directory / str(step)
        try:
            restored = self._manager.restore(
                step,
                args=ocp.args.Composite(
                    **{name: ocp.args.StandardRestore(item) for name, item in abstract.items()},
                    data=ocp.args.JsonRestore(),
                    checksums=ocp.args.JsonRestore(),
                ),
            )
        except Exception as error:  # of whatever kind the library's parts raise on damage
            raise DamagedCheckpoint(f"{path} cannot be read: {reason(error)}") from error
        for name in abstract:
            check_restored(path / name, restored["checksums"].get(name, {}), restored[name])
        return Saved({name: restored[name] for name in abstract}, restored["data"])

    def _set_aside(self, step: int, reason: str) -> None:
        target = self._directory.parent / DAMAGED / str(step)
        self._report(f"WARNING: {reason}; moved to {target}, and falling back to an older one")
        if jax.process_index() == 0:
            target.parent.mkdir(exist_ok=True)
            (self._directory / str(step)).rename(target)
        multihost_utils.sync_global_devices(f"checkpoint {step} set aside")
        self._manager.reload()

    def _report_unfinished(self) -> None:
        pattern = f"*{ocp.path.atomicity_types.TMP_DIR_SUFFIX}*"
        found = {path.name.split(".")[0] for path in self._directory.glob(pattern)}
        if isinstance(self._directory, BucketPath):
            there = {path.name for path in self._directory.glob("*") if path.name.isdecimal()}
            found |= there - {str(step) for step in checkpoint_steps(self._directory.parent)}
        for step in sorted(found):
            self._report(
                f"{step} in {self._directory} was not written to its end when "
                "training was interrupted; it is removed"
            )
