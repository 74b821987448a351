"""What training reports: scalars over the last steps, and a grid of samples to look at."""

from __future__ import annotations

import contextlib
import functools
import io
import os
import resource
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh
from PIL import Image as PILImage

from imagen_jax import sharding
from imagen_jax.chips import local_chip
from imagen_jax.data.records import Record
from imagen_jax.diffusion.loss import loss_by_logsnr_bin
from imagen_jax.grid import labelled_grid
from imagen_jax.models.layers import downsample
from imagen_jax.sampling import StageInputs, picture_keys, sample_stage, to_uint8
from imagen_jax.stage import Stage
from imagen_jax.train.step import model_flops
from imagen_jax.typing import TextEmbedding

LOGSNR_EDGES = (-20.0, -6.0, -2.0, 2.0, 6.0, 20.0)


def summarise(steps: list[dict[str, Any]]) -> dict[str, float]:
    """Means of the scalars of several steps, and the loss by bin of logsnr.

    Args:
      steps: metrics of make_train_step, fetched from the devices; at least one.

    Returns:
      skipped_steps, how many were not finite; of the others loss, grad_norm, update_norm,
      learning_rate, and loss_logsnr_<low>_<high> for every bin that has examples. Where all were
      skipped, the scalars are of what was skipped.
    """
    taken = [m for m in steps if m["finite"]]
    scalars = {"skipped_steps": float(len(steps) - len(taken))}
    for name in ("loss", "grad_norm", "update_norm", "learning_rate"):
        scalars[name] = float(np.mean([m[name] for m in taken or steps]))
    if not taken:
        return scalars
    mean, count = loss_by_logsnr_bin(
        jnp.concatenate([m["loss_per_example"] for m in taken]),
        jnp.concatenate([m["logsnr"] for m in taken]),
        jnp.asarray(LOGSNR_EDGES),
    )
    for i, (low, high) in enumerate(zip(LOGSNR_EDGES[:-1], LOGSNR_EDGES[1:], strict=True)):
        if count[i]:
            scalars[f"loss_logsnr_{low:g}_{high:g}"] = float(mean[i])
    return scalars


def memory() -> dict[str, float]:
    """Memory at its peak and in all, GiB: of this process on its host, and of this host's first
    device where that reports it (a CPU does not)."""
    scalars = {
        "host_memory_peak_gib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20,
        "host_memory_gib": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30,
    }
    stats = jax.local_devices()[0].memory_stats() or {}
    names = {"peak_bytes_in_use": "device_memory_peak_gib", "bytes_limit": "device_memory_gib"}
    return scalars | {name: stats[key] / 2**30 for key, name in names.items() if key in stats}


class Clock:
    """How fast training goes, and how much of the time it waits for data."""

    def __init__(self, stage: Stage, devices: int):
        """Args:
        stage: what is trained.
        devices: that it is trained on, over all hosts.
        """
        self._batch_size = stage.train.batch_size
        chip = local_chip()
        self._least = None if chip is None else model_flops(stage) / (devices * chip.flops)
        self._since = time.monotonic()
        self._waited = 0.0

    @contextlib.contextmanager
    def waiting(self) -> Iterator[None]:
        """Around taking a batch."""
        begin = time.monotonic()
        yield
        self._waited += time.monotonic() - begin

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """Around what does not count as training."""
        begin = time.monotonic()
        yield
        self._since += time.monotonic() - begin

    def rates(self, steps: int) -> dict[str, float]:
        """Rates since the last call: images_per_second over all hosts, steps_per_second, data_wait,
        the share of the time in which this host's loop waited for a batch, and mfu, the model FLOPs
        as a share of the devices' peak, where that is known (`chips.KINDS`)."""
        now = time.monotonic()
        seconds = max(now - self._since, 1e-9)
        rates = {
            "images_per_second": self._batch_size * steps / seconds,
            "steps_per_second": steps / seconds,
            "data_wait": self._waited / seconds,
        }
        if self._least is not None:
            rates["mfu"] = self._least * steps / seconds
        self._since, self._waited = now, 0.0
        return rates


class SampleGrid:
    """Samples the same captions from the same noise again and again, to watch a stage learn.

    The captions are the first ones of the training shards; a super-resolution stage starts from
    the true low-resolution pictures.
    """

    def __init__(self, stage: Stage, directory: Path, records: Sequence[Record], mesh: Mesh):
        """Args:
        stage: what is trained.
        directory: where <step>.png are written.
        records: what to sample: captions with their token states, and pictures; the same on every
          host.
        mesh: devices that the weights lie on.
        """
        self._stage = stage
        self._directory = directory
        self._captions = [record.caption for record in records]
        # Through jit, which makes arrays of all hosts of what each of them has.
        everywhere = functools.partial(jax.jit, out_shardings=sharding.replicated(mesh))
        self._keys = everywhere(picture_keys)(np.arange(len(records)))
        states = np.zeros((len(records), stage.text.max_length, stage.text.width), np.float32)
        mask = np.zeros(states.shape[:2], bool)
        for i, record in enumerate(records):
            states[i, : len(record.states)] = record.states
            mask[i, : len(record.states)] = True
        self._text = everywhere(TextEmbedding)(states, mask)
        pictures = [np.asarray(PILImage.open(io.BytesIO(record.image))) for record in records]
        self._colour = np.mean(pictures, axis=(0, 1, 2))
        self._low_res = None
        if stage.low_res is not None:
            factor = pictures[0].shape[0] // stage.low_res
            images = np.stack(pictures).astype(np.float32) / 127.5 - 1
            self._low_res = everywhere(functools.partial(downsample, factor=factor))(images)

    def write(self, step: int, params: Any) -> tuple[np.ndarray, dict[str, float]]:
        """Samples with `params`, and writes <directory>/<step>.png.

        Returns:
          (the grid as [h, w, 3] uint8, how much redder, greener and bluer the samples are than the
          true pictures of their captions: colour_drift_<channel>, mean of 0 to 255).
        """
        inputs = StageInputs(self._text, self._keys, self._low_res)
        made = sample_stage(self._stage, params, inputs, self._stage.sample)
        images = to_uint8(multihost_utils.process_allgather(made, tiled=True))
        scale = max(1, 128 // self._stage.resolution)
        picture = labelled_grid(images, self._captions, columns=4, scale=scale)
        if jax.process_index() == 0:
            self._directory.mkdir(parents=True, exist_ok=True)
            picture.save(self._directory / f"{step:07d}.png")
        drift = images.mean((0, 1, 2)) - self._colour
        named = zip(("red", "green", "blue"), drift, strict=True)
        return np.asarray(picture.convert("RGB")), {
            f"colour_drift_{channel}": float(value) for channel, value in named
        }
