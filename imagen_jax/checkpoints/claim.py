"""The record of a stage, stage.json: what it was started with, and who may resume it."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from imagen_jax.checkpoints.cascades import open_cascade
from imagen_jax.checkpoints.pretrained import Pretrained
from imagen_jax.checkpoints.reading import RECORD, checkpoint_steps, stage_directory
from imagen_jax.config import build, to_plain
from imagen_jax.errors import UserError
from imagen_jax.files import differences, read_json, write_json
from imagen_jax.stage_config import CHANGEABLE, TrainConfig

SHIPPED_NAME = "demo"
"""Name of the package's cascade for --init-from."""


def make_record(config: ConfigDict, stage: str, manifest: dict[str, Any]) -> dict[str, Any]:
    """Return the record of a stage: its own part of the config, and the embeddings it learns."""
    plain = to_plain(config)
    record = {
        "stage": stage,
        "config": plain | {"stages": {stage: plain["stages"][stage]}},
        "encoder": manifest["encoder"],
        "source": {"train": manifest["source"]["train"]},
    }
    return json.loads(json.dumps(record))


def claim_stage(workdir: str | Path, stage: str, record: dict[str, Any]) -> None:
    """Write the record of a stage; once it has a checkpoint, what decided its weights must agree.

    Raises:
      UserError: the stage was started with another config or on other embeddings; the message
        lists every difference.
    """
    directory = stage_directory(workdir, stage)
    path = directory / RECORD
    found = read_json(path, "record of a stage") if path.is_file() else None
    if (
        found is not None
        and checkpoint_steps(directory)
        and (lines := differences(_deciding(found, stage), _deciding(record, stage)))
    ):
        advice = "Resume with what it was started with, or choose another --workdir"
        before, now = (_interface(of["config"], of["encoder"], stage) for of in (found, record))
        if before == now:
            advice += f"; --init-from {workdir} starts there from these weights"
        raise UserError(
            f"{directory} was started with another config or data (there != now): "
            f"{'; '.join(lines)}. {advice}"
        )
    if found != record:
        directory.mkdir(parents=True, exist_ok=True)
        write_json(path, record)


def _deciding(record: dict[str, Any], stage: str) -> dict[str, Any]:
    """The record without what decides no weight: settings of sampling, mesh, logs, memory, and
    which other stages there are."""
    kept = copy.deepcopy(record)
    kept["config"].pop("cascade", None)
    section = kept["config"]["stages"][stage]
    for name in ("sample", "mesh"):
        section.pop(name, None)
    train = build(TrainConfig, section["train"], f"stages.{stage}.train")  # with its defaults
    section["train"] = {k: v for k, v in to_plain(train).items() if k not in CHANGEABLE}
    section["network"].pop("remat", None)
    return kept


def open_origin(path: str | Path, stage: str) -> Pretrained:
    """Open the cascade whose weights a new stage starts from.

    Args:
      path: work directory or exported cascade; "demo" is the cascade in the package.
      stage: name of the stage, the same in both.

    Raises:
      UserError: there is none, or it has no such stage that is trained.
    """
    origin = open_cascade(None if path == SHIPPED_NAME else path)
    if stage not in (names := [of.name for of in origin.stages]):
        raise UserError(f"no stage {stage!r} to start from in {path}; it has {', '.join(names)}")
    return origin


def check_origin(origin: Pretrained, stage: str, record: dict[str, Any]) -> dict[str, Any]:
    """Check that a stage can start from weights of another cascade.

    Returns:
      What to keep of where it starts: the other's config of the stage, and its fingerprint.

    Raises:
      UserError: its network or its text encoder differs, or only one of the two starts from a
        smaller image; the message lists how.
    """
    there = _interface(origin.config, origin.encoder, stage)
    if lines := differences(there, _interface(record["config"], record["encoder"], stage)):
        raise UserError(
            "the weights to start from are of another network, or for other text (there != "
            "now): " + "; ".join(lines)
        )
    (of_origin,) = (of for of in origin.stages if of.name == stage)
    return origin.config["stages"][stage] | {"fingerprint": origin.fingerprint(of_origin)}


def _interface(config: Any, encoder: Any, stage: str) -> dict[str, Any]:
    """Parts of a config that two trainings must share for one to start from the other's weights."""
    section = config["stages"][stage]
    network = {k: v for k, v in section["network"].items() if k not in _NO_WEIGHTS}
    found = {
        "network": network,
        "parametrization": section["diffusion"]["parametrization"],
        "is super-resolution": bool(section.get("low_res")),
        "text": config["text"],
        "encoder": {key: encoder[key] for key in ("name", "fingerprint")},
    }
    return json.loads(json.dumps(found))  # type: ignore[no-any-return]


_NO_WEIGHTS = ("dropout", "dtype", "remat")
"""Fields of networks that neither shape nor mean parameters."""
