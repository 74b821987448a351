"""launch/gke.sh against stand-ins for gcloud and kubectl, and its manifest against a schema."""

from __future__ import annotations

import os
import signal
import subprocess
from pathlib import Path
from typing import Any

import jsonschema
import kubernetes_validate
import pytest
import yaml
from bucket_server import serve
from jobset_schema import SCHEMA
from launching import TRAIN, World

KUBECTL = """
  "config current-context") [[ -s context ]] ;;
  "get crd"*) [[ -s crd ]] ;;
  "get serviceaccount trainer") ;;
  "get jobset base --ignore-not-found"*) cat existing ;;
  "create -f"*) [[ ! -e refused ]] || exit 1; cp "$3" created.yaml ;;
  "logs"*)
    case "$(next runs)" in
      pending) exit 1 ;;
      training) echo "base: 50%" ;;
      endless) (sleep 0.3; touch following) & exec sleep 600 ;;
    esac ;;
  "get jobset base -o"*)
    [[ ! -e gone ]] || { echo "Error from server (NotFound)" >&2; exit 1; }
    next conditions ;;
  "delete jobset base"*) rm created.yaml ;;
"""
GCLOUD = """
  "storage ls gs://b") exit "$(cat bucket)" ;;
  "storage cp"*) tar tzf "$3" > archive; cp "$3" uploaded ;;
  "storage rm"*) rm uploaded ;;
"""
ARGUMENTS = ["--name", "base", "--accelerator", "tpu-v4-podslice", "--topology", "2x2x4",
             "--bucket", "b", "--service-account", "trainer", "--poll", "0.05"]  # fmt: skip
VERBS = {"upload": "storage cp", "create": "kubectl create",
         "delete": "kubectl delete jobset base",
         "clean": "storage rm gs://b/jobs/base.tar.gz"}  # fmt: skip


@pytest.fixture
def world(tmp_path: Path) -> World:
    files = {"context": "c", "crd": "c", "existing": "", "bucket": "0",
             "runs": "training", "conditions": "Completed"}  # fmt: skip
    return World(tmp_path, "gke.sh", {"kubectl": KUBECTL, "gcloud": GCLOUD}, files)


def manifest(world: World, *options: str) -> dict[str, Any]:
    status, printed = world.run(*ARGUMENTS, *options, "--dry-run", "--", *TRAIN)
    assert status == 0, printed
    text = "".join(f"{line}\n" for line in printed.splitlines() if not line.startswith("+ "))
    return yaml.safe_load(text)


def container(found: dict[str, Any]) -> dict[str, Any]:
    (job,) = found["spec"]["replicatedJobs"]
    (only,) = job["template"]["spec"]["template"]["spec"]["containers"]
    return only


def test_trains_and_cleans_up(world: World) -> None:
    world.write("runs", "pending", "training", "training")
    world.write("conditions", "", "StartupPolicyInProgress", "Completed")
    status, printed = world.run(*ARGUMENTS, "--", *TRAIN)
    assert status == 0, printed
    assert printed.count("base: 50%") == 2
    assert world.asked(VERBS) == ["upload", "create", "delete", "clean"]
    assert not (world.root / "created.yaml").exists()
    assert not (world.repository / "base.job").exists()
    assert "imagen-jax/launch/setup.sh" in (world.root / "archive").read_text().splitlines()


def test_the_manifest(world: World) -> None:
    found = manifest(world, "--grace", "90", "--restarts", "7")
    assert found["apiVersion"] == "jobset.x-k8s.io/v1alpha2"
    assert found["metadata"]["name"] == "base"
    assert "kueue.x-k8s.io/queue-name" not in found["metadata"]["labels"]
    assert found["spec"]["failurePolicy"]["maxRestarts"] == 7
    (job,) = found["spec"]["replicatedJobs"]
    spec = job["template"]["spec"]
    assert job["replicas"] == 1
    assert spec["parallelism"] == spec["completions"] == 4
    pod = spec["template"]["spec"]
    assert pod["terminationGracePeriodSeconds"] == 90
    assert pod["nodeSelector"] == {
        "cloud.google.com/gke-tpu-accelerator": "tpu-v4-podslice",
        "cloud.google.com/gke-tpu-topology": "2x2x4",
    }
    assert "volumes" not in pod
    only = container(found)
    assert only["resources"] == {kind: {"google.com/tpu": 4} for kind in ("requests", "limits")}
    last = only["args"][0].rstrip("\n").splitlines()[-1]
    assert last == (
        r"exec .venv/bin/imagen train --config quickstart --stage base "
        r"--data gs://b/it\'s\ my\ data --workdir gs://b/run --multi-host"
    )


