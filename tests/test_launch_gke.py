"""launch/gke.sh against stand-ins for gcloud and kubectl, and its manifest against a schema."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml
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
      endless) touch following; exec sleep 60 ;;
    esac ;;
  "get jobset base -o"*) next conditions ;;
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


def test_trains_and_cleans_up(world: World) -> None:
    world.write("runs", "pending", "training", "training")
    world.write("conditions", "", "StartupPolicyInProgress", "Completed")
    status, printed = world.run(*ARGUMENTS, "--", *TRAIN)
    assert status == 0, printed
    assert printed.count("base: 50%") == 2
    assert world.asked(VERBS) == ["upload", "create", "delete", "clean"]
    assert not (world.root / "created.yaml").exists()
    assert "imagen-jax/launch/setup.sh" in (world.root / "archive").read_text().splitlines()


def test_the_manifest(world: World) -> None:
    found = manifest(world, "--grace", "90", "--restarts", "7")
    assert found["apiVersion"] == "jobset.x-k8s.io/v1alpha2"
    assert found["metadata"]["name"] == "base"
    assert found["spec"]["failurePolicy"]["maxRestarts"] == 7
    (job,) = found["spec"]["replicatedJobs"]
    spec = job["template"]["spec"]
    assert spec["parallelism"] == spec["completions"] == 4
    pod = spec["template"]["spec"]
    assert pod["terminationGracePeriodSeconds"] == 90
    assert pod["nodeSelector"] == {
        "cloud.google.com/gke-tpu-accelerator": "tpu-v4-podslice",
        "cloud.google.com/gke-tpu-topology": "2x2x4",
    }
    (container,) = pod["containers"]
    assert container["resources"]["limits"] == {"google.com/tpu": 4}
    assert r"imagen train --multi-host --config quickstart" in container["args"][0]
    assert container["args"][0].endswith(r"--data /bucket/it\'s\ my\ data")
    spot = manifest(world, "--spot")["spec"]["replicatedJobs"][0]["template"]["spec"]["template"]
    assert spot["spec"]["nodeSelector"]["cloud.google.com/gke-spot"] == "true"


@pytest.mark.parametrize("replaced", [False, True])
def test_pods_run_only_the_code_that_was_uploaded(
    world: World, tmp_path: Path, replaced: bool
) -> None:
    status, printed = world.run(*ARGUMENTS, "--keep", "--", *TRAIN)
    assert status == 0, printed
    (job,) = yaml.safe_load((world.root / "created.yaml").read_text())["spec"]["replicatedJobs"]
    (container,) = job["template"]["spec"]["template"]["spec"]["containers"]
    archive = tmp_path / "mounted" / "jobs" / "base.tar.gz"
    archive.parent.mkdir(parents=True)
    shutil.copy(world.root / "uploaded", archive)
    if replaced:
        archive.write_bytes(archive.read_bytes() + b"more")
    (tmp_path / "opt").mkdir()
    command = container["args"][0].replace("/bucket/jobs", str(archive.parent))
    command = command.replace("bash launch/setup.sh --tpu; exec", "echo").replace(" /bucket", " ")
    done = subprocess.run(
        [*container["command"], command], cwd=tmp_path / "opt", capture_output=True, text=True,
        check=False, timeout=60,
    )  # fmt: skip
    assert ("imagen train --multi-host" in done.stdout) == (done.returncode == 0) == (not replaced)


def test_the_manifest_passes_the_schema_of_kubernetes(world: World) -> None:
    (job,) = manifest(world, "--spot")["spec"]["replicatedJobs"]
    job = {"apiVersion": "batch/v1", "kind": "Job", "metadata": {"name": "j"}, **job["template"]}
    version = kubernetes_validate.latest_version()
    kubernetes_validate.validate(job, version, strict=True)
    job["spec"]["paralelism"] = 1
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(job, version, strict=True)


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


def test_ctrl_c_deletes_the_job_set(world: World) -> None:
    world.write("runs", "endless")
    assert world.interrupt_when("following", *ARGUMENTS, "--", *TRAIN) == 130
    assert world.asked(VERBS) == ["upload", "create", "delete", "clean"]


def test_keep_leaves_the_job_set(world: World) -> None:
    status, printed = world.run(*ARGUMENTS, "--keep", "--", *TRAIN)
    assert status == 0
    assert world.asked(VERBS) == ["upload", "create"]
    assert "kubectl delete jobset base" in printed


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
        (ARGUMENTS, "nothing to train"),
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


def test_plan_needs_an_installed_imagen(world: World) -> None:
    for change, message in (
        (lambda: None, "there is no .venv yet"),
        (lambda: world.venv("imagen", "exit 2"), "has no command plan"),
    ):
        change()
        status, printed = world.run(*ARGUMENTS, "--plan", "v4:2x2x4", "--", *TRAIN)
        assert status == 2
        assert message in printed
        assert world.asked(VERBS) == []
