"""launch/slurm.sh against stand-ins for Slurm's programs, and the job that it submits."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest
from launching import TRAIN, World

PROGRAMS = {
    "squeue": "*) cat queued ;;",
    "sbatch": "*) [[ ! -e refused ]] || exit 1; cat > job; echo '7;cluster' ;;",
    "srun": '*) exit "$(cat status)" ;;',
    "scontrol": "*) ;;",
}
ARGUMENTS = ["--name", "base", "--nodes", "2", "--gpus-per-node", "8"]


@pytest.fixture
def world(tmp_path: Path) -> World:
    world = World(tmp_path, "slurm.sh", PROGRAMS, {"queued": "", "status": "0"})
    world.venv("imagen", "")
    world.venv("python", f'exit "$(cat {tmp_path}/cuda)"')
    world.write("cuda", "0")
    return world


def asked(world: World, program: str) -> list[str]:
    return [line for line in world.log() if line.startswith(f"{program} ")]


def test_submits_one_process_for_each_gpu(world: World) -> None:
    status, printed = world.run(*ARGUMENTS, "--sbatch=--partition=gpu", "--", *TRAIN)
    assert status == 0, printed
    assert "Job 7 is in the queue" in printed
    (line,) = asked(world, "sbatch")
    for option in ("--nodes=2", "--gpus-per-node=8", "--ntasks-per-node=8", "--cpus-per-task=8",
                   "--signal=TERM@300", "--requeue", "--partition=gpu"):  # fmt: skip
        assert option in line.split()


@pytest.mark.parametrize(
    ("status", "requeued"), [(0, False), (75, True), (130, True), (1, False), (64, False)]
)
def test_the_job_queues_itself_again_when_told_to_stop(
    world: World, status: int, requeued: bool
) -> None:
    world.run(*ARGUMENTS, "--", *TRAIN)
    world.write("status", str(status))
    path = f"{world.root / 'bin'}:{os.environ['PATH']}"
    done = subprocess.run(
        ["bash", world.root / "job"], env=os.environ | {"PATH": path, "SLURM_JOB_ID": "7"},
        check=False, timeout=600,
    )  # fmt: skip
    assert done.returncode == (0 if requeued else status)
    (step,) = asked(world, "srun")
    assert step.startswith("srun --cpus-per-task=8 ")
    assert "--config quickstart --stage base --data gs://b/it's my data" in step
    assert step.endswith("--multi-host")
    assert asked(world, "scontrol") == (["scontrol requeue 7"] if requeued else [])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("queued", "5", "6"), "your job 5, 6 is called base"),
        (("cuda", "1"), "JAX without CUDA"),
    ],
)
def test_refused_states_submit_nothing(world: World, change: tuple[str, ...], message: str) -> None:
    world.write(*change)
    assert message in world.refused(*ARGUMENTS, "--", *TRAIN)
    assert asked(world, "sbatch") == []


def test_without_an_environment(world: World) -> None:
    (world.repository / ".venv" / "bin" / "imagen").unlink()
    assert "there is no .venv" in world.refused(*ARGUMENTS, "--", *TRAIN)


def test_a_job_that_slurm_refuses(world: World) -> None:
    world.write("refused")
    assert "Slurm refused the job" in world.refused(*ARGUMENTS, "--", *TRAIN)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (ARGUMENTS[2:], "--name is missing"),
        (ARGUMENTS[:4], "--gpus-per-node is ''; it must be a whole number"),
        ([*ARGUMENTS, "--nodes", "two", "--", *TRAIN], "--nodes is 'two'"),
        (ARGUMENTS, "nothing to run"),
        (["--nonsense"], "unknown argument --nonsense"),
    ],
)
def test_arguments_that_make_no_sense(world: World, arguments: list[str], message: str) -> None:
    assert message in world.refused(*arguments)
    assert world.log() == []


def test_dry_run_calls_no_slurm(world: World) -> None:
    (command,) = world.dry_run(*ARGUMENTS)
    assert command[:3] == ["sbatch", "--parsable", "--job-name=base"]
