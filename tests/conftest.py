"""Settings of all tests: on the CPU, with one device, compiled programs kept, shapes checked."""

from __future__ import annotations

import gc
import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

# Before anything imports jax.
os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
# Most of the time goes into compiling programs, and reading compiled ones, that then run for
# milliseconds. (Reading takes time by the square of the number of YNN fusions.)
os.environ.setdefault(
    "XLA_FLAGS",
    "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true "
    "--xla_cpu_use_fusion_emitters=false --xla_cpu_experimental_ynn_fusion_type= "
    "--xla_cpu_parallel_codegen_split_count=1",
)
_cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(_cache / "imagen-jax" / "tests"))
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.3")
gc.set_threshold(100_000, 50, 100)  # as in imagen_jax/main.py

os.environ["COLUMNS"] = "80"  # in which help is written, wherever the tests run
# Servers of the tests are on this machine, and no proxy leads there.
for _name in ("no_proxy", "NO_PROXY"):
    os.environ[_name] = ",".join(filter(None, (os.environ.get(_name), "127.0.0.1,localhost")))

import gcs_server  # noqa: E402
import hypothesis  # noqa: E402
import jaxtyping  # noqa: E402
from shapes import annotated_modules  # noqa: E402

# Before anything imports imagen_jax.
jaxtyping.install_import_hook(annotated_modules(), "shapes.check")

# The same examples in every run, however long they take.
hypothesis.settings.register_profile(
    "tests",
    derandomize=True,
    deadline=None,
    suppress_health_check=[hypothesis.HealthCheck.too_slow],
)
hypothesis.settings.load_profile("tests")


@pytest.fixture
def unchecked_shapes() -> Iterator[None]:
    """Lets wrong shapes through, to the errors that the package itself has for them."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)


@pytest.fixture(scope="module")
def interruptible() -> Iterator[None]:
    """Ctrl-C is heard, also where the tests run in the background of a shell."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.fixture(scope="session")
def gcs(
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[tuple[gcs_server.Bucket, dict[str, str]]]:
    """One for all tests: clients keep the address that they were first given."""
    with gcs_server.serve(tmp_path_factory.mktemp("gcs")) as served:
        yield served


@pytest.fixture
def bucket(
    gcs: tuple[gcs_server.Bucket, dict[str, str]], monkeypatch: pytest.MonkeyPatch
) -> gcs_server.Bucket:
    """The objects of gs://bucket, of which there are none at first; see gcs_server.py."""
    found, environment = gcs
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    found.clear()
    return found


LONG = (
    "wheel", "elastic", "multi_host", "page_in_browser", "plan", "torture", "train", "sharding",
    "stack",
)  # fmt: skip
"""Files of tests that take a minute or more. Those of several processes come first, as they wait
for one another; the programs that they compile are there when the others need them."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Long files first: where processes share files, no long one is left for last."""
    order = {f"test_{name}": place for place, name in enumerate(LONG)}
    items.sort(key=lambda item: order.get(item.path.stem, len(order)))


def pytest_sessionfinish() -> None:
    """Nothing is to be collected any more: pytest and Python would look through all of it."""
    gc.freeze()
