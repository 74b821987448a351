"""One stage over all images of a request, batch by batch."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding

from imagen_jax.cascade.images import resize, resize_mask
from imagen_jax.cascade.request import Request, StageRequest
from imagen_jax.progress import progress
from imagen_jax.sampling import (
    StageInputs,
    from_uint8,
    image_keys,
    number_of_moves,
    sample_steps,
    to_uint8,
)
from imagen_jax.sharding import BATCH_SPEC, IMAGE_SPEC, batch_divisor
from imagen_jax.typing import TextEmbedding

BATCH_SIZES = (1, 2, 4, 8, 16)
"""Images that are made at once on each device: a batch is padded to one of these, so that few
shapes are compiled."""
BATCH_PIXELS = 2**20
"""Most pixels of a batch on each device by default: 16 images of 256 x 256, one of 1024 x 1024."""


class Step(NamedTuple):
    """One step of the sampler for one batch of one stage.

    Attributes:
      stage: name of the stage.
      rows: [k] which of the n images are in the batch.
      step: from 1 to steps.
      steps: steps of this batch.
      images: () -> [k, h, w, 3] uint8 estimates of the clean images; only during the call.
    """

    stage: str
    rows: np.ndarray
    step: int
    steps: int
    images: Callable[[], np.ndarray]


class Finished(NamedTuple):
    """Images of one stage that are done.

    Attributes:
      stage: name of the stage.
      rows: [k] which of the n images they are.
      images: [k, h, w, 3] uint8.
      request: the request.
      black: for each, why the safety checker made it black; "" where it did not.
    """

    stage: str
    rows: np.ndarray
    images: np.ndarray
    request: Request
    black: Sequence[str]

    @property
    def is_last(self) -> bool:
        """True for the last stage, whose images are the result."""
        return self.stage == self.request.stages[-1].name


def run_stage(
    asked: StageRequest,
    request: Request,
    params: Any,
    text: TextEmbedding,
    negative: TextEmbedding,
    previous: np.ndarray | None,
    mesh: Mesh,
    *,
    batch_size: int | None,
    intermediates: bool,
    show_progress: bool,
    on_step: Callable[[Step], None] | None,
    on_batch: Callable[[np.ndarray, np.ndarray], np.ndarray],
) -> tuple[np.ndarray, np.ndarray]:
    """Return the images of one stage.

    Args:
      asked: request of the stage.
      request: the request that it belongs to.
      params: weights of the stage, on the mesh.
      text: [n, l, d] token states of the prompts, in the host's memory.
      negative: those of what is guided away from; a mask that is all False is no text.
      previous: [n, h, w, 3] uint8 images of the stage before; None for the first.
      mesh: devices that batches are divided over.
      batch_size, intermediates, show_progress, on_step: as for Cascade.sample.
      on_batch: called with (rows, images) of every batch that is done; what it returns takes
        their place.

    Returns:
      ([n, h, w, 3] uint8, [steps, n, h, w, 3] uint8 estimates, of 0 steps unless asked for).
    """
    count, name = len(request), asked.name
    given = _given(asked, request, text, negative, previous)
    made = np.zeros((count, *asked.size, 3), np.uint8)
    moves = number_of_moves(asked.settings, asked.edit, request.mask is not None)
    estimates = np.zeros((moves if intermediates else 0, *made.shape), np.uint8)
    batches = list(_batches(count, batch_divisor(mesh), batch_size, asked.size))
    what = f"{name} {asked.size[0]} x {asked.size[1]} px"
    hidden, total = not show_progress, moves * len(batches)
    with progress(total, what, "steps", disable=hidden, compiles=True) as bar:
        for rows, padded in batches:
            steps = sample_steps(
                asked.stage,
                params,
                _inputs(given, padded, mesh),
                asked.settings,
                size=asked.size,
                edit=asked.edit,
                mesh=mesh,
            )
            for i, x0 in enumerate(steps):
                jax.block_until_ready(x0)
                bar.update()

                def images(x0: jax.Array = x0, count: int = len(rows)) -> np.ndarray:
                    return _on_host(x0)[:count]

                if intermediates:
                    estimates[i, rows] = images()
                if on_step is not None:
                    on_step(Step(name, rows, i + 1, moves, images))
            made[rows] = on_batch(rows, images())
    return made, estimates


def _batches(
    count: int, devices: int, batch_size: int | None, size: tuple[int, int]
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yield (rows of a batch, the same padded by repetition to a size that is compiled for)."""
    most = devices * BATCH_PIXELS // (size[0] * size[1]) if batch_size is None else batch_size
    sizes = [size * devices for size in BATCH_SIZES]
    sizes = [size for size in sizes if size <= most] or sizes[:1]
    together = next((size for size in sizes if size >= count), sizes[-1])
    for start in range(0, count, together):
        rows = np.arange(start, min(start + together, count))
        yield rows, np.resize(rows, together)


def _given(
    asked: StageRequest,
    request: Request,
    text: TextEmbedding,
    negative: TextEmbedding,
    previous: np.ndarray | None,
) -> Any:
    """Return StageInputs in the host's memory, with n rows or one for all: images are uint8, and
    seeds take the place of keys."""
    stage, (height, width) = asked.stage, asked.size
    low_res = previous
    if low_res is None and stage.low_res is not None:
        assert request.image is not None
        factor = stage.resolution // stage.low_res
        low_res = resize(request.image, (height // factor, width // factor))
    image = mask = None
    if asked.edit is not None:
        assert request.image is not None
        image = resize(request.image, asked.size)
        if request.mask is not None:
            mask = resize_mask(request.mask, asked.size)[..., None]
    keys: Any = np.asarray(request.seeds, np.uint32)
    guided = asked.settings.guidance != 1
    return StageInputs(text, keys, low_res, negative if guided else None, image, mask)  # type: ignore[arg-type]


def _inputs(given: Any, rows: np.ndarray, mesh: Mesh) -> StageInputs:
    """Return the given rows, divided over the devices of the mesh."""

    def of_rows(x: np.ndarray) -> np.ndarray:
        return x[rows] if len(x) > 1 else x.repeat(len(rows), axis=0)

    def place(x: Any) -> jax.Array:
        spec = IMAGE_SPEC if x.ndim == 4 else BATCH_SPEC
        return jax.device_put(x, NamedSharding(mesh, spec))

    chosen = jax.tree.map(of_rows, given)
    inputs = chosen._replace(
        keys=image_keys(chosen.keys),
        low_res=None if chosen.low_res is None else from_uint8(chosen.low_res),
        image=None if chosen.image is None else from_uint8(chosen.image),
    )
    return jax.tree.map(place, inputs)


def _on_host(x0: jax.Array) -> np.ndarray:
    """Return images as uint8 on every host that has a part of them."""
    if not x0.is_fully_addressable:
        x0 = multihost_utils.process_allgather(x0, tiled=True)
    return to_uint8(x0)
