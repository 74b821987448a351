"""A repository with the launch scripts, and stand-ins for programs that record what they are asked.

A stand-in writes its arguments to `log`, and then does what its part of a case statement says. Its
world is files: what exists, and what becomes of what is created.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import time
from pathlib import Path

LAUNCH = Path(__file__).resolve().parent.parent / "launch"
TRAIN = ["train", "--config", "quickstart", "--stage", "base", "--data", "gs://b/it's my data",
         "--workdir", "gs://b/run"]  # fmt: skip


class World:
    """Files, programs and a repository under one directory."""

    def __init__(self, root: Path, script: str, programs: dict[str, str], files: dict[str, str]):
        """Args:
        root: an empty directory.
        script: name of a launch script.
        programs: name -> what it does by "$*", as cases of bash; next FILE prints and removes the
          first line of a file.
        files: name -> first contents.
        """
        self.root = root
        self.repository = root / "repository"
        self.script = script
        self.environment = {"PATH": f"{root / 'bin'}:{os.environ['PATH']}"}
        self.write("log")
        for name, content in files.items():
            self.write(name, *content.splitlines())
        (root / "bin").mkdir()
        for name, cases in programs.items():
            path = root / "bin" / name
            path.write_text(
                f'#!/usr/bin/env bash\ncd {root}\necho "{name} $*" >> log\n'
                'next() { head -n 1 "$1"; sed -i 1d "$1"; }\n'
                f'case "$*" in\n{cases}\nesac\n'
            )
            path.chmod(0o755)
        # Without what other tests that run there may be compiling.
        ignored = shutil.ignore_patterns("__pycache__")
        shutil.copytree(LAUNCH, self.repository / "launch", ignore=ignored)
        (self.repository / ".gitignore").write_text("*.log\n*.job\n.venv\n")
        self.git("init", "--quiet")
        self.git("add", "--all")
        self.git("commit", "--quiet", "--message", "state")

    def git(self, *arguments: str) -> None:
        names = ["-c", "user.name=n", "-c", "user.email=e"]
        subprocess.run(["git", *names, *arguments], cwd=self.repository, check=True)

    def write(self, name: str, *lines: str) -> None:
        (self.root / name).write_text("".join(f"{line}\n" for line in lines))

    def venv(self, program: str, code: str) -> None:
        """Puts a program into the repository's .venv."""
        path = self.repository / ".venv" / "bin" / program
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f'#!/usr/bin/env bash\necho "{program} $*" >> {self.root}/log\n{code}\n')
        path.chmod(0o755)

    def start(self, *arguments: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            # Whatever started the tests may have told them to ignore Ctrl-C.
            ["env", "--default-signal=INT,HUP", "bash", self.repository / "launch" / self.script,
             *arguments],
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True,
            env=os.environ | self.environment,
        )  # fmt: skip

    def run(self, *arguments: str) -> tuple[int, str]:
        process = self.start(*arguments)
        printed = process.communicate(timeout=600)[0]
        return process.returncode, printed

    def refused(self, *arguments: str) -> str:
        """Output of a call that ends with status 2."""
        status, printed = self.run(*arguments)
        assert status == 2, printed
        return printed

    def dry_run(self, *arguments: str) -> list[list[str]]:
        """The commands that a dry run prints, as words; it asks nobody."""
        status, printed = self.run(*arguments, "--dry-run", "--", *TRAIN)
        assert status == 0, printed
        assert self.log() == []
        return [line.split()[1:] for line in printed.splitlines() if line.startswith("+ ")]

    def interrupt_when(
        self, name: str, *arguments: str, by: signal.Signals = signal.SIGINT
    ) -> tuple[int, str]:
        """Presses Ctrl-C when a file appears; returns the status and what was printed."""
        process = self.start(*arguments)
        while not (self.root / name).exists():
            assert process.poll() is None, process.communicate()
            time.sleep(0.05)
        os.killpg(process.pid, by)
        printed = process.communicate(timeout=600)[0]
        return process.returncode, printed

    def log(self) -> list[str]:
        return (self.root / "log").read_text().splitlines()

    def asked(self, verbs: dict[str, str]) -> list[str]:
        """The requests, in short: the names of those verbs whose text is in a line of the log."""
        return [verb for line in self.log() for verb, part in verbs.items() if part in line]
