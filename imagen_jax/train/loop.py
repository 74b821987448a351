"""The training loop of one stage, from top to bottom."""

from __future__ import annotations

import contextlib
import dataclasses
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
import optax
from jax.experimental import multihost_utils
from jax.sharding import Mesh
from ml_collections import ConfigDict, FrozenConfigDict
from tqdm import tqdm

from imagen_jax import sharding
from imagen_jax.checkpoints.claim import open_origin
from imagen_jax.checkpoints.reading import (
    RECORD,
    X0_ERRORS,
    checkpoint_steps,
    stage_directory,
)
from imagen_jax.checkpoints.writing import Checkpointer
from imagen_jax.chips import configure_jax
from imagen_jax.config import load_config
from imagen_jax.errors import UserError
from imagen_jax.files import only_writer, output_folder, write_json
from imagen_jax.progress import progress
from imagen_jax.stage import Stage, make_stage
from imagen_jax.train.evaluation import Evaluation
from imagen_jax.train.guards import StepGuard
from imagen_jax.train.interruption import Preempted, Preemption, Watchdog
from imagen_jax.train.log import History, Hook, Log
from imagen_jax.train.metrics import Clock, StepResults, memory
from imagen_jax.train.profiling import Profiler
from imagen_jax.train.samples import SampleGrid
from imagen_jax.train.start import claim, first_state, open_batches, stage_record
from imagen_jax.train.state import abstract_state, count_parameters
from imagen_jax.train.step import jit_train_step
from imagen_jax.train.validation import Validation

GRID_EXAMPLES = 16
STEPS_AHEAD = 2
"""Steps that the host may be ahead of the one whose result it looks at: devices never wait for it,
and what is wrong is seen at once."""


def train(
    config: ConfigDict | FrozenConfigDict | str | Path,
    stage: str | None,
    data: str | Path,
    workdir: str | Path,
    *,
    hooks: Sequence[Hook] = (),
    init_from: str | Path | None = None,
    fall_back: bool = False,
    mesh_axes: Mapping[str, int] | None = None,
) -> History:
    """Train one stage, from its newest checkpoint if there is one.

    Stages are independent: they may be trained in any order, or at once on different machines.

    Example:
      >>> from imagen_jax import load_config, train
      >>> small = ["steps=2", "warmup_steps=0", "batch_size=4", "log_every=1"]
      >>> config = load_config("quickstart", [f"stages.base.train.{of}" for of in small])
      >>> history = train(config, "base", "embeddings", "run")
      >>> steps, losses = history["loss"]
      >>> steps.tolist()
      [1, 2]

    Args:
      config: as load_config returns it, or what load_config takes.
      stage: key in config.stages; None for the only one.
      data: embeddings written by `imagen embed`, or what tasks.open_data takes.
      workdir: everything is written to <workdir>/<stage>/.
      hooks: functions that see what is measured, see log.Hook; one that returns True ends training
        after a checkpoint.
      init_from: cascade whose averaged weights of the same stage are where a new stage starts, with
        step 0 and a fresh optimiser: a work directory, an exported cascade, or "demo" for the one
        in the package. None starts from random weights.
      fall_back: if the newest checkpoint is damaged, resume from the newest that is whole.
      mesh_axes: sizes of the mesh axes, see sharding.make_mesh; None takes the config's.

    Returns:
      What was measured, and the final state.

    Raises:
      UserError: a config that does not hold together, embeddings that are missing, of another
        encoder or width, or without the validation split that the config asks for, a work directory
        that was started with another config or that another process trains in, or has a
        character of patterns in its path, weights to start
        from that are missing or of another network or text encoder, a damaged checkpoint, a batch
        that does not fit into memory, or too many steps in a row that were not finite.
      MachineError: a checkpoint cannot be written; those before it are as they were.
      Preempted: told to stop by SIGTERM, after saving a checkpoint.
    """
    config = load_config(config) if isinstance(config, str | Path) else config
    of = make_stage(config, stage)
    configure_jax()
    try:
        return _train(config, of, str(data), output_folder(workdir), hooks,
                      init_from, fall_back, mesh_axes)  # fmt: skip
    except (jax.errors.JaxRuntimeError, MemoryError) as error:
        if isinstance(error, jax.errors.JaxRuntimeError) and "RESOURCE_EXHAUSTED" not in str(error):
            raise
        raise UserError(
            f"out of memory: stages.{of.name}.train.batch_size {of.train.batch_size} does not fit "
            "in steps of this size; raise train.accumulation (the batch in parts, one after "
            "another), set network.remat (activations are computed again), or lower "
            f"train.batch_size. {str(error).splitlines()[0] if str(error) else ''}"
        ) from error


