"""launch/xpk.sh against a stand-in for xpk that records what it is asked, and its command lines
against the parser of the real one."""

from __future__ import annotations

import argparse
import importlib.util
import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
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
      endless) (sleep 0.3; touch following) & exec sleep 600 ;;
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


needs_xpk = pytest.mark.skipif(
    importlib.util.find_spec("xpk") is None, reason="xpk is not installed"
)


def dry_lines(world: World) -> list[list[str]]:
    """Command lines of a dry run, with another folder of code: the script has removed its own."""
    options = ["--spot", "--slices", "2", "--project", "p", "--zone", "us-east5-a", "--dry-run"]
    status, printed = world.run(*ARGUMENTS, *options, "--", *TRAIN)
    assert status == 0, printed
    code = world.root / "code"
    code.mkdir()
    return [
        [f"--script-dir={code}" if word.startswith("--script-dir=") else word
         for word in shlex.split(line)[2:]]
        for line in printed.splitlines() if line.startswith("+ xpk ")
    ]  # fmt: skip


@needs_xpk
def test_xpk_itself_takes_the_command_lines(world: World) -> None:
    from xpk.commands.workload import get_restart_exit_codes
    from xpk.parser.core import set_parser

    lines = dry_lines(world)
    assert len(lines) == 3
    for words in lines:
        parser = argparse.ArgumentParser(prog="xpk")
        set_parser(parser)
        parsed = parser.parse_args(words)
        if "create" in words:
            assert (parsed.tpu_type, parsed.num_slices, parsed.spot) == ("v5p-32", 2, True)
            restarted = get_restart_exit_codes(parsed)
            assert {1, 2, 75, 137} <= set(restarted)
            assert not {0, 64} & set(restarted)


@needs_xpk
@pytest.mark.slow
def test_the_manifest_that_xpk_makes(world: World, tmp_path: Path) -> None:
    """In a dry run of xpk, which asks nobody; what a host then runs, runs here, but for imagen."""
    (create,) = (words for words in dry_lines(world) if "create" in words)
    path = tmp_path / "manifest.yaml"
    switches = ("TELEMETRY_ENABLED", "CRANE_WORKLOADS_ENABLED", "DEPENDENCY_AUTO_DOWNLOAD")
    offline = {"HOME": str(tmp_path), **dict.fromkeys(switches, "false")}
    done = subprocess.run(
        [sys.executable, "-c", "from xpk.main import main; main()", *create, "--dry-run",
         "--skip-validation", f"--output-manifest-file={path}"],
        env=os.environ | offline, capture_output=True, text=True, check=False, timeout=600,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout
    found = yaml.safe_load(path.read_text())
    assert found["spec"]["failurePolicy"]["maxRestarts"] == 50
    (job,) = found["spec"]["replicatedJobs"]
    assert job["replicas"] == 2
    spec = job["template"]["spec"]
    (rule,) = spec["podFailurePolicy"]["rules"]
    assert (rule["action"], rule["onExitCodes"]["operator"]) == ("FailJob", "NotIn")
    assert {1, 75} <= set(rule["onExitCodes"]["values"])
    assert 64 not in rule["onExitCodes"]["values"]
    pod = spec["template"]["spec"]
    assert pod["terminationGracePeriodSeconds"] == 330
    (container,) = pod["containers"]
    assert {"name": "JAX_COMPILATION_CACHE_DIR", "value": "gs://b/jobs/compiled"} in container[
        "env"
    ]

    (tmp_path / "launch").mkdir()
    (tmp_path / "launch" / "setup.sh").write_text("")
    imagen = tmp_path / ".venv" / "bin" / "imagen"
    imagen.parent.mkdir(parents=True)
    imagen.write_text('#!/bin/sh\nfor word; do echo "<$word>"; done\nexit 75\n')
    imagen.chmod(0o755)
    ran = subprocess.run(
        container["command"], cwd=tmp_path, capture_output=True, text=True, check=False, timeout=600
    )
    assert ran.returncode == 75
    assert "<gs://b/it's my data>\n<--workdir>\n<gs://b/run>\n<--multi-host>\n" in ran.stdout
