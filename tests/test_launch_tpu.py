"""launch/tpu.sh against a stand-in for gcloud that records what it is asked."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from pathlib import Path

import pytest
from bucket_server import serve
from launching import TRAIN, World

GCLOUD = """
  "config get-value project") cat project ;;
  "storage ls"*) exit "$(cat bucket)" ;;
  "storage cp"*/round" "*) cp "$3" round ;;
  "storage cp"*) cp "$3" uploaded ;;
  "storage rm"*) ;;
  "storage cat gs://b/jobs/base/round") cat round ;;
  "storage cat --range=0-"*) cat log-of-the-first 2> /dev/null ;;
  "storage cat --range="*) exit 1 ;;
  "storage cat"*.status)
    [[ ! -e endless ]] || { rm endless; (sleep 0.5; touch training) & }
    sed "s/NOW/$(date +%s)/" statuses 2> /dev/null ;;
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
  *"launch/host.py"*)
    printf "%s\n" "${@: -1}" > start
    echo "base: 50%" > log-of-the-first
    case "$(next runs)" in
      trained) printf 'ended 0 NOW\\nended 0 NOW\\n' > statuses ;;
      broken) printf 'ended 1 NOW\\nended 1 NOW\\n' > statuses ;;
      stopped) printf 'ended 75 NOW\\nended 75 NOW\\n' > statuses ;;
      mistake) printf 'ended 64 NOW\\nrunning NOW\\n' > statuses ;;
      dead) printf 'running 1700000000\\nrunning NOW\\n' > statuses ;;
      preempted) echo SUSPENDED > state; echo 'running NOW' > statuses ;;
      endless) echo 'running NOW' > statuses; touch endless ;;
    esac ;;
  *"tpu-vm ssh"*)
    printf "%s\n" "${@: -1}" > install
    [[ ! -e refuses ]] || { rm refuses; exit 1; } ;;
