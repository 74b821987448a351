"""launch/xpk.sh against a stand-in for xpk that records what it is asked, and its command lines
against the parser of the real one."""

from __future__ import annotations

import argparse
import importlib.util
import shlex
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
    case "$(cat run)" in
      endless) (sleep 0.3; touch following) & exec sleep 60 ;;
      failed) exit 125 ;;
    esac ;;
"""
ARGUMENTS = ["--name", "base", "--cluster", "tpus", "--type", "v5p-32", "--bucket", "b"]
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
    for option in ("--tpu-type=v5p-32", "--spot", "--max-restarts=50",
                   "--restart-on-exit-codes=1-63,65-126", "--num-slices=1",
                   "--termination-grace-period-seconds=330",
                   "--env=JAX_COMPILATION_CACHE_DIR=gs://b/jobs/compiled",
                   r"exec .venv/bin/imagen train --config quickstart --stage base "
                   r"--data gs://b/it\'s\ my\ data --workdir gs://b/run --multi-host"):  # fmt: skip
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


def test_ctrl_c_leaves_the_workload(world: World) -> None:
    world.write("run", "endless")
    status, printed = world.interrupt_when("following", *ARGUMENTS, "--", *TRAIN)
    assert status == 130
    assert world.asked(VERBS) == ["create", "wait"]
    assert "the job does not" in printed
    assert "xpk workload delete --cluster=tpus --workload=base" in printed


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
        (ARGUMENTS, "nothing to run"),
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


@pytest.mark.skipif(importlib.util.find_spec("xpk") is None, reason="xpk is not installed")
def test_xpk_itself_takes_the_command_lines(world: World) -> None:
    from xpk.commands.workload import get_restart_exit_codes
    from xpk.parser.core import set_parser

    def parse(words: list[str]) -> argparse.Namespace:
        parser = argparse.ArgumentParser(prog="xpk")
        set_parser(parser)
        return parser.parse_args(words)

    options = ["--spot", "--slices", "2", "--project", "p", "--zone", "us-east5-a", "--dry-run"]
    status, printed = world.run(*ARGUMENTS, *options, "--", *TRAIN)
    assert status == 0, printed
    lines = [line[2:] for line in printed.splitlines() if line.startswith("+ xpk ")]
    assert len(lines) == 3
    (world.root / "code").mkdir()  # the scratch folder of the script is gone
    for line in lines:
        words = shlex.split(line)[1:]
        parsed = parse([f"--script-dir={world.root}/code" if word.startswith("--script-dir=")
                        else word for word in words])  # fmt: skip
        if "create" in words:
            assert (parsed.tpu_type, parsed.num_slices, parsed.spot) == ("v5p-32", 2, True)
            assert parsed.env == ["JAX_COMPILATION_CACHE_DIR=gs://b/jobs/compiled"]
            assert parsed.command.endswith("--workdir gs://b/run --multi-host")
            restarted = get_restart_exit_codes(parsed)
            assert {1, 2, 75, 137} <= set(restarted)
            assert not {0, 64} & set(restarted)
