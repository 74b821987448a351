"""Read what lies under a work directory: the record of a stage, and its averaged weights."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from imagen_jax.buckets import BucketPath
from imagen_jax.errors import UserError, no_space
from imagen_jax.files import read_json
from imagen_jax.paths import as_path
from imagen_jax.stage_config import BETTER

CHECKPOINTS = "checkpoints"
RECORD = "stage.json"
_MARK = "/commit_success.txt"
X0_ERRORS = "x0_errors.json"
"""Errors by noise level that the last validation of a stage measured."""


class DamagedCheckpoint(UserError):
    """A checkpoint that cannot be read, or does not hold what was saved."""


def stage_directory(workdir: str | Path, stage: str) -> Path:
    """Return <workdir>/<stage>."""
    return as_path(workdir) / stage


def checkpoint_steps(directory: str | Path) -> list[int]:
    """Return the steps of a stage's complete checkpoints, ascending.

    Args:
      directory: <workdir>/<stage>.

    Raises:
      PermissionError: whether there are any may not be seen.
    """
    checkpoints = as_path(directory) / CHECKPOINTS
    if isinstance(checkpoints, BucketPath):  # where nothing is renamed: Orbax leaves a mark
        marked = (name.removesuffix(_MARK) for name in checkpoints.names() if name.endswith(_MARK))
        return sorted(int(name) for name in marked if name.isdecimal())
    try:
        names = os.listdir(checkpoints)
    except (FileNotFoundError, NotADirectoryError):
        return []
    return sorted(int(name) for name in names if name.isdecimal())


def newest_checkpoint(directory: str | Path) -> Path:
    """Return the newest complete checkpoint of a stage.

    Raises:
      UserError: there is none.
    """
    steps = checkpoint_steps(directory)
    checkpoints = as_path(directory) / CHECKPOINTS
    if not steps:
        raise UserError(
            f"no checkpoint in {checkpoints}; train this stage first: "
            f"imagen train --stage {checkpoints.parent.name} ..."
        )
    return checkpoints / str(steps[-1])


def quality(metrics: Mapping[str, float]) -> float:
    """Return a number that ranks checkpoints, higher for a better one.

    Args:
      metrics: the one measurement that a checkpoint is stored with; its name is a key of
        stage_config.BETTER.
    """
    ((name, value),) = metrics.items()
    return BETTER[name] * value


def best_checkpoint(directory: str | Path) -> Path:
    """Return the best complete checkpoint of a stage by its train.best_metric.

    Raises:
      UserError: no checkpoint was measured.
    """
    found = {}
    for step in checkpoint_steps(directory):
        path = as_path(directory) / CHECKPOINTS / str(step)
        if (metrics := path / "metrics" / "metrics").is_file():
            found[path] = quality(read_json(metrics, "measurement of a checkpoint"))
    if not found:
        raise UserError(
            f"no checkpoint in {as_path(directory) / CHECKPOINTS} was measured; train with "
            "train.keep_best and what its best_metric needs, or take the newest"
        )
    return max(found, key=found.__getitem__)


def ema_item(decay: str | None = None) -> str:
    """Return the item of a checkpoint that holds an average: the main one, or another decay's."""
    return "ema" if decay is None else f"ema_{decay}"


def ema_digest(checkpoint: Path, decay: float | None = None) -> str:
    """Return a hash of what restore_ema reads: of the checksums that it was saved with.

    Args:
      checkpoint: path of a complete checkpoint.
      decay: see restore_ema.

    Raises:
      UserError: no average of this decay was kept; the message names those that were.
      DamagedCheckpoint: the checksums cannot be read.
    """
    item = ema_item(None if decay is None else str(decay))
    if decay is not None and not (checkpoint / item).is_dir():
        extra = [p.name.removeprefix("ema_") for p in sorted(checkpoint.glob("ema_*"))]
        raise UserError(
            f"{checkpoint} has no average of decay {decay}; beside the main one there are: "
            f"{', '.join(extra) or 'none'}"
        )
    try:
        sums = read_json(checkpoint / "checksums" / "metadata", "list of checksums")[item]
    except (OSError, ValueError, KeyError) as error:
        raise DamagedCheckpoint(f"{checkpoint} has no checksums: {reason(error)}") from error
    return hashlib.sha256(json.dumps(sums, sort_keys=True).encode()).hexdigest()


