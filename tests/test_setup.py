"""launch/setup.sh takes the right Python, with stand-ins for Pythons, uv and the compiler."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
NEEDED = ("bash", "env", "cat", "dirname", "grep", "tail", "uname")

PYTHON = """#!/usr/bin/env bash
if [[ $1 == -c ]]; then
  shift
  exec {python} -I -c 'import sys, sysconfig
sys.version_info = (3, {minor}, 0)
sysconfig.get_path = lambda name: "{include}"
exec(sys.argv.pop(1))' "$@"
fi
echo "{name} $*"
exit 1
"""


class Machine:
    """A clone, and a folder of programs that is the whole PATH."""

    def __init__(self, where: Path) -> None:
        self.clone, self.programs, self.include = where / "clone", where / "bin", where / "include"
        (self.clone / "launch").mkdir(parents=True)
        self.programs.mkdir()
        self.include.mkdir()
        (self.include / "Python.h").touch()
        shutil.copy(ROOT / "launch/setup.sh", self.clone / "launch")
        for name in NEEDED:
            (self.programs / name).symlink_to(shutil.which(name) or f"{name} is not installed")

    def add(self, name: str, text: str) -> None:
        path = self.programs / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        path.chmod(0o755)

    def add_python(self, name: str, minor: int) -> None:
        values = {"python": sys.executable, "include": self.include}
        self.add(name, PYTHON.format(minor=minor, name=Path(name).name, **values))

    def setup(self, **environment: str) -> str:
        """Output of setup.sh, which fails at the latest where the stand-in makes no environment."""
        kept = {key: os.environ[key] for key in ("HOME", "LANG") if key in os.environ}
        done = subprocess.run(
            ["bash", self.clone / "launch/setup.sh"],
            env={**kept, "PATH": str(self.programs), **environment},
            capture_output=True, text=True, check=False, timeout=600,
        )  # fmt: skip
        assert done.returncode == 1, done.stdout + done.stderr
        return done.stdout + done.stderr


@pytest.mark.parametrize(
    ("pythons", "others", "asked", "expected"),
    [
        ({"python3.11": 11, "python3.12": 12, "python3": 11}, (), "", "python3.12 -m venv"),
        ({"python3.13": 13, "python3": 11}, ("c++",), "", "python3 -m venv"),
        ({"python3.12": 12, "python3": 13}, ("c++",), "python3", "python3 -m venv"),
        ({"python3": 13}, ("g++",), "", "python3 -m venv"),
        ({"python3": 13}, (), "", "python3 is Python 3.13, which needs a C++ compiler"),
        ({"python3": 13}, ("uv",), "", "uv venv --quiet --no-project --clear --python 3.12 .venv"),
        ({"python3": 13}, ("uv",), "python3", "python3 is Python 3.13, which needs a C++ compiler"),
        ({"python3": 13}, ("uv", "c++"), "", "--clear --python python3 .venv"),
        ({"python3": 10}, ("uv",), "", "--clear --python 3.12 .venv"),
        ({"python3": 10}, (), "", "needs Python 3.11, 3.12 or 3.13 and found none"),
        ({"python3": 14}, (), "python3", "PYTHON=python3 is not a Python 3.11, 3.12 or 3.13"),
    ],
)
def test_the_python_that_is_taken(
    pythons: dict[str, int], others: tuple[str, ...], asked: str, expected: str, tmp_path: Path
) -> None:
    machine = Machine(tmp_path)
    for name, minor in pythons.items():
        machine.add_python(name, minor)
    for name in others:
        machine.add(name, f'#!/usr/bin/env bash\necho "{name} $*"\nexit 1\n')
    said = machine.setup(**({"PYTHON": asked} if asked else {}))
    assert expected in said
    assert said.count("launch/setup.sh:") == 1, said


def test_headers_are_needed_as_the_compiler_is(tmp_path: Path) -> None:
    machine = Machine(tmp_path)
    machine.add_python("python3", 13)
    machine.add("c++", "")
    (machine.include / "Python.h").unlink()
    assert "on Debian and Ubuntu install g++ and python3-dev" in machine.setup()


@pytest.mark.parametrize(
    ("there", "asked", "expected"),
    [
        (10, "", ".venv is of Python 3.10; remove it"),
        (12, "python3", ".venv is of Python 3.12, and PYTHON=python3 is another"),
    ],
)
def test_an_environment_of_another_python_is_refused(
    there: int, asked: str, expected: str, tmp_path: Path
) -> None:
    machine = Machine(tmp_path)
    machine.add_python("python3", 11)
    machine.add_python("../clone/.venv/bin/python", there)
    assert expected in machine.setup(**({"PYTHON": asked} if asked else {}))
