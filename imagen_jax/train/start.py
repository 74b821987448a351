"""The start of a training: its data, its work directory, and its first state."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import multihost_utils
from jax.sharding import Mesh
from ml_collections import ConfigDict

from imagen_jax import sharding
from imagen_jax.checkpoints.claim import check_origin, claim_stage, make_record
from imagen_jax.checkpoints.pretrained import Pretrained
from imagen_jax.checkpoints.reading import RECORD, checkpoint_steps, stage_directory
from imagen_jax.checkpoints.safety import CHECKER_KEY, WATERMARK_KEY
from imagen_jax.data.features import View
from imagen_jax.data.iterator import BatchIterator, train_batches
from imagen_jax.data.manifest import check_encoder
from imagen_jax.errors import UserError
from imagen_jax.files import atomic_path, read_json
from imagen_jax.stage import Stage
from imagen_jax.train.state import TrainState, create_state

OF_ORIGIN = ("init_from", "license", CHECKER_KEY, WATERMARK_KEY)
"""Entries of a stage's record that come from where its weights do."""


def open_batches(stage: Stage, data: str, mesh: Mesh, split: str = "train") -> BatchIterator:
    """This host's share of the batches that a stage trains on, or of another split.

    Raises:
      UserError: missing embeddings; embeddings of another encoder or width, or a batch that cannot
        be divided.
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
        data,
        View(stage.resolution, stage.low_res, stage.text.max_length, stage.crop),
        stage.train.batch_size,
        stage.train.seed,
        host=(jax.process_index(), jax.process_count()),
        split=split,
        max_damaged=stage.train.max_damaged,
    )
    recorded = batches.manifest["encoder"]["name"]
    if recorded != stage.text.encoder:
        raise UserError(
            f"the config wants text embeddings of encoder {stage.text.encoder!r}, but those in "
            f"{data} were made by {recorded!r}; embed the data again with "
            f"--encoder {stage.text.encoder}, or change text.encoder"
        )
    check_encoder(batches.manifest, width=stage.text.width)
    return batches


def stage_record(
    config: ConfigDict,
    stage: Stage,
    manifest: dict[str, Any],
    workdir: Path,
    origin: Pretrained | None,
) -> dict[str, Any]:
    """Return the record of a stage, with where the weights of a new one come from.

    Once the stage has a checkpoint of its own, it no longer matters whether those weights are still
    there, nor whether they are named again.

    Args:
      config: config of the cascade.
      stage: the stage to train.
      manifest: manifest of the embeddings.
      workdir: the work directory.
      origin: cascade that a new stage takes its weights from; None for random ones.

    Raises:
      UserError: weights of another network or for other text, or none where a change of trained
        weights is to be trained (train.lora_rank).
    """
    record = make_record(config, stage.name, manifest)
    directory = stage_directory(workdir, stage.name)
    if checkpoint_steps(directory):
        begun = read_json(directory / RECORD, "record of a stage")
        return record | {key: begun[key] for key in OF_ORIGIN if key in begun}
    if origin is not None:
        record["init_from"] = check_origin(origin, stage.name, record)
        if origin.license is not None:
            record["license"] = dict(origin.license)
        if origin.safety is not None:
            record |= origin.safety.record()
    elif stage.train.lora_rank:
        raise UserError(
            f"stages.{stage.name}.train.lora_rank is {stage.train.lora_rank}: it trains a change "
            "of trained weights; name them with --init-from"
        )
    return record


def claim(
    workdir: Path, stage: Stage, record: dict[str, Any], origin: Pretrained | None = None
) -> None:
    """Make a work directory that of a stage, or check that it is that already; on all hosts.

    Files that the origin of its weights applies to images are copied beside its record.

    Raises:
      UserError: the stage was started with another config or on other data, or hosts do not share
        the work directory.
    """
    if jax.process_index() == 0:
        claim_stage(workdir, stage.name, record)
        for file in origin.safety.files if origin is not None and origin.safety is not None else ():
            with atomic_path(stage_directory(workdir, stage.name) / file.name) as part:
                part.write_bytes(file.read_bytes())
    multihost_utils.sync_global_devices("stage claimed")
    path = stage_directory(workdir, stage.name) / RECORD
    if not path.is_file():
        raise UserError(
            f"host {jax.process_index()} does not see {path}, which the first host wrote: the work "
            "directory must be shared by all hosts"
        )


def first_state(
    stage: Stage, mesh: Mesh, abstract: TrainState, origin: Pretrained | None
) -> TrainState:
    """Return the state before the first step: random weights, or averaged ones of another run.

    Args:
      stage: the stage to train.
      mesh: devices that the state lies on.
      abstract: shapes and shardings of the state.
      origin: cascade to take weights from; None for random ones.
    """
    state = create_state(stage, mesh)
    if origin is None:
        return state
    (of_origin,) = (of for of in origin.stages if of.name == stage.name)
    params = origin.read(of_origin, abstract.params)
    return dataclasses.replace(
        state,
        params=params,
        ema=jax.tree.map(jnp.copy, params),
        extra_ema={decay: jax.tree.map(jnp.copy, params) for decay in state.extra_ema},
    )
