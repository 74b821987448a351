"""Where training of a stage starts from: its newest checkpoint, other weights, or random ones."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import multihost_utils
from jax.sharding import Mesh
from ml_collections import ConfigDict

from imagen_jax import sharding
from imagen_jax.data.iterator import BatchIterator, train_batches
from imagen_jax.errors import UserError
from imagen_jax.stage import Stage
from imagen_jax.train.checkpoint import Checkpointer
from imagen_jax.train.state import TrainState, create_state
from imagen_jax.workdir import (
    check_init,
    claim_stage,
    claimed_origin,
    make_record,
    restore_ema,
    stage_directory,
)


def open_batches(stage: Stage, data_dir: str, mesh: Mesh, split: str = "train") -> BatchIterator:
    """This host's share of the batches that a stage trains on, or of another split.

    Raises:
      FileNotFoundError: missing embeddings.
      UserError: embeddings of another encoder or width, or a batch that cannot be divided.
    """
    devices = sharding.batch_divisor(mesh)
    divisor = devices * stage.train.accumulation
    if stage.train.batch_size % divisor or stage.train.batch_size % jax.process_count():
        raise UserError(
            f"stages.{stage.name}.train.batch_size is {stage.train.batch_size}; it must be a "
            f"multiple of the {devices} devices and the {jax.process_count()} hosts that share it, "
            f"and of the devices times accumulation ({stage.train.accumulation})"
        )
    batches = train_batches(
        data_dir,
        image_size=stage.resolution,
        low_res_size=stage.low_res,
        text_length=stage.text.max_length,
        batch_size=stage.train.batch_size,
        seed=stage.train.seed,
        shard_index=jax.process_index(),
        num_shards=jax.process_count(),
        split=split,
        text_width=stage.text.width,
        crop=stage.crop,
        max_damaged=stage.train.max_damaged,
    )
    recorded = batches.manifest["encoder"]["name"]
    if recorded != stage.text.encoder:
        raise UserError(
            f"the config wants text embeddings of encoder {stage.text.encoder!r}, but those in "
            f"{data_dir} were made by {recorded!r}; embed the data again with "
            f"--encoder {stage.text.encoder}, or change text.encoder"
        )
    return batches


def claim(
    config: ConfigDict,
    stage_name: str,
    manifest: dict[str, Any],
    workdir: str,
    init_from: str | None,
) -> None:
    """Makes a work directory that of a stage, or checks that it is that already.

    Where the weights of a new stage come from is recorded. Once it has a checkpoint of its own, it
    no longer matters whether they are still there, nor whether init_from is given again.

    Raises:
      FileNotFoundError: no weights to start from.
      UserError: weights of another network or for other text, or the stage was started with
        another config, on other data, or from other weights.
    """
    record = make_record(config, stage_name, manifest)
    origin = claimed_origin(workdir, stage_name)
    if origin is None and init_from is not None:
        origin = check_init(init_from, stage_name, record)
    if origin is not None:
        record["init_from"] = origin
    if jax.process_index() == 0:
        claim_stage(workdir, stage_name, record)
    multihost_utils.sync_global_devices("stage claimed")
    claim_stage(workdir, stage_name, record)  # every host sees the same work directory


def first_state(
    stage: Stage,
    mesh: Mesh,
    abstract: TrainState,
    init_from: str | None,
) -> TrainState:
    """The state before the first step: random weights, or the averaged ones of another run.

    Args:
      stage: what is to be trained.
      mesh: devices that the state lies on.
      abstract: shapes and shardings of the state.
      init_from: work directory to take weights from, None for random ones.
    """
    state = create_state(stage, mesh)
    if init_from is None:
        return state
    params, _ = restore_ema(stage_directory(init_from, stage.name), abstract.params)
    return dataclasses.replace(
        state,
        params=params,
        ema=jax.tree.map(jnp.copy, params),
        extra_ema={decay: jax.tree.map(jnp.copy, params) for decay in state.extra_ema},
    )


def make_checkpointer(stage: Stage, workdir: str, report: Callable[[str], None]) -> Checkpointer:
    """The checkpoints of a stage, kept as its config says."""
    return Checkpointer(
        stage_directory(workdir, stage.name),
        stage.train.keep_checkpoints,
        stage.train.keep_every_hours,
        stage.train.keep_best,
        stage.train.best_metric,
        report,
    )