def test_the_first_thing_to_run_writes_nothing(world: World) -> None:
    status, printed = world.run(*ARGUMENTS, "--dry-run", "--", "doctor", "--address", "gs://b")
    assert status == 0, printed
    assert "exec .venv/bin/imagen doctor --address gs://b --multi-host" in printed


def test_slices_queues_limits_and_a_mounted_bucket(world: World) -> None:
    found = manifest(world, "--slices", "2", "--queue", "tpus", "--memory", "300", "--mount")
    (job,) = found["spec"]["replicatedJobs"]
    assert job["replicas"] == 2
    assert found["metadata"]["labels"]["kueue.x-k8s.io/queue-name"] == "tpus"
    limits = {"google.com/tpu": 4, "memory": "300Gi"}
    assert container(found)["resources"] == {"requests": limits, "limits": limits}
    template = job["template"]["spec"]["template"]
    sidecar = template["metadata"]["annotations"]
    assert {sidecar[f"gke-gcsfuse/{name}-limit"] for name in ("cpu", "memory")} == {"0"}
    assert template["spec"]["volumes"][0]["csi"]["volumeAttributes"]["bucketName"] == "b"


@pytest.mark.parametrize(("options", "grace"), [([], 330), (["--spot"], 15),
                                                (["--spot", "--grace", "100"], 100)])  # fmt: skip
def test_the_notice_is_what_the_nodes_give(world: World, options: list[str], grace: int) -> None:
    (job,) = manifest(world, *options)["spec"]["replicatedJobs"]
    pod = job["template"]["spec"]["template"]["spec"]
    assert pod["terminationGracePeriodSeconds"] == grace
    assert ("cloud.google.com/gke-spot" in pod["nodeSelector"]) == ("--spot" in options)


def test_a_mistake_ends_the_job_set_and_all_else_restarts_it(world: World) -> None:
    """The only status that fails the job by its policy is 64; every other one, 75 and 1 among them,
    exceeds the job's limit of 0 tries, which no rule of the JobSet names: it restarts."""
    found = manifest(world)
    (job,) = found["spec"]["replicatedJobs"]
    spec = job["template"]["spec"]
    assert spec["backoffLimit"] == 0
    assert spec["podFailurePolicy"]["rules"] == [
        {"action": "FailJob",
         "onExitCodes": {"containerName": "imagen", "operator": "In", "values": [64]}},
    ]  # fmt: skip
    assert container(found)["name"] == "imagen"
    (rule,) = found["spec"]["failurePolicy"]["rules"]
    assert (rule["action"], rule["onJobFailureReasons"]) == ("FailJobSet", ["PodFailurePolicy"])


@pytest.mark.parametrize(
    ("change", "failures", "status"),
    [(b"", 0, 0), (b"", 2, 0), (b"more", 0, 64), (None, 0, 1)],
)
def test_pods_run_only_the_code_that_was_uploaded(
    world: World, tmp_path: Path, change: bytes | None, failures: int, status: int
) -> None:
    assert world.run(*ARGUMENTS, "--keep", "--", *TRAIN)[0] == 0
    only = container(yaml.safe_load((world.root / "created.yaml").read_text()))
    command = only["args"][0].replace("bash launch/setup.sh --tpu", "test -f launch/setup.sh")
    command = command.replace("exec .venv/bin/imagen", "exec echo imagen")
    (tmp_path / "opt").mkdir()
    with serve() as bucket:
        if change is not None:
            archive = (world.root / "uploaded").read_bytes() + change
            bucket.objects["b/jobs/base.tar.gz"] = archive
        bucket.failures = failures
        done = subprocess.run(
            [*only["command"], command], cwd=tmp_path / "opt", capture_output=True, text=True,
            check=False, timeout=600, env=os.environ | bucket.environment | {"FETCH_PAUSE": "0"},
        )  # fmt: skip
    assert done.returncode == status, done.stderr
    assert done.stdout == (
        "imagen train --config quickstart --stage base --data gs://b/it's my data "
        "--workdir gs://b/run --multi-host\n" * (status == 0)
    )
    assert done.stderr.count("(try ") == (5 if change is None else failures)