def restore_ema(checkpoint: Path, abstract_params: Any, decay: float | None = None) -> Any:
    """Return the averaged weights of a checkpoint.

    Args:
      checkpoint: path of a complete checkpoint.
      abstract_params: pytree of ShapeDtypeStructs with shardings.
      decay: one of train.extra_ema_decays of its config; None is train.ema_decay.

    Raises:
      UserError: the checkpoint is no longer there, or has no average of this decay.
      DamagedCheckpoint: the weights cannot be read, or are not those that were saved.
    """
    # Imported here: reading the record of a stage should not cost a second.
    import orbax.checkpoint as ocp

    _check_reach(checkpoint)
    if not checkpoint.is_dir():
        raise UserError(
            f"{checkpoint} was removed since it was looked up, by a training that writes newer "
            "ones; run the command again"
        )
    ema_digest(checkpoint, decay)  # an unknown decay is an error of its own
    item = ema_item(None if decay is None else str(decay))
    wanted = {
        item: ocp.args.StandardRestore(abstract_params),
        "checksums": ocp.args.JsonRestore(),
    }
    try:
        with ocp.CheckpointManager(checkpoint.parent.absolute()) as manager:
            restored = manager.restore(int(checkpoint.name), args=ocp.args.Composite(**wanted))
    except Exception as error:  # of whatever kind the library's parts raise on damage
        raise DamagedCheckpoint(f"{checkpoint} cannot be read: {reason(error)}") from error
    check_restored(checkpoint / item, restored["checksums"].get(item, {}), restored[item])
    return restored[item]


def restore_factors(checkpoint: Path) -> dict[str, dict[str, Any]]:
    """Return the factors of a checkpoint of a stage that was trained with train.lora_rank.

    Returns:
      {"a": {name: array}, "b": {name: array}}, see train.lora.LowRankState.

    Raises:
      DamagedCheckpoint: they cannot be read, or are not those that were saved.
    """
    import jax
    import orbax.checkpoint as ocp

    _check_reach(checkpoint)
    path = checkpoint / "state"
    try:
        with ocp.StandardCheckpointer() as checkpointer:
            state = checkpointer.restore(path.absolute())
        sums = read_json(checkpoint / "checksums" / "metadata", "list of checksums")["state"]
        factors = state["opt_state"]["factors"]
    except Exception as error:  # of whatever kind the library's parts raise on damage
        raise DamagedCheckpoint(f"{checkpoint} cannot be read: {reason(error)}") from error
    prefix = "['opt_state'].factors"  # as the train state has them
    check_restored(path, {name.removeprefix(prefix): sums[name] for name in sums}, factors)
    return jax.device_get(factors)


def _check_reach(checkpoint: Path) -> None:
    if isinstance(checkpoint, BucketPath) and not (find_spec("tensorflow") or find_spec("gcsfs")):
        raise UserError(
            f"{checkpoint} is read by gcsfs or TensorFlow, and neither is installed: pip install "
            "gcsfs. What `imagen export` wrote to a bucket needs neither"
        )


def reason(error: BaseException) -> str:
    """Return why reading or writing a checkpoint failed, in one line: the innermost cause."""
    while error.__cause__ is not None:
        error = error.__cause__
    if full := no_space(error):
        return full
    text = " ".join(f"{type(error).__name__}: {error}".split())
    return text if len(text) <= 400 else f"{text[:150]} ... {text[-250:]}"


def check_restored(path: Path, stored: dict[str, int], tree: Any) -> None:
    """Compare what was read of a checkpoint with the checksums of what was saved.

    Raises:
      DamagedCheckpoint: arrays differ; the message names one.
    """
    from imagen_jax.checkpoints.checksums import checksums

    differing = [name for name, value in checksums(tree).items() if stored.get(name) != value]
    if differing:
        raise DamagedCheckpoint(
            f"{path} is damaged: {len(differing)} arrays do not have the checksums that they were "
            f"saved with, such as {differing[0]}"
        )
