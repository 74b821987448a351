"""List the pinned packages that have to be compiled, for every supported Python and platform.

Run `python launch/check_pins.py` after `bash launch/pins.sh`; it needs the program uv and the
package index, and downloads only metadata. It prints the table of docs/install.md, and fails where
a package needs a compiler that launch/setup.sh does not announce.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

from packaging.markers import Marker

LAUNCH = Path(__file__).resolve().parent
PYTHONS = ("3.11", "3.12", "3.13")
# glibc 2.35 is that of Ubuntu 22.04, the oldest of the systems that README.md names.
PLATFORMS = {
    "Linux x86_64": ("linux", "x86_64", "x86_64-manylinux_2_35"),
    "Linux aarch64": ("linux", "aarch64", "aarch64-manylinux_2_35"),
    "macOS arm64": ("darwin", "arm64", "aarch64-apple-darwin"),
}
"""Platforms by name: `sys_platform`, `platform_machine`, and what uv calls them."""
FILES = {
    "pins-build.txt, pins.txt": tuple(PLATFORMS),
    "pins-dev.txt": tuple(PLATFORMS),
    "pins-tpu.txt": ("Linux x86_64",),
    "pins-cuda12.txt": ("Linux x86_64", "Linux aarch64"),
    "pins-cuda13.txt": ("Linux x86_64", "Linux aarch64"),
}
EXPECTED = {"promise": PYTHONS, "editdistance": ("3.13",)}
"""Packages that launch/setup.sh builds: promise is pure Python, editdistance is C++."""


def pins(files: str, python: str, system: str, machine: str) -> dict[str, str]:
    """Return the pins that a machine installs, "name==version" by name."""
    environment = {
        "sys_platform": system,
        "platform_machine": machine,
        "platform_python_implementation": "CPython",
        "implementation_name": "cpython",
        "python_version": python,
        "python_full_version": f"{python}.0",
    }
    found = {}
    for file in files.split(", "):
        for line in (LAUNCH / file).read_text().splitlines():
            match = re.match(r"([a-z0-9._-]+)(==[^ ]+)(?: ; (.*?))? \\$", line)
            if match and (match[3] is None or Marker(match[3]).evaluate(environment)):
                found[match[1]] = match[1] + match[2]
    return found


def without_wheel(wanted: dict[str, str], python: str, platform: str) -> list[str]:
    """Return the names of the packages of which no wheel fits, asking until the others resolve."""
    left, missing = dict(wanted), []
    command = ["uv", "pip", "compile", "--no-deps", "--only-binary", ":all:"]
    command += ["--python", sys.executable, "--python-version", python]
    command += ["--python-platform", platform, "-"]
    while True:
        done = subprocess.run(
            command, input="\n".join(left.values()), capture_output=True, text=True, check=False
        )
        if done.returncode == 0:
            return missing
        message = " ".join(done.stderr.split())
        match = re.search(r"Because ([a-z0-9._-]+)==\S+ has no (usable )?wheels", message)
        if not match or match[1] not in left:
            raise SystemExit(f"uv failed in an unknown way for {python} on {platform}: {message}")
        missing.append(match[1])
        del left[match[1]]


def main() -> int:
    """Print the table; return 1 if a package must be compiled that is not in `EXPECTED`."""
    os.environ.pop("PYTHONPATH", None)
    unexpected = False
    print("| pins | Python | " + " | ".join(PLATFORMS) + " |")
    print("| --- " * (2 + len(PLATFORMS)) + "|")
    for files, platforms in FILES.items():
        for python in PYTHONS:
            cells = []
            for name, (system, machine, platform) in PLATFORMS.items():
                if name not in platforms:
                    cells.append("does not exist")
                    continue
                wanted = pins(files, python, system, machine)
                missing = without_wheel(wanted, python, platform)
                unexpected |= any(python not in EXPECTED.get(package, ()) for package in missing)
                built = f"; from source: {', '.join(missing)}" if missing else ""
                cells.append(f"{len(wanted) - len(missing)} wheels{built}")
            print(f"| {files} | {python} | " + " | ".join(cells) + " |", flush=True)
    return int(unexpected)


if __name__ == "__main__":
    sys.exit(main())
