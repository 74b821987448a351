"""Report on a machine: its parts, and whether they work. The first thing to run on it, and to put
into a report of a fault."""

from __future__ import annotations

import dataclasses
import importlib.metadata
import math
import os
import platform
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

import imagen_jax
from imagen_jax import sharding
from imagen_jax.buckets import SCHEME, BucketPath
from imagen_jax.caches import cache_directory
from imagen_jax.chips import GIB, local_chip
from imagen_jax.config import load_config
from imagen_jax.errors import UserError
from imagen_jax.extras import install_command
from imagen_jax.native import attention, winograd
from imagen_jax.paths import as_path
from imagen_jax.plan.programs import train_program
from imagen_jax.plan.report import make_plan
from imagen_jax.stage import make_stage
from imagen_jax.train.state import create_state
from imagen_jax.train.step import batch_shapes

PACKAGES = {
    "": ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy"),
    "train": ("tensorflow", "tensorflow-cpu", "seqio", "clu"),
    "tpu": ("libtpu",),
    "cuda12": ("jax-cuda12-plugin", "jax-cuda13-plugin"),
}
"""Extra -> packages that matter to it; of those of an extra, one may stand for another."""
VARIABLES = (
    "JAX_PLATFORMS", "JAX_ENABLE_X64", "JAX_COMPILATION_CACHE_DIR", "XLA_FLAGS", "LIBTPU_INIT_ARGS",
    "XDG_CACHE_HOME", "CXX", "CUDA_VISIBLE_DEVICES", "TPU_VISIBLE_CHIPS",
)  # fmt: skip
"""Environment variables that change what runs, and how."""
STEPS = 5
"""Train steps that are timed, after the first."""
BATCH = 8
"""Images of a step, at least."""


@dataclasses.dataclass(frozen=True)
class Finding:
    """One line of the report.

    Attributes:
      subject: the part of the machine.
      text: its state.
      works: False if something is wrong with it.
    """

    subject: str
    text: str
    works: bool = True


def examine(address: str | None = None) -> Iterator[Finding]:
    """Yield findings as they are made; a part that fails does not keep the others from being seen.

    Args:
      address: a folder at gs://, s3:// or the like to be listed, or None.
    """
    parts: list[tuple[str, Callable[[], Iterator[Finding]]]] = [
        ("packages", _packages),
        ("environment", _environment),
        ("devices", _devices),
        ("caches", _caches),
        ("kernels", _kernels),
    ]
    if address is not None:
        parts.append(("storage", lambda: _storage(address)))
    if jax.process_count() > 1:
        parts.append(("hosts", _hosts))
    parts.append(("a train step", _train_step))
    for subject, part in parts:
        try:
            yield from part()
        except Exception as error:  # whatever it is, it is what is to be told
            yield Finding(subject, f"{type(error).__name__}: {error}", works=False)


def _packages() -> Iterator[Finding]:
    python = f"Python {platform.python_version()}, {platform.platform()}"
    yield Finding("imagen-jax", f"{imagen_jax.__version__} in {Path(imagen_jax.__file__).parent}")
    yield Finding("Python", f"{python}, {sys.executable}")
    for extra, names in PACKAGES.items():
        found = [f"{name} {version}" for name in names if (version := _version(name))]
        missing = f"none; {install_command(extra)} adds them" if extra else "missing"
        subject = f"packages ({extra})" if extra else "packages"
        yield Finding(subject, ", ".join(found) or missing)


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def _environment() -> Iterator[Finding]:
    given = [f"{name}={os.environ[name]}" for name in VARIABLES if os.environ.get(name)]
    yield Finding("environment", " ".join(given) or f"none of {', '.join(VARIABLES)} is set")


def _devices() -> Iterator[Finding]:
    devices = jax.devices()
    text = f"{len(devices)} {devices[0].platform} ({devices[0].device_kind})"
    stats = devices[0].memory_stats() or {}
    if "bytes_limit" in stats:
        text += f", {stats['bytes_limit'] / GIB:.1f} GiB each"
    if jax.process_count() > 1:
        text += f", {jax.local_device_count()} of them of host {jax.process_index()}"
        text += f" of {jax.process_count()}"
    if local_chip() is None and devices[0].platform != "cpu":
        text += "; its rates are not known to imagen plan"
    yield Finding("devices", text)
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / GIB
    yield Finding("host", f"{cores} cores, {memory:.1f} GiB of memory")


