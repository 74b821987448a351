"""Every command line of docs/run-on-tpu.md is one that its program takes."""

from __future__ import annotations

import argparse
import importlib.util
import re
import shlex
from pathlib import Path

import pytest
from launching import World

from imagen_jax.config import load_config
from imagen_jax.main import make_parser
from imagen_jax.stage import make_stage

ROOT = Path(__file__).resolve().parent.parent
PAGE = (ROOT / "docs" / "run-on-tpu.md").read_text()
NAMES = {"BUCKET": "my-bucket", "PROJECT": "my-project", "CLUSTER": "tpus", "NUMBER": "123456"}
"""Names that the reader chooses -> such names."""

GCLOUD: dict[str, tuple[int, str]] = {
    "config set project": (1, ""),
    "services enable": (3, ""),
    "storage buckets create": (1, "--location= --uniform-bucket-level-access"),
    "storage buckets add-iam-policy-binding": (1, "--role= --member="),
    "storage cp": (2, "--recursive"),
    "storage rsync": (2, "--recursive"),
    "storage rm": (1, "--recursive"),
    "storage ls": (1, ""),
    "storage du": (1, "--summarize"),
    "projects describe": (1, ""),
    "iam service-accounts create": (1, ""),
    "container clusters create": (1, "--location= --workload-pool="),
    "container clusters get-credentials": (1, "--location="),
    "container clusters delete": (1, "--location="),
    "container node-pools create": (
        1, "--cluster= --location= --node-locations= --machine-type= --tpu-topology= --spot "
        "--enable-autoscaling --num-nodes= --min-nodes= --max-nodes=",
    ),
    "container node-pools delete": (1, "--cluster= --location="),
    "compute tpus queued-resources list": (0, "--zone="),
}  # fmt: skip
"""Command of gcloud -> how many names it takes, and the options used here, after its reference."""
KUBECTL: dict[str, tuple[int, str]] = {
    "create serviceaccount": (1, ""),
    "apply": (0, "--server-side -f"),
    "get jobsets": (0, ""),
    "get jobset": (1, "-o"),
    "logs": (0, "--selector= --tail= --prefix"),
}


def command_lines() -> list[list[str]]:
    """The commands of the page's shell blocks and of its text, as words."""
    blocks = "".join(re.findall(r"^```sh\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL))
    lines = blocks.replace("\\\n", " ").splitlines()
    lines += re.findall(r"\((?:`)(gcloud [^`]+)`\)", PAGE)
    for name, value in NAMES.items():
        lines = [re.sub(rf"\b{name}\b", value, line) for line in lines]
    return [shlex.split(line) for line in lines if line.strip()]


LINES = command_lines()
SHOWN = [" ".join(words)[:60] for words in LINES]


def takes(words: list[str], known: dict[str, tuple[int, str]]) -> bool:
    """Is it one of the known commands, with its options and as many names?"""
    for verb, (names, options) in known.items():
        parts = verb.split()
        if words[: len(parts)] != parts:
            continue
        given = words[len(parts) :]
        values = {"-f", "-o"}
        flags = [re.sub("=.*", "=", word) for word in given if word.startswith("-")]
        plain = [word for before, word in zip(["", *given], given, strict=False)
                 if not word.startswith("-") and before not in values]  # fmt: skip
        return set(flags) <= set(options.split()) and len(plain) == names
    return False


def parse_imagen(words: list[str]) -> argparse.Namespace:
    """Arguments of a command of imagen; its config, stage and settings must be there."""
    args = make_parser().parse_args(words)
    if getattr(args, "config", None) is not None:
        config = load_config(args.config, args.overrides)
        make_stage(config, args.stage)
    return args


def test_the_page_has_commands_of_every_kind() -> None:
    programs = {words[0] for words in LINES}
    assert programs == {"gcloud", "kubectl", "imagen", "bash", "tensorboard"}
    scripts = {words[1] for words in LINES if words[0] == "bash"}
    assert scripts == {f"launch/{name}.sh" for name in ("gke", "xpk", "tpu", "slurm", "processes")}
    jobs = {words[words.index("--") + 1] for words in LINES if "--" in words}
    assert jobs == {"train", "embed", "sample", "evaluate", "doctor"}


@pytest.mark.parametrize("words", LINES, ids=SHOWN)
def test_its_program_takes_the_command_line(words: list[str], tmp_path: Path) -> None:
    program = words[0]
    if program == "imagen":
        parse_imagen(words[1:])
    elif program == "tensorboard":
        assert words[1] == "--logdir"
    elif program in ("gcloud", "kubectl"):
        assert takes(words[1:], GCLOUD if program == "gcloud" else KUBECTL)
    elif words[1] == "launch/processes.sh":
        assert words[2].isdecimal()
        parse_imagen(words[3:])
    elif words[2] in ("attach", "delete"):
        assert words[1] in ("launch/gke.sh", "launch/tpu.sh")
        created = [line for line in LINES if "--" in line and line[1] == words[1]]
        assert words[3] in [line[line.index("--name") + 1] for line in created]
    else:
        at = words.index("--")
        world = World(tmp_path, Path(words[1]).name, {}, {})
        status, printed = world.run(*words[2:at], "--dry-run", *words[at:])
        assert status == 0, printed
        parse_imagen([*words[at + 1 :], "--multi-host"])
        if "xpk" in words[1] and importlib.util.find_spec("xpk") is not None:
            from xpk.core.system_characteristics import UserFacingNameToSystemCharacteristics

            assert words[words.index("--type") + 1] in UserFacingNameToSystemCharacteristics


def test_other_command_lines_are_not_taken() -> None:
    assert takes(["storage", "ls", "gs://b"], GCLOUD)
    assert not takes(["storage", "ls", "--sizes", "gs://b"], GCLOUD)
    assert not takes(["storage", "ls"], GCLOUD)
    assert not takes(["storage", "list", "gs://b"], GCLOUD)
    assert takes(["get", "jobset", "base", "-o", "yaml"], KUBECTL)
