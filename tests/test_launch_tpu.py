"""launch/tpu.sh against a stand-in for gcloud that records what it is asked."""

from __future__ import annotations

from pathlib import Path

import pytest
from launching import TRAIN, World

GCLOUD = """
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
"""
ARGUMENTS = ["--name", "base", "--type", "v4-8", "--zone", "us-central2-b", "--bucket", "b",
             "--poll", "0.05"]  # fmt: skip
VERBS = {"create": "queued-resources create base", "delete": "queued-resources delete base",
         "copy": "tpu-vm scp", "train": ".venv/bin/imagen train",
         "install": "launch/setup.sh --tpu"}  # fmt: skip


@pytest.fixture
def world(tmp_path: Path) -> World:
    files = {"project": "p", "bucket": "0", "born": "ACTIVE", "runs": "trained"}
    return World(tmp_path, "tpu.sh", {"gcloud": GCLOUD}, files)


def rewrite(world: World, old: str, new: str) -> None:
    """Changes what the stand-in for gcloud does."""
    gcloud = world.root / "bin" / "gcloud"
    assert old in gcloud.read_text()
    gcloud.write_text(gcloud.read_text().replace(old, new))


ONCE = ["create", "copy", "install", "train", "delete"]


def test_trains_and_cleans_up(world: World) -> None:
    status, printed = world.run(*ARGUMENTS, "--", *TRAIN)
    assert status == 0, printed
    assert world.asked(VERBS) == ONCE
    log = "\n".join(world.log())
    assert "create base --node-id=base --zone=us-central2-b --accelerator-type=v4-8" in log
    assert "--spot" not in log
    assert r"imagen train --config quickstart --stage base --data gs://b/it" in log
    assert log.count("--worker=all") == 3
    assert "done" in (world.root / "repository" / "base.log").read_text()


def test_training_resumes_after_preemption(world: World) -> None:
    world.write("born", "ACTIVE", "ACTIVE", "SUSPENDED", "ACTIVE")
    world.write("runs", "preempted", "preempted", "trained")
    status, printed = world.run(*ARGUMENTS, "--spot", "--", *TRAIN)
    assert status == 0, printed
    assert world.asked(VERBS) == ONCE + ONCE + ["create", "delete"] + ONCE
    assert printed.count("was preempted") == 3
    assert sum("--spot" in line for line in world.log()) == 4


def test_gives_up_after_enough_attempts(world: World) -> None:
    world.write("born", *["ACTIVE"] * 2)
    world.write("runs", *["preempted"] * 2)
    status, printed = world.run(*ARGUMENTS, "--attempts", "2", "--", *TRAIN)
    assert status == 2
    assert world.asked(VERBS) == ONCE * 2
    assert "preempted 2 times" in printed


def test_a_failed_training_is_not_retried(world: World) -> None:
    world.write("runs", "broken")
    printed = world.refused(*ARGUMENTS, "--", *TRAIN)
    assert world.asked(VERBS) == ONCE
    assert "stopped; the state of base is 'ACTIVE'" in printed


@pytest.mark.parametrize("born", ["FAILED", "gone"])
def test_a_tpu_request_that_fails(world: World, born: str) -> None:
    world.write("born", born)
    printed = world.refused(*ARGUMENTS, "--", *TRAIN)
    assert world.asked(VERBS) == (["create", "delete"] if born == "FAILED" else ["create"])
    assert f"stopped; the state of base is '{born if born == 'FAILED' else ''}'" in printed


def test_a_request_that_is_refused(world: World) -> None:
    world.write("quota", "none")
    printed = world.refused(*ARGUMENTS, "--", *TRAIN)
    assert world.asked(VERBS) == ["create"]
    assert "gcloud refused to create base" in printed


def test_a_tpu_that_someone_else_created_is_not_deleted(world: World) -> None:
    world.write("quota", "none")
    rewrite(world, "exit 1\n    next", "{ echo ACTIVE > state; exit 1; }\n    next")
    printed = world.refused(*ARGUMENTS, "--", *TRAIN)
    assert world.asked(VERBS) == ["create"]
    assert "its state is 'ACTIVE'" in printed


def test_an_outage_of_gcloud_is_not_the_end_of_a_tpu(world: World) -> None:
    rewrite(world, "    next born > state", "    next born > state; printf '1\\n2\\n' > outage")
    status, printed = world.run(*ARGUMENTS, "--", *TRAIN)
    assert status == 0, printed
    assert "base is UNKNOWN" in printed
    assert world.asked(VERBS) == ONCE


def test_ctrl_c_deletes_the_tpu(world: World) -> None:
    world.write("runs", "endless")
    assert world.interrupt_when("training", *ARGUMENTS, "--", *TRAIN)[0] == 130
    assert world.asked(VERBS) == ONCE


def test_keep_leaves_the_tpu_running(world: World) -> None:
    status, printed = world.run(*ARGUMENTS, "--keep", "--", *TRAIN)
    assert status == 0
    assert world.asked(VERBS) == ONCE[:-1]
    assert "gcloud compute tpus queued-resources delete base --zone=us-central2-b" in printed


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("state", "ACTIVE"), "base exists in us-central2-b already"),
        (("project", "(unset)"), "gcloud has no project"),
        (("bucket", "1"), "cannot list gs://b"),
        (("outage", "1"), "cannot look up base in us-central2-b: connection refused"),
        (("repository/.gitignore", "*.log"), "changes that are not committed"),
    ],
)
def test_refused_states_create_nothing(world: World, change: tuple[str, ...], message: str) -> None:
    world.write(*change)
    assert message in world.refused(*ARGUMENTS, "--", *TRAIN)
    assert world.asked(VERBS) == []


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (ARGUMENTS[2:], "--name is missing"),
        (ARGUMENTS, "nothing to run"),
        ([*ARGUMENTS, "--bucket", "gs://b", "--", *TRAIN], "without gs://"),
        (["--nonsense"], "unknown argument --nonsense"),
    ],
)
def test_arguments_that_make_no_sense(world: World, arguments: list[str], message: str) -> None:
    assert message in world.refused(*arguments)
    assert world.asked(VERBS) == []


def test_dry_run_prints_every_command_and_runs_none(world: World) -> None:
    assert [command[3:5] for command in world.dry_run(*ARGUMENTS)] == [
        ["queued-resources", "create"], ["tpu-vm", "scp"], ["tpu-vm", "ssh"], ["tpu-vm", "ssh"],
        ["queued-resources", "delete"],
    ]  # fmt: skip