def test_the_manifest_passes_the_schemas_of_job_set_and_kubernetes(world: World) -> None:
    found = manifest(world, "--spot", "--mount", "--queue", "tpus", "--memory", "100")
    jsonschema.validate(found, SCHEMA)
    (job,) = found["spec"]["replicatedJobs"]
    whole = {"apiVersion": "batch/v1", "kind": "Job", "metadata": {"name": "j"}, **job["template"]}
    version = kubernetes_validate.latest_version()
    kubernetes_validate.validate(whole, version, strict=True)
    whole["spec"]["paralelism"] = 1
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(whole, version, strict=True)
    found["spec"]["failurePolicy"]["rules"][0]["action"] = "FailJobset"
    with pytest.raises(jsonschema.ValidationError, match="FailJobset"):
        jsonschema.validate(found, SCHEMA)


def test_a_job_set_that_fails(world: World) -> None:
    world.write("conditions", "Failed")
    assert "the JobSet base failed" in world.refused(*ARGUMENTS, "--", *TRAIN)
    assert world.asked(VERBS) == ["upload", "create", "delete", "clean"]


def test_an_outage_of_kubectl_is_not_the_end_of_a_job(world: World) -> None:
    world.write("runs", "training", "training", "training")
    kubectl = world.root / "bin" / "kubectl"
    kubectl.write_text(kubectl.read_text().replace("next conditions", "next conditions | grep ."))
    world.write("conditions", "", "", "Completed")
    assert world.run(*ARGUMENTS, "--", *TRAIN)[0] == 0


@pytest.mark.parametrize("by", [signal.SIGINT, signal.SIGHUP])
def test_a_job_set_that_is_left_is_followed_again(world: World, by: signal.Signals) -> None:
    world.write("runs", "endless", "training")
    status, printed = world.interrupt_when("following", *ARGUMENTS, "--", *TRAIN, by=by)
    assert status == 128 + by
    assert world.asked(VERBS) == ["upload", "create"]
    assert "the job does not" in printed
    assert "bash launch/gke.sh attach base" in printed
    world.write("existing", "jobset.jobset.x-k8s.io/base")
    status, printed = world.run("attach", "base")
    assert status == 0, printed
    assert "base: 50%" in printed
    assert world.asked(VERBS) == ["upload", "create", "delete", "clean"]
    assert "no job of that name was started from here" in world.refused("attach", "base")


def test_a_job_set_that_is_left_is_deleted(world: World) -> None:
    world.write("runs", "endless")
    world.interrupt_when("following", *ARGUMENTS, "--keep", "--", *TRAIN)
    world.write("existing", "jobset.jobset.x-k8s.io/base")
    assert world.run("delete", "base")[0] == 0
    assert world.asked(VERBS) == ["upload", "create", "delete", "clean"]


def test_a_job_set_that_someone_else_deleted(world: World) -> None:
    world.write("gone")
    assert "someone has deleted it" in world.refused(*ARGUMENTS, "--", *TRAIN)


def test_keep_leaves_the_job_set(world: World) -> None:
    status, printed = world.run(*ARGUMENTS, "--keep", "--", *TRAIN)
    assert status == 0
    assert world.asked(VERBS) == ["upload", "create"]
    assert "bash launch/gke.sh delete base" in printed


