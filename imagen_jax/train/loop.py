"""The training loop of one stage."""

from __future__ import annotations

import collections
import contextlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from clu import metric_writers
from jax.experimental import multihost_utils
from jax.sharding import Mesh
from ml_collections import ConfigDict
from tqdm import tqdm

from imagen_jax import sharding
from imagen_jax.checkpoints.claim import open_origin
from imagen_jax.checkpoints.reading import checkpoint_steps, stage_directory
from imagen_jax.checkpoints.writing import Checkpointer
from imagen_jax.data.iterator import BatchIterator
from imagen_jax.stage import Stage, make_stage
from imagen_jax.train.evaluation import Evaluation
from imagen_jax.train.guards import StepGuard
from imagen_jax.train.interruption import Preempted, Preemption, Watchdog
from imagen_jax.train.metrics import Clock, memory, summarise
from imagen_jax.train.profiling import Profiler
from imagen_jax.train.samples import SampleGrid
from imagen_jax.train.start import claim, first_state, open_batches
from imagen_jax.train.state import TrainState, abstract_state, count_parameters
from imagen_jax.train.step import jit_train_step
from imagen_jax.train.validation import Validation

GRID_EXAMPLES = 16
STEPS_AHEAD = 2
"""Steps that the host may be ahead of the one whose result it looks at: devices never wait for it,
and what is wrong is seen at once."""


def train(
    config: ConfigDict,
    stage_name: str | None,
    data_dir: str,
    workdir: str,
    mesh_axes: dict[str, int] | None = None,
    init_from: str | None = None,
    fall_back: bool = False,
) -> TrainState:
    """Trains one stage, from its newest checkpoint if there is one.

    Stages are independent: they may be trained in any order, or at once on different machines.

    Args:
      config: as load_config returns it.
      stage_name: key in config.stages; None for the only one.
      data_dir: embeddings written by `imagen embed`.
      workdir: everything is written to <workdir>/<stage_name>/.
      mesh_axes: sizes of the mesh axes, see sharding.make_mesh; None takes the config's.
      init_from: work directory whose averaged weights of the same stage are where a new stage
        starts, with step 0 and a fresh optimiser: fine-tuning. None starts from random weights.
      fall_back: where the newest checkpoint is damaged, go on from the newest that is whole.

    Returns:
      The final state.

    Raises:
      UserError: a config that does not hold together, embeddings of another encoder or width, or
        without the validation split that the config asks for, a work directory that was started
        with another config, weights to start from that were trained with another network or text
        encoder, a damaged checkpoint, or too many steps in a row that were not finite.
      UserError: missing embeddings, or no weights to start from or to evaluate with.
      OSError: a checkpoint cannot be written; those before it are as they were.
      Preempted: told to stop by SIGTERM, after saving a checkpoint.
    """
    stage = make_stage(config, stage_name)
    stage_name = stage.name
    mesh = sharding.make_mesh(stage.mesh.axes() if mesh_axes is None else mesh_axes)
    batches = open_batches(stage, data_dir, mesh)
    abstract, shardings = abstract_state(stage, mesh)
    validation = None
    if stage.train.validation_batches:
        validation = Validation(stage, data_dir, mesh, shardings.ema)
    evaluation = Evaluation(stage, data_dir, mesh) if stage.train.evaluate_every else None
    # Claimed after all that can be wrong with a config, which may then still be corrected.
    directory = stage_directory(workdir, stage_name)
    origin = None
    if init_from is not None and not checkpoint_steps(directory):
        origin = open_origin(init_from, stage_name)
    claim(config, stage, batches.manifest, workdir, origin)
    report = tqdm.write if jax.process_index() == 0 else _silent
    checkpointer = Checkpointer(
        directory,
        keep=stage.train.keep_checkpoints,
        keep_every_hours=stage.train.keep_every_hours,
        keep_best=stage.train.keep_best,
        best_metric=stage.train.best_metric,
        report=report,
    )
    saved = checkpointer.restore(abstract.items(), fall_back)
    if saved is None:
        state = first_state(stage, mesh, abstract, origin)
    else:
        state = abstract.with_items(saved.items)
        batches.restore(saved.position)
    report(
        f"{stage_name}: {count_parameters(state.params) / 1e6:.1f}M parameters, "
        f"{stage.resolution} px, batch {stage.train.batch_size}, "
        f"steps {int(state.step)} -> {stage.train.steps} on {mesh.size} "
        f"{jax.devices()[0].platform} device(s) of {jax.process_count()} host(s)"
    )
    batch_shardings = sharding.batch_shardings(mesh, stage.batch_names)
    train_step = jit_train_step(stage, mesh)
    grid = None
    if stage.train.sample_every:
        grid = SampleGrid(
            stage,
            stage_directory(workdir, stage_name) / "samples",
            batches.first_records(GRID_EXAMPLES),
            mesh,
        )
    loop = _Loop(
        stage,
        stage_directory(workdir, stage_name),
        batches,
        checkpointer,
        grid,
        validation,
        evaluation,
        mesh,
        report,
    )
    with contextlib.closing(loop.writer):
        try:
            state = loop.run(
                state,
                lambda s, batch: train_step(s, sharding.global_arrays(batch, batch_shardings)),
            )
        except jax.errors.JaxRuntimeError:
            raise  # another host may be gone, and what is being saved would wait for it
        except BaseException:
            checkpointer.close()
            raise
        checkpointer.close()
    return state


