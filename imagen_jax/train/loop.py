"""The training loop of one stage."""

from __future__ import annotations

import contextlib
import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from clu import metric_writers
from jax.experimental import multihost_utils
from ml_collections import ConfigDict
from tqdm import tqdm

from imagen_jax import sharding
from imagen_jax.data.iterator import BatchIterator, train_batches
from imagen_jax.stage import Stage, make_stage
from imagen_jax.train.checkpoint import Checkpointer
from imagen_jax.train.metrics import SampleGrid, summarise
from imagen_jax.train.optimizer import make_optimizer
from imagen_jax.train.state import TrainState, abstract_state, count_parameters, create_state
from imagen_jax.train.step import make_train_step
from imagen_jax.workdir import (
    check_init,
    claim_stage,
    make_record,
    restore_ema,
    stage_directory,
)

GRID_EXAMPLES = 16


def train(
    config: ConfigDict,
    stage_name: str,
    data_dir: str,
    workdir: str,
    mesh_axes: dict[str, int] | None = None,
    init_from: str | None = None,
) -> TrainState:
    """Trains one stage, from its newest checkpoint if there is one.

    Stages are independent: they may be trained in any order, or at once on different machines.

    Args:
      config: as load_config returns it.
      stage_name: key in config.stages.
      data_dir: embeddings written by `imagen embed`.
      workdir: everything is written to <workdir>/<stage_name>/.
      mesh_axes: sizes of the mesh axes, see sharding.make_mesh; None is data parallel.
      init_from: work directory whose averaged weights of the same stage are where a new stage
        starts, with step 0 and a fresh optimiser: fine-tuning. None starts from random weights.

    Returns:
      The final state.

    Raises:
      ValueError: a config that does not hold together, embeddings of another encoder or width, a
        work directory that was started with another config, or weights to start from that were
        trained with another network or text encoder.
      FileNotFoundError: missing embeddings, or no weights to start from.
    """
    stage = make_stage(config, stage_name)
    mesh = sharding.make_mesh(mesh_axes)
    batches = _open_batches(stage, data_dir, mesh)
    optimizer = make_optimizer(stage.train)
    abstract, shardings = abstract_state(stage, optimizer, mesh)
    # Claimed after all that can be wrong with a config, which may then still be corrected.
    directory = stage_directory(workdir, stage_name)
    record = make_record(config, stage_name, batches.manifest)
    if init_from is not None:
        record["init_from"] = check_init(init_from, stage_name, record)
    if jax.process_index() == 0:
        claim_stage(workdir, stage_name, record)
    multihost_utils.sync_global_devices("stage claimed")
    claim_stage(workdir, stage_name, record)  # every host sees the same work directory

    checkpointer = Checkpointer(directory, stage.train.keep_checkpoints)
    state = checkpointer.restore(abstract, batches)
    if state is None:
        state = create_state(stage, optimizer, mesh)
        if init_from is not None:
            params, _ = restore_ema(stage_directory(init_from, stage_name), abstract.params)
            average = jax.tree.map(jnp.copy, params)
            state = TrainState(state.step, params, average, state.opt_state)
    start = int(state.step)
    first_host = jax.process_index() == 0
    if first_host:
        tqdm.write(
            f"{stage_name}: {count_parameters(state.params) / 1e6:.1f}M parameters, "
            f"{stage.resolution} px, batch {stage.train.batch_size}, "
            f"steps {start} -> {stage.train.steps} on {mesh.size} {jax.devices()[0].platform} "
            f"device(s) of {jax.process_count()} host(s)"
        )
    batch_sharding = sharding.batch_sharding(mesh)
    train_step = jax.jit(
        make_train_step(stage, optimizer),
        in_shardings=(shardings, batch_sharding),
        out_shardings=(shardings, sharding.replicated(mesh)),  # every host reads the metrics
        donate_argnums=0,
    )
    writer = metric_writers.create_default_writer(
        str(directory / "logs"), just_logging=not first_host, asynchronous=True
    )
    grid = SampleGrid(stage, directory / "samples", batches.first_records(GRID_EXAMPLES), mesh)
    progress = tqdm(
        total=stage.train.steps,
        initial=start,
        desc=stage_name,
        unit="step",
        disable=not first_host,
    )
    logged: list[Any] = []
    since = time.monotonic()
    with contextlib.closing(checkpointer), contextlib.closing(writer), progress:
        for step in range(start + 1, stage.train.steps + 1):
            batch = _to_device(next(batches), batch_sharding)
            state, metrics = train_step(state, batch)
            logged.append(metrics)
            progress.update()
            last = step == stage.train.steps
            save = step % stage.train.checkpoint_every == 0 or last
            if step % stage.train.log_every == 0 or save:
                scalars = summarise(jax.device_get(logged))
                now = time.monotonic()
                scalars["images_per_second"] = (
                    stage.train.batch_size * len(logged) / max(now - since, 1e-9)
                )
                logged, since = [], now
                writer.write_scalars(step, scalars)
                progress.set_postfix(
                    loss=f"{scalars['loss']:.4f}",
                    img_s=f"{scalars['images_per_second']:.0f}",
                )
                # Before the checkpoint: what is not finite must not replace what still was.
                if not np.isfinite([scalars["loss"], scalars["grad_norm"]]).all():
                    raise ValueError(
                        f"{stage_name}: at step {step} the loss is {scalars['loss']} and the "
                        f"gradient's norm {scalars['grad_norm']}; start again with a lower "
                        f"train.learning_rate (now {stage.train.learning_rate})"
                    )
            if step % stage.train.sample_every == 0 or last:
                # Sampling is timed apart from training.
                paused = time.monotonic()
                picture = grid.write(step, state.ema)
                writer.write_images(step, {"samples": picture[None]})
                since += time.monotonic() - paused
            if save:
                checkpointer.save(state, batches)  # before the next batch is taken
    return state


def _open_batches(stage: Stage, data_dir: str, mesh: jax.sharding.Mesh) -> BatchIterator:
    divisor = sharding.batch_divisor(mesh)
    if stage.train.batch_size % divisor or stage.train.batch_size % jax.process_count():
        raise ValueError(
            f"stages.{stage.name}.train.batch_size is {stage.train.batch_size}; it must be a "
            f"multiple of the {divisor} devices and the {jax.process_count()} hosts that share it"
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
        text_width=stage.text.width,
    )
    recorded = batches.manifest["encoder"]["name"]
    if recorded != stage.text.encoder:
        raise ValueError(
            f"the config wants text embeddings of encoder {stage.text.encoder!r}, but those in "
            f"{data_dir} were made by {recorded!r}; embed the data again with "
            f"--encoder {stage.text.encoder}, or change text.encoder"
        )
    return batches


def _to_device(
    batch: dict[str, np.ndarray], spec: jax.sharding.NamedSharding
) -> dict[str, jax.Array]:
    """Global arrays from this host's share of the batch."""
    return {
        name: jax.make_array_from_process_local_data(spec, value) for name, value in batch.items()
    }