def _train(
    config: ConfigDict | FrozenConfigDict,
    stage: Stage,
    data: str,
    workdir: Path,
    hooks: Sequence[Hook],
    init_from: str | Path | None,
    fall_back: bool,
    mesh_axes: Mapping[str, int] | None,
) -> History:
    if found := re.search(r"[][*?\\]", str(workdir.absolute())):
        raise UserError(
            f"{workdir.absolute()} has {found[0]} in it, and checkpoints that are written there "
            "could not be read again; choose another name"
        )
    if (workdir / RECORD).is_file():
        raise UserError(
            f"{workdir} is the folder of one stage; give the work directory, {workdir.parent}"
        )
    settings = stage.train
    directory = stage_directory(workdir, stage.name)
    first_host = jax.process_index() == 0
    report = tqdm.write if first_host else _silent

    # Whatever can be wrong with config and data is found before anything is written.
    mesh = sharding.make_mesh(stage.mesh.axes() if mesh_axes is None else mesh_axes)
    batches = open_batches(stage, data, mesh)
    abstract, shardings = abstract_state(stage, mesh)
    validation = evaluation = origin = None
    if settings.validation_batches:
        validation = Validation(stage, data, mesh, shardings.ema, report)
    if settings.evaluate_every:
        evaluation = Evaluation(stage, data, mesh)
    if init_from is not None and not checkpoint_steps(directory):
        origin = open_origin(init_from, stage.name)
    record = stage_record(config, stage, batches.manifest, workdir, origin)

    with contextlib.ExitStack() as exits:
        # From here on, the work directory is this run's alone.
        if first_host:
            exits.enter_context(only_writer(directory, "imagen train"))
        claim(workdir, stage, record, origin)
        checkpointer = exits.enter_context(
            Checkpointer(
                directory,
                keep=settings.keep_checkpoints,
                keep_every_hours=settings.keep_every_hours,
                keep_best=settings.keep_best,
                best_metric=settings.best_metric,
                report=report,
            )
        )
        saved = checkpointer.restore(abstract.items(), fall_back)
        if saved is None:
            state = first_state(stage, mesh, abstract, origin)
            checkpointer.prepare(state.items())
        else:
            state = abstract.with_items(saved.items)
            batches.restore(saved.position)
        first_step = int(state.step) + 1
        factors = optax.tree_utils.tree_get(state.opt_state, "factors")
        change = f" and {count_parameters(factors) / 1e3:.0f}k of their change" if factors else ""
        report(
            f"{stage.name}: {count_parameters(state.params) / 1e6:.1f}M parameters{change}, "
            f"{stage.resolution} px, batch {settings.batch_size}, "
            f"steps {first_step - 1} -> {settings.steps} on {mesh.size} "
            f"{jax.devices()[0].platform} device(s) of {jax.process_count()} host(s)"
        )

        # Work between the steps.
        grid = None
        if settings.sample_every:
            records = batches.first_records(GRID_EXAMPLES)
            grid = SampleGrid(stage, directory / "samples", records, mesh)
        rows = _rows_of_this_host(settings.batch_size, mesh)
        bad_steps = directory / "bad_steps"
        guard = StepGuard(stage.name, bad_steps, settings.max_bad_steps, rows, report)
        results = StepResults(guard)
        clock = Clock(stage, mesh.size)
        log = exits.enter_context(
            contextlib.closing(Log(directory / "logs", hooks, first_step - 1))
        )
        preemption = exits.enter_context(Preemption())
        watchdog = exits.enter_context(Watchdog())
        profiler = exits.enter_context(Profiler(directory / "logs", report))
        bar = exits.enter_context(
            progress(
                settings.steps,
                stage.name,
                "steps",
                first_step - 1,
                disable=not first_host,
                compiles=True,
            )
        )

        train_step = jit_train_step(stage, mesh)
        batch_shardings = sharding.batch_shardings(mesh, stage.batch_names)
        save_due = evaluate_due = enough = False
        for step in range(first_step, settings.steps + 1):
            with clock.waiting():
                batch = next(batches)
            state, metrics = train_step(state, sharding.global_arrays(batch, batch_shardings))
            results.add(step, metrics, batches.ids)
            results.look(STEPS_AHEAD)
            profiler.after_step(metrics)
            bar.update()

            last = step == settings.steps
            stop = preemption.reached(step)
            save_due |= step % settings.checkpoint_every == 0 or last or stop
            if settings.evaluate_every:
                evaluate_due |= step % settings.evaluate_every == 0 or last
            measured: dict[str, float] = {}
            images: dict[str, Any] = {}

            if step % settings.log_every == 0 or save_due:
                measured, count = results.summary()
                measured |= memory() | clock.rates(count)
                bar.set_postfix(
                    loss=f"{measured['loss']:.4f}",
                    img_s=f"{measured['images_per_second']:.0f}",
                    refresh=False,
                )
                checkpointer.check()
            if grid and (last or (step % settings.sample_every == 0 and not stop)):
                with clock.paused():  # timed apart from training
                    images["samples"], drift = grid.write(step, state.ema)
                measured |= drift
            # A state after which steps are skipped may be what is wrong with them; the last one is
            # saved all the same. Results are complete: whatever makes save_due also looks at all.
            saving = save_due and (last or not guard.in_a_row)
            if saving and (last or not stop):
                with clock.paused():
                    if validation is not None:
                        measured |= validation(state.ema)
                        if first_host:
                            errors = dataclasses.asdict(validation.x0_errors)
                            write_json(directory / X0_ERRORS, errors)
                    if evaluation is not None and evaluate_due:
                        measured |= evaluation(state.ema)
            if measured:
                enough = log.write(state, step, measured, images)
            if saving or enough:
                # Before the next batch is taken: the position saved is that of this state.
                checkpointer.save(step, state.items(), batches.position(), measured)
                save_due = evaluate_due = False
            watchdog.beat(step)
            if enough:
                break
            if stop and not last:
                checkpointer.wait()
                raise Preempted(f"{stage.name}: told to stop, and stopped at step {step}")
    return History(stage.name, directory, log.rows, state)


def _silent(line: str) -> None:
    """The first host alone reports."""


def _rows_of_this_host(batch_size: int, mesh: Mesh) -> list[int]:
    """Return where in a global batch the examples of this host stand, in their order."""
    shardings = sharding.batch_shardings(mesh, ("own",))
    share = batch_size // jax.process_count()
    own = np.arange(share) + jax.process_index() * share
    everywhere = multihost_utils.process_allgather(
        sharding.global_arrays({"own": own}, shardings), tiled=True
    )
    place = {int(value): row for row, value in enumerate(everywhere["own"])}
    return [place[int(value)] for value in own]