def test_a_refused_job_set_is_not_deleted(world: World) -> None:
    world.write("refused")
    assert "refused to create the JobSet base" in world.refused(*ARGUMENTS, "--", *TRAIN)
    assert world.asked(VERBS) == ["upload", "create", "clean"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("context",), "kubectl has no cluster"),
        (("crd",), "has no JobSet"),
        (("existing", "jobset.jobset.x-k8s.io/base"), "a JobSet base exists already"),
        (("bucket", "1"), "cannot list gs://b"),
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
        ([*ARGUMENTS, "--name", "Base", "--", *TRAIN], "--name is 'Base'"),
        ([*ARGUMENTS, "--topology", "2", "--", *TRAIN], "--topology is '2'"),
        ([*ARGUMENTS, "--topology", "2x3", "--", *TRAIN], "2x3 is not a multiple of 4 chips"),
        ([*ARGUMENTS, "--topology", "2x2x1", "--slices", "2", "--", *TRAIN], "is a single host"),
        (ARGUMENTS, "nothing to run"),
        ([*ARGUMENTS, "--", "plan", "--config", "x"], "behind -- is 'plan'"),
        ([*ARGUMENTS, "--", "evaluate", "scenes"], "behind -- is 'evaluate'"),
        ([*ARGUMENTS, "--", *TRAIN, "--multi-host"], "--multi-host is set by this script"),
        ([*ARGUMENTS, "--", "embed", "gs://b/x", "--process", "0/2"], "--process is set by"),
        ([*ARGUMENTS, "--", *TRAIN[:-2]], "imagen train needs --workdir here"),
        ([*ARGUMENTS, "--", "embed", "gs://b/x", "--output=runs/x"], "--output is 'runs/x', on a"),
        ([*ARGUMENTS, "--", *TRAIN, "--workdir", "/bucket/run"], "--workdir is '/bucket/run', on"),
        (
            [*ARGUMENTS, "--plan", "v4:2x2x4", "--", "sample", "--output", "gs://b/x"],
            "--plan is about imagen train",
        ),
        (["--nonsense"], "unknown argument --nonsense"),
    ],
)
def test_arguments_that_make_no_sense(world: World, arguments: list[str], message: str) -> None:
    assert message in world.refused(*arguments)
    assert world.log() == []


def test_dry_run_calls_no_cloud(world: World) -> None:
    assert [command[:3] for command in world.dry_run(*ARGUMENTS)] == [
        ["gcloud", "storage", "cp"], ["kubectl", "create", "-f"], ["kubectl", "logs", "--follow"],
        ["kubectl", "delete", "jobset"], ["gcloud", "storage", "rm"],
    ]  # fmt: skip


@pytest.mark.parametrize("fits", [True, False])
def test_a_stage_that_does_not_fit_is_refused(world: World, fits: bool) -> None:
    world.venv("imagen", f'[[ "$*" == *--help ]] || exit {0 if fits else 2}')
    arguments = [*TRAIN, "--set", "a=1", "b=2", "--init-from", "d"]
    status, printed = world.run(*ARGUMENTS, "--plan", "v4:2x2x4", "--", *arguments)
    planned = "imagen plan --config quickstart --stage base --set a=1 b=2 --topology v4:2x2x4"
    assert planned in world.log()
    assert world.asked(VERBS) == (["upload", "create", "delete", "clean"] if fits else [])
    assert (status == 0) == fits
    assert ("does not fit v4:2x2x4" in printed) == (not fits)


def test_plan_asks_the_imagen_of_the_path_where_there_is_no_environment(world: World) -> None:
    imagen = world.root / "bin" / "imagen"
    imagen.write_text(f'#!/bin/sh\necho "imagen $*" >> {world.root}/log\n')
    imagen.chmod(0o755)
    assert world.run(*ARGUMENTS, "--plan", "v4:2x2x4", "--", *TRAIN)[0] == 0
    assert "imagen plan --config quickstart --stage base --topology v4:2x2x4" in world.log()


def test_plan_needs_an_installed_imagen(world: World) -> None:
    world.environment["PATH"] = f"{world.root}/bin:/usr/bin:/bin"
    for change, message in (
        (lambda: None, "there is no .venv yet"),
        (lambda: world.venv("imagen", "exit 2"), "has no command plan"),
    ):
        change()
        status, printed = world.run(*ARGUMENTS, "--plan", "v4:2x2x4", "--", *TRAIN)
        assert status == 2
        assert message in printed
        assert world.asked(VERBS) == []