class _Taken(NamedTuple):
    """A step that was handed to the devices."""

    step: int
    metrics: Any
    ids: list[str]


class _Loop:
    """What goes on between the steps of one stage."""

    def __init__(
        self,
        stage: Stage,
        directory: Path,
        batches: BatchIterator,
        checkpointer: Checkpointer,
        grid: SampleGrid | None,
        validation: Validation | None,
        evaluation: Evaluation | None,
        mesh: Mesh,
        report: Callable[[str], None],
    ):
        self.stage = stage
        self.batches = batches
        self.checkpointer = checkpointer
        self.grid = grid
        self.validation = validation
        self.evaluation = evaluation
        self.report = report
        self.writer = metric_writers.create_default_writer(
            str(directory / "logs"), just_logging=jax.process_index() != 0, asynchronous=True
        )
        self.guard = StepGuard(
            stage.name,
            directory / "bad_steps",
            stage.train.max_bad_steps,
            _rows_of_this_host(stage.train.batch_size, mesh),
            report,
        )
        self.preemption = Preemption()
        self.watchdog = Watchdog()
        self.profiler = Profiler(directory / "logs", report)
        self.clock = Clock(stage, mesh.size)
        self._taken: collections.deque[_Taken] = collections.deque()
        self._seen: list[Any] = []  # metrics of the steps since the last log
        self._spikes = 0

    def run(self, state: TrainState, take_step: Callable[[TrainState, Any], Any]) -> TrainState:
        """All steps from a state to the end."""
        config = self.stage.train
        progress = tqdm(
            total=config.steps,
            initial=int(state.step),
            desc=self.stage.name,
            unit="step",
            disable=jax.process_index() != 0,
        )
        save_due = evaluate_due = False
        with self.preemption, self.watchdog, self.profiler, progress:
            for step in range(int(state.step) + 1, config.steps + 1):
                with self.clock.waiting():
                    batch = next(self.batches)
                state, metrics = take_step(state, batch)
                self._taken.append(_Taken(step, metrics, self.batches.ids))
                self._look(STEPS_AHEAD)
                self.profiler.after_step(metrics)
                progress.update()
                last = step == config.steps
                stop = self.preemption.reached(step)
                save_due |= step % config.checkpoint_every == 0 or last or stop
                if config.evaluate_every:
                    evaluate_due |= step % config.evaluate_every == 0 or last
                if step % config.log_every == 0 or save_due:
                    self._look(0)
                    self._log(step, progress)
                    self.checkpointer.check()
                if self.grid and (last or (step % config.sample_every == 0 and not stop)):
                    self._sample(step, state, self.grid)
                # A state after which steps are skipped may be what is wrong with them.
                if save_due and (last or not self.guard.in_a_row):
                    metrics = None
                    if not stop or last:
                        metrics = self._measure(step, state, evaluate_due)
                    # Before the next batch is taken.
                    self.checkpointer.save(step, state.items(), self.batches.position(), metrics)
                    save_due = evaluate_due = False
                self.watchdog.beat(step)
                if stop and not last:
                    self.checkpointer.wait()
                    raise Preempted(f"{self.stage.name}: told to stop, and stopped at step {step}")
        return state

    def _look(self, ahead: int) -> None:
        """Waits for the steps but the last `ahead`, and looks at their results."""
        while len(self._taken) > ahead:
            taken = self._taken.popleft()
            metrics = jax.device_get(taken.metrics)
            self._seen.append(metrics)
            self._spikes += self.guard.check(taken.step, metrics, taken.ids)

    def _log(self, step: int, progress: tqdm) -> None:
        scalars = summarise(self._seen) | {"loss_spikes": self._spikes} | memory()
        scalars |= self.clock.rates(len(self._seen))
        self._seen, self._spikes = [], 0
        self.writer.write_scalars(step, scalars)
        progress.set_postfix(
            loss=f"{scalars['loss']:.4f}", img_s=f"{scalars['images_per_second']:.0f}"
        )

    def _measure(self, step: int, state: TrainState, evaluate: bool) -> dict[str, float]:
        """What tells how good the averaged weights are, also logged."""
        metrics: dict[str, float] = {}
        with self.clock.paused():
            if self.validation is not None:
                metrics |= self.validation(state.ema)
            if self.evaluation is not None and evaluate:
                metrics |= self.evaluation(state.ema)
        if metrics:
            self.writer.write_scalars(step, metrics)
        return metrics

    def _sample(self, step: int, state: TrainState, grid: SampleGrid) -> None:
        with self.clock.paused():  # timed apart from training
            image, drift = grid.write(step, state.ema)
        self.writer.write_images(step, {"samples": image[None]})
        self.writer.write_scalars(step, drift)


def _silent(line: str) -> None:
    """The first host alone reports."""


def _rows_of_this_host(batch_size: int, mesh: Mesh) -> list[int]:
    """Where in a global batch the examples of this host stand, in their order."""
    shardings = sharding.batch_shardings(mesh, ("own",))
    share = batch_size // jax.process_count()
    own = np.arange(share) + jax.process_index() * share
    everywhere = multihost_utils.process_allgather(
        sharding.global_arrays({"own": own}, shardings), tiled=True
    )
    place = {int(value): row for row, value in enumerate(everywhere["own"])}
    return [place[int(value)] for value in own]
