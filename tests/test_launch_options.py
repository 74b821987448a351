"""Options of the launch scripts end in commands and manifests elsewhere: only plain values pass."""

from __future__ import annotations

from pathlib import Path

import pytest
from launching import TRAIN, World

INJECTION = "b\nprivileged: true"
SCRIPTS = {
    "tpu.sh": {
        "--name": "base", "--type": "v4-8", "--zone": "us-central2-b", "--bucket": "b",
        "--project": "p", "--slices": "2", "--service-account": "t@p.iam.gserviceaccount.com",
        "--network": "n", "--subnetwork": "s", "--attempts": "3", "--retries": "2",
        "--poll": "0.05", "--plan": "v4:2x2x1",
    },
    "gke.sh": {
        "--name": "base", "--accelerator": "tpu-v4-podslice", "--topology": "2x2x4",
        "--chips-per-host": "4", "--slices": "2", "--memory": "300", "--queue": "tpus",
        "--bucket": "b", "--service-account": "trainer", "--restarts": "0",
        "--grace": "120", "--image": "registry.example/python:3.11",
        "--poll": "30", "--plan": "v4:2x2x4",
    },
    "xpk.sh": {
        "--name": "base", "--cluster": "tpus", "--type": "v4-32", "--restarts": "5",
        "--slices": "2", "--bucket": "b", "--project": "p-1", "--zone": "us-east5-a",
        "--grace": "120", "--image": "python:3.11", "--plan": "v4:2x2x4",
    },
    "slurm.sh": {
        "--name": "base", "--nodes": "2", "--gpus-per-node": "8", "--cpus-per-gpu": "8",
        "--time": "1-00:00:00", "--grace": "300", "--sbatch": "--partition=gpu",
    },
}  # fmt: skip
"""Script -> all of its options with a value that passes."""
HOSTILE = {
    "--name": ("../evil", "-x", "a b", "Base!"),
    "--bucket": ("b; touch X #", "gs://b", "$(touch X)", "../b"),
    "--image": (INJECTION, "a b", "'x'"),
    "--service-account": ("t: x", INJECTION),
    "--chips-per-host": ("0", "08", "-1", "4+4"),
    "--topology": ("2x0x2", "08x8", "2x2x4\nx"),
    "--time": ("1h; x", INJECTION),
    "--sbatch": ("--wrap\nx", "script.sh"),
}
"""Option -> values that must not pass, beside those that no option takes."""


def words(options: dict[str, str]) -> list[str]:
    return [f"{name}={value}" if name == "--sbatch" else word
            for name, value in options.items()
            for word in ((name,) if name == "--sbatch" else (name, value))]  # fmt: skip


@pytest.mark.parametrize("script", SCRIPTS)
def test_hostile_values_are_refused_by_the_name_of_the_option(script: str, tmp_path: Path) -> None:
    world = World(tmp_path, script, {}, {})
    good = SCRIPTS[script]
    _, usage = world.run("--help")
    taking_values = {line.split()[0] for line in usage.splitlines()
                     if line.startswith("  --") and line.split()[1].isupper()}  # fmt: skip
    assert taking_values == set(good), "an option is missing here"
    for option in good:
        for value in (INJECTION, "$(touch X)", "a;b", *HOSTILE.get(option, ())):
            if option == "--sbatch" and value == "a;b":
                continue
            printed = world.refused(*words(good | {option: value}), "--dry-run", "--", *TRAIN)
            assert f"{option} is " in printed, (option, value, printed)
            assert len(printed.splitlines()) == 1
    assert not list(tmp_path.rglob("X"))


@pytest.mark.parametrize("script", SCRIPTS)
def test_plain_values_pass(script: str, tmp_path: Path) -> None:
    world = World(tmp_path, script, {}, {})
    world.venv("imagen", "exit 0")
    status, printed = world.run(*words(SCRIPTS[script]), "--dry-run", "--", *TRAIN)
    assert status == 0, printed


def test_topologies_and_names_of_findings_are_plain(tmp_path: Path) -> None:
    world = World(tmp_path, "fits.sh", {}, {})
    assert "topology is 'v4:2x2;x'" in world.refused("v4:2x2;x", *TRAIN)
    world.script = "findings.sh"
    checkpoint = tmp_path / "t5"
    checkpoint.mkdir()
    (checkpoint / "spiece.model").write_text("")
    refused = world.refused("--t5", f"../evil={checkpoint}", "encoders")
    assert "NAME must be of letters" in refused
