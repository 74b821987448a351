"""What lies under a work directory, and the record that every stage keeps of how it was made.

<workdir>/<stage>/stage.json      config and embeddings that the stage is trained with
<workdir>/<stage>/checkpoints/    Orbax checkpoints
<workdir>/<stage>/logs/           TensorBoard events
<workdir>/<stage>/samples/        pictures made while training
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from imagen_jax.config import to_plain
from imagen_jax.data.records import differences, write_json


def stage_directory(workdir: str | Path, stage: str) -> Path:
    """<workdir>/<stage>."""
    return Path(workdir) / stage


def make_record(config: ConfigDict, stage: str, manifest: dict[str, Any]) -> dict[str, Any]:
    """The record of a stage: its own part of the config, and the embeddings it is trained on."""
    plain = to_plain(config)
    return {
        "stage": stage,
        "config": plain | {"stages": {stage: plain["stages"][stage]}},
        "encoder": manifest["encoder"],
        "source": {"train": manifest["source"]["train"]},
    }


def read_record(workdir: str | Path, stage: str) -> dict[str, Any]:
    """Reads <workdir>/<stage>/stage.json.

    Raises:
      FileNotFoundError: there is no such stage; names the stages that there are.
    """
    path = stage_directory(workdir, stage) / "stage.json"
    if not path.is_file():
        found = sorted(p.parent.name for p in Path(workdir).glob("*/stage.json"))
        raise FileNotFoundError(
            f"no stage {stage!r} under {workdir}: {path} is missing; stages found: "
            f"{', '.join(found) or 'none'}"
        )
    return json.loads(path.read_text())


def claim_stage(workdir: str | Path, stage: str, record: dict[str, Any]) -> None:
    """Writes the record of a new stage, or checks that the existing one says the same.

    The settings that a stage is sampled with, and the mesh of devices, do not matter to its
    training: new ones replace those in the record.

    Raises:
      ValueError: the stage was started with another config or on other embeddings; lists every
        difference.
    """
    path = stage_directory(workdir, stage) / "stage.json"
    record = json.loads(json.dumps(record))
    if path.is_file():
        found = json.loads(path.read_text())
        if found == record:
            return
        for section in ("sample", "mesh"):
            found["config"]["stages"][stage].pop(section, None)
            if section in record["config"]["stages"][stage]:
                found["config"]["stages"][stage][section] = record["config"]["stages"][stage][
                    section
                ]
        if lines := differences(found, record):
            raise ValueError(
                f"{path.parent} was started with another config or data; use another --workdir, or "
                "what it was started with (there != now):\n  " + "\n  ".join(lines)
            )
    path.parent.mkdir(parents=True, exist_ok=True)
    write_json(path, record)


def check_init(workdir: str | Path, stage: str, record: dict[str, Any]) -> dict[str, Any]:
    """Checks that a stage can start from the weights that another work directory has of it.

    Args:
      workdir: the other work directory.
      stage: name of the stage in both.
      record: of the stage that is to start.

    Returns:
      What to keep of where it starts: the other's config of the stage.

    Raises:
      FileNotFoundError: the other work directory has no such stage.
      ValueError: its network, the size of its pictures or its text encoder differs; lists how.
    """
    other = read_record(workdir, stage)

    def interface(of: dict[str, Any]) -> dict[str, Any]:
        section = of["config"]["stages"][stage]
        kept = {key: section[key] for key in ("network", "resolution", "low_res")}
        kept["parametrization"] = section["diffusion"]["parametrization"]
        return kept | {"text": of["config"]["text"], "encoder": of["encoder"]}

    if lines := differences(interface(other), interface(json.loads(json.dumps(record)))):
        raise ValueError(
            f"the weights in {workdir} are of another network, or for other text (there != "
            "now):\n  " + "\n  ".join(lines)
        )
    return other["config"]["stages"][stage]


def restore_ema(directory: str | Path, abstract_params: Any) -> tuple[Any, int]:
    """The newest averaged weights of a stage, and their step.

    Args:
      directory: <workdir>/<stage>.
      abstract_params: pytree of ShapeDtypeStructs with shardings.

    Raises:
      FileNotFoundError: no finished checkpoint is there.
    """
    # Imported here: reading the record of a stage should not cost a second.
    import orbax.checkpoint as ocp

    checkpoints = Path(directory) / "checkpoints"
    if checkpoints.is_dir():
        with ocp.CheckpointManager(checkpoints.absolute()) as manager:
            step = manager.latest_step()
            if step is not None:
                restored = manager.restore(
                    step, args=ocp.args.Composite(ema=ocp.args.StandardRestore(abstract_params))
                )
                return restored["ema"], step
    raise FileNotFoundError(
        f"no checkpoint in {checkpoints}; train this stage first: "
        f"imagen train --stage {Path(directory).name} ..."
    )
