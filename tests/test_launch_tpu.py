"""launch/tpu.sh against a stand-in for gcloud that records what it is asked."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from pathlib import Path

import pytest

SCRIPT = Path(__file__).resolve().parent.parent / "launch" / "tpu.sh"
TRAIN = ["--config", "quickstart", "--stage", "base", "--data", "/bucket/my data"]
ARGUMENTS = ["--name", "base", "--type", "v4-8", "--zone", "us-central2-b", "--bucket", "b"]

# Its world is files: what exists, what becomes of a new TPU, and how each training run ends.
GCLOUD = """#!/usr/bin/env bash
echo "$*" >> log
next() { head -n 1 "$1"; sed -i 1d "$1"; }
case "$*" in
  "config get-value project") cat project ;;
  "storage ls"*) exit "$(cat bucket)" ;;
  *"queued-resources create"*)
    [[ ! -e quota ]] || exit 1
    next born > state
    [[ "$(cat state)" != gone ]] || rm state ;;
  *"queued-resources describe"*)
    if [[ -s outage ]]; then
      sed -i 1d outage
      echo "connection refused" >&2
      exit 1
    fi
    cat state 2> /dev/null || { echo "NOT_FOUND: no such thing" >&2; exit 1; } ;;
  *"queued-resources delete"*) rm state ;;
  *"imagen train"*)
    case "$(next runs)" in
      trained) exit 0 ;;
      broken) exit 1 ;;
      preempted) echo SUSPENDED > state; exit 255 ;;
      endless) touch training; sleep 60 ;;
    esac ;;
