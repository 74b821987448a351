"""Training metrics: scalars over the last steps."""

from __future__ import annotations

import collections
import contextlib
import os
import resource
import time
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from imagen_jax.chips import local_chip
from imagen_jax.diffusion.loss import loss_by_logsnr_bin
from imagen_jax.stage import Stage
from imagen_jax.train.guards import StepGuard
from imagen_jax.train.step import model_flops

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


class StepResults:
    """Results of the steps that were handed to the devices, looked at some steps later."""

    def __init__(self, guard: StepGuard):
        """Args:
        guard: is shown every step.
        """
        self._guard = guard
        self._pending: collections.deque[tuple[int, Any, Sequence[str]]] = collections.deque()
        self._seen: list[Any] = []
        self._spikes = 0

    def add(self, step: int, metrics: Any, ids: Sequence[str]) -> None:
        """Take a step's metrics, still on the devices, and the ids of this host's examples."""
        self._pending.append((step, metrics, ids))

    def look(self, ahead: int) -> None:
        """Wait for the steps but the last `ahead`, and show their results to the guard."""
        while len(self._pending) > ahead:
            step, metrics, ids = self._pending.popleft()
            self._seen.append(jax.device_get(metrics))
            self._spikes += self._guard.check(step, self._seen[-1], ids)

    def summary(self) -> tuple[dict[str, float], int]:
        """Return means over all steps since the last summary, and the number of these steps."""
        self.look(0)
        scalars = summarise(self._seen) | {"loss_spikes": self._spikes}
        count = len(self._seen)
        self._seen, self._spikes = [], 0
        return scalars, count


class Clock:
    """Speed of training, and the share of time spent waiting for data."""

    def __init__(self, stage: Stage, devices: int):
        """Args:
        stage: the stage to train.
        devices: devices that it is trained on, over all hosts.
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