def _caches() -> Iterator[Finding]:
    directory = as_path(jax.config.jax_compilation_cache_dir or cache_directory("compiled"))  # type: ignore[attr-defined]
    if isinstance(directory, BucketPath):
        yield Finding("compiled programs", f"{len(directory.names())} files in {directory}")
        return
    sizes = [path.stat().st_size for path in directory.rglob("*") if path.is_file()]
    size = sum(sizes) / 2**20
    yield Finding("compiled programs", f"{len(sizes)} files, {size:.0f} MiB in {directory}")


def _kernels() -> Iterator[Finding]:
    """On a CPU: the C++ kernels, compiled and called."""
    if jax.default_backend() != "cpu":
        return
    x, kernel = (jnp.ones(shape, "float32") for shape in ((1, 32, 32, 16), (3, 3, 16, 16)))
    query = jnp.ones((1, 4, 1, 16), "float32")
    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        runs = winograd.applies(x, kernel) and attention.applies(query, query, query)
    if not runs:
        why = "; ".join(str(warning.message) for warning in warned) or "they do not apply here"
        yield Finding("kernels", f"XLA's own, which are slower: {why}", works=False)
        return
    inside = float(winograd.convolve(x, kernel)[0, 16, 16, 0])  # 9 taps of 16 channels
    if abs(inside - 9 * 16) > 0.01:
        yield Finding("kernels", f"a convolution of ones is {inside}, not {9 * 16}", works=False)
    mean = float(attention.attend(query, query, query)[0, 0, 0, 0])  # of values that are all 1
    if abs(mean - 1) > 1e-4:
        yield Finding("kernels", f"attention to ones is {mean}, not 1", works=False)
    yield Finding("kernels", f"compiled for this processor, in {cache_directory('native')}")


def _storage(address: str) -> Iterator[Finding]:
    if address.startswith(SCHEME):
        names = sorted({name.partition("/")[0] for name in BucketPath(address).names()})
    else:
        import fsspec

        file_system, path = fsspec.core.url_to_fs(address)
        names = [entry.rpartition("/")[2] for entry in file_system.ls(path, detail=False)]
    some = f", such as {names[0]}" if names else ""
    yield Finding("storage", f"{address} can be listed: {len(names)} entries{some}")


def _hosts() -> Iterator[Finding]:
    from jax.experimental import multihost_utils

    seen = multihost_utils.process_allgather(np.array([jax.process_index()])).ravel().tolist()
    expected = list(range(jax.process_count()))
    yield Finding("hosts", f"{len(seen)} of {len(expected)} answer one another", seen == expected)


def _train_step() -> Iterator[Finding]:
    """Of the quickstart's base stage, on data of zeros."""
    mesh = sharding.make_mesh()
    divisor = sharding.batch_divisor(mesh)
    batch_size = divisor * math.ceil(BATCH / divisor)
    config = load_config("quickstart", [f"stages.base.train.batch_size={batch_size}"])
    stage = make_stage(config, "base")
    program = train_program(stage, mesh, jax.devices()[0].device_kind)
    state = create_state(stage, mesh)
    zeros = {
        name: np.zeros(shape.shape, shape.dtype) for name, shape in batch_shapes(stage).items()
    }
    batch = sharding.global_arrays(zeros, sharding.batch_shardings(mesh, stage.batch_names))
    seconds = []
    for _ in range(1 + STEPS):
        started = time.perf_counter()
        state, metrics = program.compiled(state, batch)
        loss = float(jax.device_get(metrics["loss"]).mean())
        seconds.append(time.perf_counter() - started)
    median = sorted(seconds[1:])[STEPS // 2]
    text = f"quickstart's base, {batch_size} images: {1000 * median:.1f} ms (median of {STEPS}), "
    text += f"compiled in {program.seconds:.0f} s"
    chip = local_chip()
    if chip is not None:
        bound = max(make_plan(program, chip).terms.values())
        text += f"; imagen plan's bound is {1000 * bound:.1f} ms"
    yield Finding("train step", f"{text}; loss {loss:.3f}", works=math.isfinite(loss))


def problems(findings: list[Finding]) -> None:
    """Raise a UserError that names the parts with which something is wrong, if there are any."""
    wrong = [finding.subject for finding in findings if not finding.works]
    if wrong:
        raise UserError(f"something is wrong with {', '.join(wrong)}: see above")
