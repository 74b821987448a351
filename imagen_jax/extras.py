"""Optional dependencies: whether they are installed, and how to install them.

A registry's name for this package is never printed: whoever registers it would own the machines of
those who follow the advice. Python records where an installation came from (PEP 610), so the advice
names that place.
"""

from __future__ import annotations

import contextlib
import importlib
import importlib.metadata
import importlib.util
import json
import os
import shlex
import sys
from pathlib import Path
from types import ModuleType
from urllib.parse import unquote, urlsplit

from imagen_jax.errors import UserError

DISTRIBUTION = "imagen-jax"

PACKAGES = {
    "train": ("clu", "pyarrow", "seqio", "tensorboard", "tensorflow", "tensorflow_datasets"),
    "page": ("nicegui",),
    "plan": ("matplotlib",),
}
"""The extras of pyproject.toml that a command may miss, and the modules that it imports of each."""


def require(extra: str, purpose: str) -> None:
    """Raise a `UserError` unless the packages of an extra are installed.

    Args:
      extra: a key of `PACKAGES`.
      purpose: the subject of the message: "imagen train".

    Raises:
      UserError: names the missing packages and the command that installs them.
    """
    missing = [name for name in PACKAGES[extra] if importlib.util.find_spec(name) is None]
    if missing:
        raise UserError(
            f"{purpose} needs packages that are not installed ({', '.join(missing)}): "
            f"{install_command(extra)}"
        )


def import_tensorflow() -> ModuleType:
    """Import TensorFlow, which only reads data here and leaves the accelerators to JAX.

    It takes seconds, and says of every machine without CUDA, whatever its level of logs, that there
    is an error of CUDA: that is kept from the terminal unless TF_CPP_MIN_LOG_LEVEL asks for more.
    """
    level = os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    with contextlib.ExitStack() as exits:
        if level == "3" and sys.stderr is not None:
            sys.stderr.flush()
            terminal = os.dup(2)
            exits.callback(os.close, terminal)
            exits.callback(os.dup2, terminal, 2)
            with open(os.devnull, "w") as nowhere:
                os.dup2(nowhere.fileno(), 2)
        tensorflow = importlib.import_module("tensorflow")
        tensorflow.config.set_visible_devices([], "GPU")
    return tensorflow


def install_command(extra: str) -> str:
    """Return the command that adds an extra to this installation, by its path or address."""
    source = _source()
    if source is None:
        return f"in a clone of the repository, pip install '.[{extra}]'"
    if source.startswith("/"):
        return shlex.join(["pip", "install", f"{source}[{extra}]"])
    return shlex.join(["pip", "install", f"{DISTRIBUTION}[{extra}] @ {source}"])


def libtpu_without_tpu() -> bool:
    """Return whether libtpu is installed, as for `imagen plan`, and nothing but a CPU is here.

    JAX would ask libtpu for a TPU, which logs at length that it finds none. Chips are recognised as
    JAX does, by the number of their maker on the PCI bus, or by their device files.
    """
    if importlib.util.find_spec("libtpu") is None or importlib.metadata.entry_points(
        group="jax_plugins"
    ):
        return False
    makers = [
        path.read_text("utf-8").strip() for path in Path("/sys/bus/pci/devices").glob("*/vendor")
    ]
    chips = [*Path("/dev").glob("accel*"), *Path("/dev/vfio").glob("[0-9]*")]
    return "0x1ae0" not in makers and not chips


def _source() -> str | None:
    """Return the path or address that this package was installed from, or None if it is unknown."""
    try:
        record = importlib.metadata.distribution(DISTRIBUTION).read_text("direct_url.json")
    except importlib.metadata.PackageNotFoundError:
        return None
    origin = json.loads(record or "{}")
    url = origin.get("url", "")
    if url.startswith("file://"):
        path = unquote(urlsplit(url).path)
        return path if Path(path).exists() else None
    if "vcs_info" in origin:
        version = origin["vcs_info"]
        return f"{version['vcs']}+{url}@{version['commit_id']}"
    return url or None
