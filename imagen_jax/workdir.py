"""What lies under a work directory, and the record that every stage keeps of how it was made.

<workdir>/<stage>/stage.json      config and embeddings that the stage is trained with
<workdir>/<stage>/checkpoints/    Orbax checkpoints
<workdir>/<stage>/logs/           TensorBoard events
<workdir>/<stage>/samples/        images made while training
<workdir>/<stage>/bad_steps/      steps that were not finite or whose loss jumped, if any were
<workdir>/<stage>/damaged_checkpoints/  what --fall-back set aside, if it did
<workdir>/embeddings/             of the corpus, where training was given one to embed
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from imagen_jax.config import to_plain
from imagen_jax.data.records import differences, write_json
from imagen_jax.errors import UserError
from imagen_jax.quality import quality

CHECKPOINTS = "checkpoints"


class DamagedCheckpoint(UserError):
    """A checkpoint that cannot be read, or does not hold what was saved."""


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
      UserError: the stage was started with another config or on other embeddings; lists every
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
            raise UserError(
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
      FileNotFoundError: the other work directory has no such stage, or no checkpoint of it.
      UserError: its network or its text encoder differs, or only one of the two starts from a
        smaller image; lists how.
    """
    other = read_record(workdir, stage)
    newest_checkpoint(stage_directory(workdir, stage))

    def interface(of: dict[str, Any]) -> dict[str, Any]:
        section = of["config"]["stages"][stage]
        kept = {
            "network": section["network"],
            "parametrization": section["diffusion"]["parametrization"],
            "is super-resolution": bool(section["low_res"]),
        }
        return kept | {"text": of["config"]["text"], "encoder": of["encoder"]}

    if lines := differences(interface(other), interface(json.loads(json.dumps(record)))):
        raise UserError(
            f"the weights in {workdir} are of another network, or for other text (there != "
            "now):\n  " + "\n  ".join(lines)
        )
    return other["config"]["stages"][stage]


def claimed_origin(workdir: str | Path, stage: str) -> dict[str, Any] | None:
    """What check_init returned when a stage was started that has a checkpoint by now, else None."""
    path = stage_directory(workdir, stage) / "stage.json"
    if not path.is_file() or not checkpoint_steps(path.parent):
        return None
    return json.loads(path.read_text()).get("init_from")


def checkpoint_steps(directory: str | Path) -> list[int]:
    """Steps of the complete checkpoints of a stage, in order. `directory`: <workdir>/<stage>."""
    paths = (Path(directory) / CHECKPOINTS).glob("*")
    return sorted(int(path.name) for path in paths if path.name.isdecimal())


def newest_checkpoint(directory: str | Path) -> Path:
    """Path of the newest complete checkpoint of a stage.

    Raises:
      FileNotFoundError: there is none.
    """
    steps = checkpoint_steps(directory)
    checkpoints = Path(directory) / CHECKPOINTS
    if not steps:
        raise FileNotFoundError(
            f"no checkpoint in {checkpoints}; train this stage first: "
            f"imagen train --stage {Path(directory).name} ..."
        )
    return checkpoints / str(steps[-1])


def best_checkpoint(directory: str | Path) -> Path:
    """Path of the best complete checkpoint of a stage by its train.best_metric.

    Raises:
      FileNotFoundError: it was measured for none.
    """
    found = {}
    for step in checkpoint_steps(directory):
        path = Path(directory) / CHECKPOINTS / str(step)
        if (metrics := path / "metrics" / "metrics").is_file():
            found[path] = quality(json.loads(metrics.read_text()))
    if not found:
        raise FileNotFoundError(
            f"no checkpoint in {Path(directory) / CHECKPOINTS} was measured; train with "
            "train.keep_best and what its best_metric needs, or take the newest"
        )
    return max(found, key=found.__getitem__)


def ema_item(decay: str | None) -> str:
    """Item of a checkpoint that holds an average: the main one, or the one of another decay."""
    return "ema" if decay is None else f"ema_{decay}"


def restore_ema(
    directory: str | Path, abstract_params: Any, decay: float | None = None, best: bool = False
) -> tuple[Any, int]:
    """Averaged weights of a stage, and their step.

    Args:
      directory: <workdir>/<stage>.
      abstract_params: pytree of ShapeDtypeStructs with shardings.
      decay: one of train.extra_ema_decays of its config; None is train.ema_decay.
      best: of the best checkpoint, not of the newest; see best_checkpoint.

    Raises:
      FileNotFoundError: no finished checkpoint is there, or none that was measured.
      UserError: there is no average of this decay.
      DamagedCheckpoint: the weights cannot be read, or are not those that were saved.
    """
    # Imported here: reading the record of a stage should not cost a second.
    import orbax.checkpoint as ocp

    path = best_checkpoint(directory) if best else newest_checkpoint(directory)
    item = ema_item(None if decay is None else str(decay))
    if decay is not None and not (path / item).is_dir():
        extra = [p.name.removeprefix("ema_") for p in sorted(path.glob("ema_*"))]
        raise UserError(
            f"{path} has no average of decay {decay}; beside the main one there are: "
            f"{', '.join(extra) or 'none'}"
        )
    wanted: dict[str, Any] = {item: ocp.args.StandardRestore(abstract_params)}
    checked = (path / "checksums").is_dir()  # not in checkpoints of earlier versions
    if checked:
        wanted["checksums"] = ocp.args.JsonRestore()
    try:
        with ocp.CheckpointManager(path.parent.absolute()) as manager:
            restored = manager.restore(int(path.name), args=ocp.args.Composite(**wanted))
    except Exception as error:  # of whatever kind the library's parts raise on damage
        raise DamagedCheckpoint(f"{path} cannot be read: {reason(error)}") from error
    if checked:
        check_restored(path / item, restored["checksums"].get(item, {}), restored[item])
    return restored[item], int(path.name)


def ema_digest(directory: str | Path, decay: float | None = None, best: bool = False) -> str:
    """A hash of what restore_ema reads, without reading it: of the checksums it was saved with, or
    of where it is in a checkpoint that was saved without them.

    Raises:
      FileNotFoundError: no finished checkpoint is there.
    """
    path = best_checkpoint(directory) if best else newest_checkpoint(directory)
    item = ema_item(None if decay is None else str(decay))
    stored = path / "checksums" / "metadata"
    if stored.is_file():
        said = json.dumps(json.loads(stored.read_text()).get(item, {}), sort_keys=True)
    else:
        said = f"{path.absolute()} {item}"
    return hashlib.sha256(said.encode()).hexdigest()


def reason(error: BaseException) -> str:
    """Why reading or writing a checkpoint failed, in one line: the innermost cause, shortened."""
    while error.__cause__ is not None:
        error = error.__cause__
    text = " ".join(f"{type(error).__name__}: {error}".split())
    return text if len(text) <= 400 else f"{text[:150]} ... {text[-250:]}"


def check_restored(path: Path, stored: dict[str, int], tree: Any) -> None:
    """Compares what was read of a checkpoint with the checksums of what was saved.

    Raises:
      DamagedCheckpoint: arrays differ; names them.
    """
    from imagen_jax.checksums import checksums

    differing = [name for name, value in checksums(tree).items() if stored.get(name) != value]
    if differing:
        raise DamagedCheckpoint(
            f"{path} is damaged: {len(differing)} arrays do not have the checksums that they were "
            f"saved with, such as {differing[0]}"
        )