esac
"""


class World:
    """A repository with the script, and what gcloud would find."""

    def __init__(self, root: Path):
        self.root = root
        (root / "repository" / "launch").mkdir(parents=True)
        (root / "repository" / "launch" / "tpu.sh").write_bytes(SCRIPT.read_bytes())
        (root / "repository" / ".gitignore").write_text("*.log\n")
        self.git("init", "--quiet")
        self.commit()
        (root / "gcloud").write_text(GCLOUD.replace("\necho", f"\ncd {root}\necho", 1))
        (root / "gcloud").chmod(0o755)
        for name, content in {
            "project": "p", "bucket": "0", "born": "ACTIVE", "runs": "trained", "log": ""
        }.items():  # fmt: skip
            self.write(name, content)

    def git(self, *arguments: str) -> None:
        names = ["-c", "user.name=n", "-c", "user.email=e"]
        subprocess.run(["git", *names, *arguments], cwd=self.root / "repository", check=True)

    def commit(self) -> None:
        self.git("add", "--all")
        self.git("commit", "--quiet", "--message", "state")

    def write(self, name: str, *lines: str) -> None:
        (self.root / name).write_text("".join(f"{line}\n" for line in lines if line))

    def start(self, *arguments: str) -> subprocess.Popen[str]:
        argv = ["bash", self.root / "repository" / "launch" / "tpu.sh", "--poll", "0.05"]
        return subprocess.Popen(
            [*argv, *arguments], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
            env=os.environ | {"PATH": f"{self.root}:{os.environ['PATH']}"}, start_new_session=True,
        )  # fmt: skip

    def run(self, *arguments: str) -> tuple[int, str]:
        process = self.start(*(arguments or (*ARGUMENTS, "--", *TRAIN)))
        printed = process.communicate(timeout=60)[0]
        return process.returncode, printed

    def asked(self) -> list[str]:
        """What gcloud was asked to do, in short, without the questions that change nothing."""
        verbs = {"create": "queued-resources create base",
                 "delete": "queued-resources delete base", "copy": "tpu-vm scp",
                 "train": ".venv/bin/imagen train", "install": "launch/setup.sh --tpu"}  # fmt: skip
        lines = (self.root / "log").read_text().splitlines()
        return [verb for line in lines for verb, part in verbs.items() if part in line]


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path)


ONCE = ["create", "copy", "install", "train", "delete"]


def test_trains_and_cleans_up(world: World) -> None:
    status, printed = world.run()
    assert status == 0, printed
    assert world.asked() == ONCE
    log = (world.root / "log").read_text()
    assert "create base --node-id=base --zone=us-central2-b --accelerator-type=v4-8" in log
    assert "--spot" not in log
    assert (
        r"imagen train --multi-host --config quickstart --stage base --data /bucket/my\ data" in log
    )
    assert log.count("--worker=all") == 3
    assert "done" in (world.root / "repository" / "base.log").read_text()


def test_goes_on_after_preemption(world: World) -> None:
    world.write("born", "ACTIVE", "ACTIVE", "SUSPENDED", "ACTIVE")
    world.write("runs", "preempted", "preempted", "trained")
    status, printed = world.run(*ARGUMENTS, "--spot", "--", *TRAIN)
    assert status == 0, printed
    assert world.asked() == ONCE + ONCE + ["create", "delete"] + ONCE
    assert printed.count("was preempted") == 3
    assert (world.root / "log").read_text().count("--spot") == 4


def test_gives_up_after_enough_attempts(world: World) -> None:
    world.write("born", *["ACTIVE"] * 2)
    world.write("runs", *["preempted"] * 2)
    status, printed = world.run(*ARGUMENTS, "--attempts", "2", "--", *TRAIN)
    assert status == 2
    assert world.asked() == ONCE * 2
    assert "preempted 2 times" in printed


def test_an_error_of_training_is_not_tried_again(world: World) -> None:
    world.write("runs", "broken")
    status, printed = world.run()
    assert status == 2
    assert world.asked() == ONCE
    assert "stopped; the state of base is 'ACTIVE'" in printed


@pytest.mark.parametrize("born", ["FAILED", "gone"])
def test_a_tpu_that_does_not_come(world: World, born: str) -> None:
    world.write("born", born)
    status, printed = world.run()
    assert status == 2
    assert world.asked() == (["create", "delete"] if born == "FAILED" else ["create"])
    assert f"stopped; the state of base is '{born if born == 'FAILED' else ''}'" in printed


def test_a_request_that_is_refused(world: World) -> None:
    world.write("quota", "none")
    status, printed = world.run()
    assert status == 2
    assert world.asked() == ["create"]
    assert "gcloud refused to create base" in printed


def test_what_someone_else_created_meanwhile_stays(world: World) -> None:
    world.write("quota", "none")
    gcloud = world.root / "gcloud"
    gcloud.write_text(
        gcloud.read_text().replace("exit 1\n    next", "{ echo ACTIVE > state; exit 1; }\n    next")
    )
    status, printed = world.run()
    assert status == 2
    assert world.asked() == ["create"]
    assert "its state is 'ACTIVE'" in printed


def test_an_outage_of_gcloud_is_not_the_end_of_a_tpu(world: World) -> None:
    world.write("outage", "")
    gcloud = world.root / "gcloud"
    gcloud.write_text(
        gcloud.read_text().replace(
            "    next born > state", "    next born > state; printf '1\\n2\\n' > outage"
        )
    )
    status, printed = world.run()
    assert status == 0, printed
    assert "base is UNKNOWN" in printed
    assert world.asked() == ONCE


def test_interruption_deletes_what_was_created(world: World) -> None:
    world.write("runs", "endless")
    process = world.start(*ARGUMENTS, "--", *TRAIN)
    while not (world.root / "training").exists():
        assert process.poll() is None
        time.sleep(0.05)
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does
    process.communicate(timeout=60)
    assert process.returncode == 130
    assert world.asked() == ONCE


def test_keep_leaves_it_running(world: World) -> None:
    status, printed = world.run(*ARGUMENTS, "--keep", "--", *TRAIN)
    assert status == 0
    assert world.asked() == ONCE[:-1]
    assert "gcloud compute tpus queued-resources delete base --zone=us-central2-b" in printed


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("state", "ACTIVE"), "base exists in us-central2-b already"),
        (("project", "(unset)"), "gcloud has no project"),
        (("bucket", "1"), "cannot list gs://b"),
        (("outage", "1"), "cannot look up base in us-central2-b: connection refused"),
        (("repository/.gitignore", "*.log", "more"), "changes that are not committed"),
    ],
)
def test_what_is_refused_before_it_costs(
    world: World, change: tuple[str, ...], message: str
) -> None:
    world.write(*change)
    status, printed = world.run()
    assert status == 2
    assert message in printed
    assert world.asked() == []


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (ARGUMENTS[2:], "--name is missing"),
        (ARGUMENTS, "nothing to train"),
        ([*ARGUMENTS[:-1], "gs://b", "--", *TRAIN], "without gs://"),
        (["--nonsense"], "unknown argument --nonsense"),
    ],
)
def test_arguments_that_make_no_sense(world: World, arguments: list[str], message: str) -> None:
    status, printed = world.run(*arguments)
    assert status == 2
    assert message in printed
    assert world.asked() == []


def test_dry_run_prints_every_command_and_runs_none(world: World) -> None:
    status, printed = world.run(*ARGUMENTS, "--dry-run", "--", *TRAIN)
    assert status == 0
    assert (world.root / "log").read_text() == ""
    commands = [line for line in printed.splitlines() if line.startswith("+ gcloud")]
    assert [c.split()[4:6] for c in commands] == [
        ["queued-resources", "create"], ["tpu-vm", "scp"], ["tpu-vm", "ssh"], ["tpu-vm", "ssh"],
        ["queued-resources", "delete"],
    ]  # fmt: skip
