"""launch/xpk.sh against a stand-in for xpk that records what it is asked."""

from __future__ import annotations

from pathlib import Path

import pytest
from launching import TRAIN, World

XPK = """
  "workload list"*"--filter-by-job=^base$"*)
    [[ ! -e outage ]] || { echo "[XPK] no such cluster"; exit 1; }
    echo "Jobset Name   Created Time"; cat existing ;;
  "workload create"*)
    [[ ! -e refused ]] || exit 1
    for argument in "$@"; do
      case "$argument" in --script-dir=*) ls "${argument#*=}/launch" > script_dir ;; esac
    done ;;
  "workload list"*"--wait-for-job-completion=base"*)
    case "$(cat run)" in endless) touch following; exec sleep 60 ;; failed) exit 125 ;; esac ;;
"""
ARGUMENTS = ["--name", "base", "--cluster", "tpus", "--type", "v4-32"]
VERBS = {"create": "workload create --cluster=tpus --workload=base",
         "wait": "--wait-for-job-completion=base",
         "delete": "workload delete --cluster=tpus --workload=base --force"}  # fmt: skip


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path, "xpk.sh", {"xpk": XPK}, {"existing": "", "run": "trained"})


def test_trains_and_cleans_up(world: World) -> None:
    world.write("existing", "base2   2026-01-01")
    status, printed = world.run(*ARGUMENTS, "--spot", "--", *TRAIN)
    assert status == 0, printed
    assert world.asked(VERBS) == ["create", "wait", "delete"]
    (line,) = [line for line in world.log() if VERBS["create"] in line]
    for option in ("--tpu-type=v4-32", "--spot", "--max-restarts=50",
                   "--restart-on-user-code-failure", "--termination-grace-period-seconds=120",
                   r"imagen train --multi-host --config quickstart --stage base "
                   r"--data /bucket/it\'s\ my\ data"):  # fmt: skip
        assert option in line
    assert "setup.sh" in (world.root / "script_dir").read_text()


@pytest.mark.parametrize(("keep", "asked"), [([], ["create", "wait", "delete"]),
                                             (["--keep"], ["create", "wait"])])  # fmt: skip
def test_a_workload_that_fails(world: World, keep: list[str], asked: list[str]) -> None:
    world.write("run", "failed")
    status, printed = world.run(*ARGUMENTS, *keep, "--", *TRAIN)
    assert status == 2
    assert "did not end well" in printed
    assert world.asked(VERBS) == asked


def test_ctrl_c_deletes_the_workload(world: World) -> None:
    world.write("run", "endless")
    assert world.interrupt_when("following", *ARGUMENTS, "--", *TRAIN) == 130
    assert world.asked(VERBS) == ["create", "wait", "delete"]


def test_a_refused_workload_is_not_deleted(world: World) -> None:
    world.write("refused")
    assert "could not create the workload base" in world.refused(*ARGUMENTS, "--", *TRAIN)
    assert world.asked(VERBS) == ["create"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("existing", "base   2026-01-01"), "a workload base exists in tpus already"),
        (("outage",), "xpk cannot list the workloads of tpus: [XPK] no such cluster"),
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
        ([*ARGUMENTS, "--name", "b" * 41, "--", *TRAIN], "at most 40"),
        (ARGUMENTS, "nothing to train"),
        (["--nonsense"], "unknown argument --nonsense"),
    ],
)
def test_arguments_that_make_no_sense(world: World, arguments: list[str], message: str) -> None:
    assert message in world.refused(*arguments)
    assert world.log() == []


def test_dry_run_calls_no_cloud(world: World) -> None:
    assert [command[:3] for command in world.dry_run(*ARGUMENTS)] == [
        ["xpk", "workload", "create"], ["xpk", "workload", "list"], ["xpk", "workload", "delete"],
    ]  # fmt: skip