"""
ARGUMENTS = ["--name", "base", "--type", "v4-8", "--zone", "us-central2-b", "--bucket", "b",
             "--poll", "0.05"]  # fmt: skip
VERBS = {"create": "queued-resources create base", "delete": "queued-resources delete base",
         "start": "launch/host.py b jobs/base/",
         "install": "launch/setup.sh --tpu"}  # fmt: skip


@pytest.fixture
def world(tmp_path: Path) -> World:
    files = {"project": "p", "bucket": "0", "born": "ACTIVE", "runs": "trained"}
    world = World(tmp_path, "tpu.sh", {"gcloud": GCLOUD}, files)
    world.environment["HOME"] = str(tmp_path / "home")
    return world


def rewrite(world: World, old: str, new: str) -> None:
    """Changes what the stand-in for gcloud does."""
    gcloud = world.root / "bin" / "gcloud"
    assert old in gcloud.read_text()
    gcloud.write_text(gcloud.read_text().replace(old, new))


ONCE = ["create", "install", "start", "delete"]


def test_trains_and_cleans_up(world: World) -> None:
    status, printed = world.run(*ARGUMENTS, "--", *TRAIN)
    assert status == 0, printed
    assert world.asked(VERBS) == ONCE
    log = "\n".join(world.log())
    assert "create base --zone=us-central2-b --accelerator-type=v4-8" in log
    assert "--runtime-version=tpu-ubuntu2204-base --quiet --node-id=base" in log
    assert "--spot" not in log
    assert (
        r".venv/bin/imagen train --config quickstart --stage base --data gs://b/it\'s\ my\ data "
        r"--workdir gs://b/run --multi-host"
    ) in log
    assert log.count("--worker=all") == 2
    assert "apt" not in log.replace("apt is busy", "")
    assert "sudo" not in log
    kept = (world.repository / "base.log").read_text()
    assert "base: 50%" in kept
    assert "done" in kept
    assert not (world.repository / "base.job").exists()


def test_what_a_host_is_told_to_do(world: World, tmp_path: Path) -> None:
    """From an empty home to the status of the command in the bucket, but for the installation."""
    assert world.run(*ARGUMENTS, "--", *TRAIN)[0] == 0
    home = tmp_path / "host"
    home.mkdir()
    (world.root / "bin" / "uv").symlink_to("/bin/true")
    with serve() as bucket:
        bucket.objects["b/jobs/base.tar.gz"] = (world.root / "uploaded").read_bytes()
        environment = os.environ | world.environment | bucket.environment
        environment |= {"HOME": str(home), "HOST_PERIOD": "0.1"}

        def told(text: str) -> None:
            subprocess.run(["bash", "-c", text], cwd=home, env=environment, check=True, timeout=600)

        install, start = (
            (world.root / name).read_text().removeprefix("--command=")
            for name in ("install", "start")
        )
        setup = "bash imagen-jax/launch/setup.sh --tpu"
        assert setup in install
        told(install.replace(setup, "test -f imagen-jax/launch/setup.sh"))
        imagen = home / "imagen-jax" / ".venv" / "bin" / "imagen"
        imagen.parent.mkdir(parents=True)
        imagen.write_text('#!/bin/sh\necho "$JAX_COMPILATION_CACHE_DIR $*"\nexit 75\n')
        imagen.chmod(0o755)
        told(start)
        until = time.monotonic() + 600
        # Of a copy: the server adds to it meanwhile.
        while not any(b"ended 75" in content for content in [*bucket.objects.values()]):
            assert time.monotonic() < until, bucket.objects.keys()
            time.sleep(0.05)
    (log,) = (text for name, text in bucket.objects.items() if name.endswith("/0-0.log"))
    assert log.decode() == (
        "gs://b/jobs/compiled train --config quickstart --stage base --data gs://b/it's my data "
        "--workdir gs://b/run --multi-host\n"
    )


@pytest.mark.parametrize(
    ("kind", "runtime"),
    [("v5litepod-16", "v2-alpha-tpuv5-lite"), ("v5p-128", "v2-alpha-tpuv5"),
     ("v6e-8", "v2-alpha-tpuv6e")],
)  # fmt: skip
def test_the_software_is_that_of_the_type(world: World, kind: str, runtime: str) -> None:
    create = world.dry_run(*ARGUMENTS, "--type", kind)[1]
    assert f"--runtime-version={runtime}" in create
    assert f"--accelerator-type={kind}" in create


def test_options_of_the_project_and_its_network(world: World) -> None:
    options = ["--project", "q", "--service-account", "t@q.iam.gserviceaccount.com",
               "--network", "n", "--subnetwork", "s", "--internal-ips", "--reserved",
               "--slices", "2"]  # fmt: skip
    commands = world.dry_run(*ARGUMENTS, *options)
    create = commands[1]
    for option in ("--project=q", "--service-account=t@q.iam.gserviceaccount.com", "--network=n",
                   "--subnetwork=s", "--internal-ips", "--reserved", "--node-count=2",
                   "--node-prefix=base"):  # fmt: skip
        assert option in create
    ssh = [command for command in commands if "ssh" in command]
    assert [command[5] for command in ssh] == ["base-0", "base-1"] * 2
    assert all({"--internal-ip", "--project=q"} <= set(command) for command in ssh)


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


@pytest.mark.parametrize("run", ["broken", "stopped", "dead"])
def test_what_ends_is_started_again_on_the_tpu_that_is_there(world: World, run: str) -> None:
    world.write("runs", run, "trained")
    status, printed = world.run(*ARGUMENTS, "--", *TRAIN)
    assert status == 0, printed
    assert world.asked(VERBS) == ["create", *["install", "start"] * 2, "delete"]
    shown = {"broken": 1, "stopped": 75, "dead": "dead"}[run]
    assert f"status {shown} (" in printed
    rounds = [
        line.split("jobs/base/")[1].split()[0] for line in world.log() if VERBS["start"] in line
    ]
    assert len(set(rounds)) == 2


def test_what_ends_again_and_again_is_given_up(world: World) -> None:
    world.write("runs", *["broken"] * 3)
    printed = world.refused(*ARGUMENTS, "--retries", "3", "--", *TRAIN)
    assert world.asked(VERBS) == ["create", *["install", "start"] * 3, "delete"]
    assert "stopped after 3 tries; the state of base is 'ACTIVE'" in printed


def test_a_mistake_is_not_tried_again(world: World) -> None:
    world.write("runs", "mistake")
    assert "a mistake in the arguments" in world.refused(*ARGUMENTS, "--", *TRAIN)
    assert world.asked(VERBS) == ONCE


def test_an_installation_that_fails_is_tried_again(world: World) -> None:
    world.write("refuses")
    status, printed = world.run(*ARGUMENTS, "--", *TRAIN)
    assert status == 0, printed
    assert world.asked(VERBS) == ["create", "install", "install", "start", "delete"]


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


def test_ctrl_c_while_it_waits_deletes_the_tpu(world: World) -> None:
    rewrite(world, "    next born > state", "    next born > state; (sleep 0.5; touch waiting) &")
    world.write("born", "WAITING_FOR_RESOURCES")
    assert world.interrupt_when("waiting", *ARGUMENTS, "--", *TRAIN)[0] == 130
    assert world.asked(VERBS) == ["create", "delete"]


@pytest.mark.parametrize("by", [signal.SIGINT, signal.SIGHUP])
def test_a_job_that_is_left_is_followed_again(world: World, by: signal.Signals) -> None:
    world.write("runs", "endless")
    status, printed = world.interrupt_when("training", *ARGUMENTS, "--", *TRAIN, by=by)
    assert status == 128 + by
    assert world.asked(VERBS) == ONCE[:-1]
    assert "bash launch/tpu.sh attach base" in printed
    assert "bash launch/tpu.sh delete base" in printed
    world.write("statuses", "ended 0 NOW")
    status, printed = world.run("attach", "base")
    assert status == 0, printed
    assert "base: 50%" in printed
    assert world.asked(VERBS) == ONCE


def test_a_job_that_is_left_and_preempted_resumes_when_it_is_followed(world: World) -> None:
    world.write("runs", "endless", "trained")
    world.write("born", "ACTIVE", "ACTIVE")
    world.interrupt_when("training", *ARGUMENTS, "--", *TRAIN)
    world.write("state", "SUSPENDED")
    assert world.run("attach", "base")[0] == 0
    assert world.asked(VERBS) == ONCE + ONCE
    installed = [line for line in world.log() if line.startswith("python3 - b jobs/base.tar.gz ")]
    assert len(set(installed)) == 1  # the code that was uploaded then


def test_a_job_that_is_left_is_deleted(world: World) -> None:
    world.write("runs", "endless")
    world.interrupt_when("training", *ARGUMENTS, "--", *TRAIN)
    assert world.run("delete", "base")[0] == 0
    assert world.asked(VERBS) == ONCE
    assert "no job of that name was started from here" in world.refused("attach", "base")


def test_keep_leaves_the_tpu_running(world: World) -> None:
    status, printed = world.run(*ARGUMENTS, "--keep", "--", *TRAIN)
    assert status == 0
    assert world.asked(VERBS) == ONCE[:-1]
    assert "bash launch/tpu.sh delete base" in printed


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
    ("passphrase", "held", "message"),
    [
        ("", "", None),
        ("", "256 SHA256:other me (ED25519)", "ssh-agent holds other keys"),
        ("secret", "", "has a passphrase, and no ssh-agent holds it"),
        ("secret", "THIS", None),
    ],
)
def test_keys_that_gcloud_cannot_use_are_told_before_anything_is_paid_for(
    world: World, passphrase: str, held: str, message: str | None
) -> None:
    key = world.root / "home" / ".ssh" / "google_compute_engine"
    key.parent.mkdir(parents=True)
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", passphrase, "-f", key], check=True)
    agent = world.root / "bin" / "ssh-add"
    said = f"ssh-keygen -lf {key}.pub" if held == "THIS" else f"echo '{held}'"
    agent.write_text(f"#!/bin/sh\n{said if held else 'exit 1'}\n")
    agent.chmod(0o755)
    status, printed = world.run(*ARGUMENTS, "--", *TRAIN)
    assert status == (2 if message else 0), printed
    assert (message or "done") in printed
    assert world.asked(VERBS) == ([] if message else ONCE)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (ARGUMENTS[2:], "--name is missing"),
        (ARGUMENTS, "nothing to run"),
        ([*ARGUMENTS, "--bucket", "gs://b", "--", *TRAIN], "without gs://"),
        ([*ARGUMENTS, "--type", "v7x-8", "--", *TRAIN], "--type is 'v7x-8'; known are v4-N, v5l"),
        ([*ARGUMENTS, "--spot", "--reserved", "--", *TRAIN], "--spot and --reserved exclude"),
        ([*ARGUMENTS, "--", *TRAIN, "--workdir", "run"], "--workdir is 'run', on a disk"),
        (["--nonsense"], "unknown argument --nonsense"),
    ],
)
def test_arguments_that_make_no_sense(world: World, arguments: list[str], message: str) -> None:
    assert message in world.refused(*arguments)
    assert world.asked(VERBS) == []


def test_dry_run_prints_every_command_and_runs_none(world: World) -> None:
    commands = world.dry_run(*ARGUMENTS)
    assert commands[0][:3] == ["gcloud", "storage", "cp"]
    assert [command[3:5] for command in commands[1:4]] == [
        ["queued-resources", "create"], ["tpu-vm", "ssh"], ["tpu-vm", "ssh"],
    ]  # fmt: skip
    assert commands[4][:3] == ["gcloud", "storage", "rm"]
    assert commands[5][3:5] == ["queued-resources", "delete"]
