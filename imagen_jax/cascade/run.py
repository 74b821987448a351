"""One stage over all images of a request, batch by batch."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding
from tqdm import tqdm

from imagen_jax.cascade.request import StageRun
from imagen_jax.diffusion.editing import resampling_path
from imagen_jax.sampling import StageInputs, from_uint8, image_keys, sample_stage, to_uint8
from imagen_jax.sharding import BATCH_SPEC, IMAGE_SPEC, batch_divisor
from imagen_jax.typing import TextEmbedding

BATCH_SIZES = (1, 2, 4, 8, 16)
"""Images that are made at once on each device: a batch is padded to one of these, so that few
shapes are compiled. The largest is the default limit."""


class Step(NamedTuple):
    """One step of the sampler for one batch of one stage.

    Attributes:
      stage: name of the stage.
      rows: [k] which of all n images are in the batch.
      step: from 1 to steps.
      steps: of this batch.
      images: () -> [k, h, w, 3] uint8 estimates of the clean images; only during the call.
    """

    stage: str
    rows: np.ndarray
    step: int
    steps: int
    images: Callable[[], np.ndarray]


class StageRows(NamedTuple):
    """What a stage is given for each of n images, in the host's memory.

    Attributes:
      seeds: n.
      text: token states [n, l, d] of the prompts.
      negative: of what is guided away from; a mask that is all False is no text.
      low_res: [1 or n, h, w, 3] uint8, or None for a base stage.
    """

    seeds: Sequence[int]
    text: TextEmbedding
    negative: TextEmbedding
    low_res: np.ndarray | None


def run_stage(
    run: StageRun,
    params: Any,
    given: StageRows,
    mesh: Mesh,
    *,
    batch_size: int | None,
    intermediates: bool,
    show_progress: bool,
    on_step: Callable[[Step], None] | None,
    on_batch: Callable[[np.ndarray, np.ndarray], None],
) -> tuple[np.ndarray, np.ndarray]:
    """Images of one stage.

    Args:
      run: what it does.
      params: its weights, on the mesh.
      given: what it is given for each image.
      mesh: devices that batches are divided over.
      batch_size, intermediates, show_progress, on_step: as for Cascade.sample_each.
      on_batch: called with (rows, images) of every batch that is done.

    Returns:
      ([n, h, w, 3] uint8, [steps, n, h, w, 3] uint8 estimates, of 0 steps unless asked for).
    """
    count = len(given.seeds)
    made = np.zeros((count, *run.size, 3), np.uint8)
    moves = _number_of_moves(run)
    estimates = np.zeros((moves if intermediates else 0, *made.shape), np.uint8)
    batches = list(_batches(count, batch_divisor(mesh), batch_size))
    with tqdm(
        desc=f"{run.stage.name} {run.size[0]} x {run.size[1]} px",
        unit="step",
        total=moves * len(batches),
        disable=not show_progress,
    ) as bar:
        for rows, padded in batches:

            def after(i: int, n: int, x0: jax.Array, rows: np.ndarray = rows) -> None:
                bar.update()
                step = Step(run.stage.name, rows, i, n, lambda: _on_host(x0)[: len(rows)])
                if intermediates:
                    estimates[i - 1, rows] = step.images()
                if on_step is not None:
                    on_step(step)

            x0 = sample_stage(
                run.stage,
                params,
                _inputs(run, given, padded, mesh),
                run.settings,
                size=run.size,
                edit=run.edit,
                mesh=mesh,
                on_step=after,
            )
            made[rows] = _on_host(x0)[: len(rows)]
            on_batch(rows, made[rows])
    return made, estimates


def _number_of_moves(run: StageRun) -> int:
    if run.edit is None or run.change is None:
        return run.settings.steps
    return len(resampling_path(run.settings.steps, run.edit.resamples, run.edit.jump)) - 1


def _batches(
    count: int, devices: int, batch_size: int | None
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """(rows of a batch, the same padded by repetition to a size that is compiled for)."""
    sizes = [size * devices for size in BATCH_SIZES]
    if batch_size is not None:
        sizes = [size for size in sizes if size <= batch_size] or sizes[:1]
    size = next((size for size in sizes if size >= count), sizes[-1])
    for start in range(0, count, size):
        rows = np.arange(start, min(start + size, count))
        yield rows, np.resize(rows, size)


def _inputs(run: StageRun, given: StageRows, rows: np.ndarray, mesh: Mesh) -> StageInputs:
    """What the stage makes the given rows of, divided over the devices of the mesh."""

    def of_rows(x: np.ndarray) -> np.ndarray:
        return x[rows] if len(x) > 1 else x.repeat(len(rows), axis=0)

    def images(x: np.ndarray | None) -> Any:
        return None if x is None else from_uint8(of_rows(x))

    keep: Any = None
    if run.change is not None:
        keep = of_rows(~run.change)[..., None].astype(np.float32)
    guided = run.settings.guidance != 1
    inputs = StageInputs(
        text=TextEmbedding(*(x[rows] for x in given.text)),
        keys=image_keys([given.seeds[i] for i in rows]),
        low_res=images(given.low_res),
        negative=TextEmbedding(*(x[rows] for x in given.negative)) if guided else None,
        image=images(run.image),
        keep=keep,
    )

    def place(x: Any) -> jax.Array:
        spec = IMAGE_SPEC if x.ndim == 4 else BATCH_SPEC
        return jax.device_put(x, NamedSharding(mesh, spec))

    return jax.tree.map(place, inputs)


def _on_host(x0: jax.Array) -> np.ndarray:
    """Images as uint8 on every host."""
    if jax.process_count() > 1:
        x0 = multihost_utils.process_allgather(x0, tiled=True)
    return to_uint8(x0)
