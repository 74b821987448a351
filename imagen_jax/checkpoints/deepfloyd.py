"""Import of DeepFloyd IF: the files that a user downloaded -> an exported cascade.

Weights are read and written tensor by tensor, so that the largest of them, and not the network, has
to fit into memory. The weights are under a licence of their own, whose main terms `TERMS` says.
"""

from __future__ import annotations

import datetime
import functools
import gc
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import flax.traverse_util
import numpy as np
from ml_collections import ConfigDict

from imagen_jax.checkpoints.deepfloyd_names import network_fields, our_name
from imagen_jax.checkpoints.deepfloyd_safety import SafetyParts
from imagen_jax.checkpoints.diffusers_files import Lazy, Tensors, open_weights, write_tensors
from imagen_jax.checkpoints.exported import EXPORTED, new_files
from imagen_jax.checkpoints.pretrained import abstract_params
from imagen_jax.checkpoints.safety import Safety
from imagen_jax.diffusion.augment import SCHEDULE
from imagen_jax.diffusion.schedule import DiscreteCosineSchedule
from imagen_jax.errors import UserError
from imagen_jax.files import atomic_path, read_json, write_json
from imagen_jax.paths import local_path
from imagen_jax.stage import Stage, make_stage
from imagen_jax.text import t5_if
from imagen_jax.text.encoder import load_encoder

ATTRIBUTION = (
    "DeepFloyd is licensed under the DeepFloyd License, Copyright (c) Stability AI Ltd. "
    "All Rights Reserved."
)
TERMS = f"""The weights of DeepFloyd IF are under the DeepFloyd IF License Agreement. In short, and
in no way in its place:
  - non-commercial research alone; the licence is personal and can be revoked (section 1);
  - no commercial, military, surveillance or biometric use of the weights, of what is derived from
    them, or of images made with them (section 2a);
  - copies and derivatives, such as what this import writes and whatever is fine-tuned from it,
    carry the licence and the notice "{ATTRIBUTION}" (section 3).
The licence is in the repository that you downloaded the weights from; read it there. The safety
checker and the watermark of the original pipeline are applied to all images if their files are
there; what you show to others is yours to check. T5's encoder is under Apache-2.0."""
NOTICE = "NOTICE.txt"
LICENCE = "LICENSE.txt"
NULL_TEXT = "conditioning/null_text"
NOISE_LEVEL = 250
"""Step of the process that stage II is told its low-resolution image is noised to."""

TRAIN = {
    "batch_size": 16,
    "steps": 2_000,
    "optimizer": "adafactor",
    "learning_rate": 1e-6,
    "warmup_steps": 100,
    "clip_norm": 1.0,
    "ema_decay": 0.999,
    "text_dropout": 0.1,
    "max_aug_level": 0.5,
    "seed": 0,
    "log_every": 20,
    "sample_every": 200,
    "checkpoint_every": 500,
    "keep_checkpoints": 2,
}
"""Section `train` of an imported stage, to fine-tune it by. Not yet run at full size."""


def import_deepfloyd(
    paths: Sequence[str | Path],
    output: str | Path,
    *,
    text_encoder: str | Path | None = None,
    variant: str | None = None,
    show: Callable[[str], None] = print,
) -> list[Path]:
    """Write an exported cascade from DeepFloyd IF's files in diffusers' layout.

    Args:
      paths: directories of pipelines, with unet/ in them, or of unet/ itself: stage I, stage II, or
        both.
      output: directory that the cascade goes to.
      text_encoder: directory with text_encoder/ and tokenizer/; None is the first of paths that has
        them. It stays where it is: sampling reads it from there.
      variant: variant of the U-Nets' weights, such as "fp16"; None is the plain one, or the only
        one. They are written in the dtype that they have.
      show: called with the terms of the licence, and with a line that says whether the safety
        checker and the watermark were found.

    Returns:
      Paths of the written files.

    Raises:
      UserError: files are missing, damaged, quantised or pickled, are of another network, or do not
        belong together, or the output has such files already.
    """
    parts = sorted((_Part.read(local_path(path)) for path in paths), key=lambda part: part.low_res)
    if len(parts) not in (1, 2) or len({part.low_res > 0 for part in parts}) != len(parts):
        found = ", ".join(f"{part.directory} (stage {'II' if part.low_res else 'I'})"
                          for part in parts)  # fmt: skip
        raise UserError(f"give stage I, stage II, or one of each; got {found or 'nothing'}")
    if len(parts) == 2:
        parts[1].low_res = parts[0].resolution
    texts = [text for part in parts for text in part.licence_texts()][:1]
    names = [EXPORTED, NOTICE, *(f"{part.name}.safetensors" for part in parts)]
    names += [LICENCE for _ in texts]
    folders = [part.root for part in parts]
    folders += [] if text_encoder is None else [local_path(text_encoder)]
    safety = SafetyParts(folders, variant)
    with new_files(output, names + safety.names()) as files:
        show(TERMS)
        show(safety.said())
        safety.write(files[len(names) :])
        _write(parts, files[: len(names)], texts, text_encoder, variant, safety.safety)
    return files


def _write(
    parts: Sequence[_Part],
    files: Sequence[Path],
    texts: Sequence[Path],
    text_encoder: str | Path | None,
    variant: str | None,
    safety: Safety | None,
) -> None:
    """Write record, notice, weights of each part and a copy of the licence, if there is one."""
    record_path, notice, *rest = files
    weights, licence = rest[: len(parts)], rest[len(parts) :]
    sources = [open_weights(part.directory, variant) for part in parts]
    config = {
        "text": {"encoder": "t5-if", "width": parts[0].text_width, "max_length": t5_if.LENGTH},
        "cascade": [part.name for part in parts],
        "stages": {part.name: part.section() for part in parts},
    }
    if any(part.text_width != parts[0].text_width for part in parts):
        raise UserError("the stages read text of different widths; they do not belong together")
    stages = [make_stage(ConfigDict(config), part.name) for part in parts]
    chosen = [_choose(stage, source) for stage, source in zip(stages, sources, strict=True)]
    encoder, null_text = _read_text(_text_directory(text_encoder, parts), parts[0].text_width)
    for path, source, names in zip(weights, sources, chosen, strict=True):
        with atomic_path(path) as temporary, open(temporary, "wb") as file:
            write_tensors(file, _tensors(source, names, null_text))
    for text, path in zip(texts, licence, strict=True):
        path.write_bytes(text.read_bytes())
    there = f"see {LICENCE}" if texts else (
        "the files given to the import had no LICENSE; add it before you pass this cascade on"
    )  # fmt: skip
    notice.write_text(f"{ATTRIBUTION}\n\nLicence: {there}.\n\n{TERMS}\n", "utf-8")
    shown = datetime.datetime.now(datetime.UTC).date().isoformat()
    write_json(
        record_path,
        {
            "config": config,
            "encoder": encoder,
            "source": {},
            "license": {"attribution": ATTRIBUTION, "terms_shown": shown},
        }
        | ({} if safety is None else safety.record()),
    )


def stage_section(
    network: Mapping[str, Any], resolution: int, low_res: int, percentile: float, cap: float
) -> dict[str, Any]:
    """A stage's section of a config, with the settings that IF is sampled with.

    Args:
      network: fields of DeepFloydUNet.
      resolution, low_res: pixels per side; low_res is 0 in stage I.
      percentile, cap: dynamic thresholding; a cap of 1 is static thresholding.
    """
    table = DiscreteCosineSchedule()
    aug_level = float(SCHEDULE.t(table.logsnr((NOISE_LEVEL + 1) / table.steps)))
    return {
        "resolution": resolution,
        "low_res": low_res or None,
        "align_corners": True,
        "network": {"kind": "deepfloyd_unet"}
        | {k: list(v) if isinstance(v, tuple) else v for k, v in network.items()},
        "schedule": {"kind": "discrete_cosine"},
        "diffusion": {"parametrization": "eps", "weighting": "eps", "time_sampling": "uniform"},
        "train": dict(TRAIN),
        "sample": {
            "sampler": "ddpm(variance=learned)",
            "steps": 50 if low_res else 100,
            "time_grid": "leading",
            "guidance": 4.0 if low_res else 7.0,
            "threshold": "dynamic" if cap > 1 else "static",
            "percentile": percentile,
            "threshold_cap": cap,
            "aug_level": aug_level if low_res else 0.0,
        },
        "mesh": {"data": -1},
    }


class _Part:
    """One stage as its config.json and scheduler_config.json say.

    Attributes:
      directory: with config.json and weights.
      name: name of the stage.
      resolution, low_res: pixels per side; low_res is 0 in stage I.
      text_width: channels of a token state.
    """

    def __init__(self, directory: Path, root: Path) -> None:
        self.directory, self.root = directory, root
        where = directory / "config.json"
        self.config = read_json(where, "config of a network")
        self.network = network_fields(self.config, str(where))
        self.resolution = self._size("sample_size")
        self.text_width = self._size("encoder_hid_dim")
        second = self.config["in_channels"] == 6
        self.low_res = self.resolution // 4 if second else 0
        self.name = "sr" if second else "base"
        self.cap = self._threshold()

    @classmethod
    def read(cls, path: Path) -> _Part:
        """Reads what a path holds; see import_deepfloyd."""
        for directory in (path / "unet", path):
            if (directory / "config.json").is_file():
                return cls(directory, path if directory != path else path.parent)
        raise UserError(
            f"there is no unet/config.json in {path}; give the directory of a pipeline of "
            "DeepFloyd IF, as the hub has it for diffusers"
        )

    def _size(self, key: str) -> int:
        value = self.config.get(key)
        if not isinstance(value, int) or value < 1:
            raise UserError(
                f"{self.directory / 'config.json'}: {key} is {value!r}; it must be a whole number "
                "from 1"
            )
        return value

    def _threshold(self) -> tuple[float, float]:
        """Percentile and cap of dynamic thresholding, by the scheduler where its file is there."""
        path = self.root / "scheduler" / "scheduler_config.json"
        found = read_json(path, "config of a scheduler") if path.is_file() else {}
        process = {
            "beta_schedule": "squaredcos_cap_v2",
            "num_train_timesteps": 1000,
            "prediction_type": "epsilon",
            "variance_type": "learned_range",
            "trained_betas": None,
        }
        for key, value in process.items():
            if found.get(key, value) != value:
                raise UserError(f"{path}: {key} is {found[key]!r}, and IF's is {value!r}")
        ratio = found.get("dynamic_thresholding_ratio", 0.95)
        return 100.0 * ratio, found.get("sample_max_value", 1.0 if self.low_res else 1.5)

    def section(self) -> dict[str, Any]:
        """The stage's section of a config."""
        return stage_section(self.network, self.resolution, self.low_res, *self.cap)

    def licence_texts(self) -> list[Path]:
        """Files of the download that hold the licence."""
        return sorted(path for path in self.root.glob("LICENSE*") if path.is_file())


def _choose(stage: Stage, source: Tensors) -> dict[str, str]:
    """Our name -> diffusers' name of every parameter but the null text.

    Raises:
      UserError: a tensor is missing, is not known, or has another shape; names some.
    """
    levels = len(stage.network.channels)
    flat = flax.traverse_util.flatten_dict(abstract_params(stage), sep="/")
    wanted = {name: leaf.shape for name, leaf in flat.items() if name != NULL_TEXT}
    names, wrong = {}, []
    for theirs, shape in source.shapes.items():
        ours = our_name(theirs, len(shape), levels)
        if ours is None or ours not in wanted or ours in names:
            wrong.append(f"{theirs} {list(shape)} has no place")
        elif _turned_shape(ours, shape) != wanted[ours]:
            wrong.append(f"{theirs} {list(shape)} does not fit {ours} {list(wanted[ours])}")
        if ours is not None:
            names[ours] = theirs
    wrong += [f"nothing for {name} {list(wanted[name])}" for name in wanted if name not in names]
    if wrong:
        raise UserError(
            f"the weights of stage {stage.name!r} do not fit its config.json ({len(wrong)} "
            "differences): " + "; ".join(wrong[:5])
        )
    return names


def _axes(name: str, count: int) -> tuple[int, ...]:
    """Torch's axes in our order: matrices and kernels of convolutions are turned."""
    if name.endswith("/kernel"):
        return {2: (1, 0), 4: (2, 3, 1, 0)}.get(count, tuple(range(count)))
    return tuple(range(count))


def _turned_shape(name: str, shape: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(shape[axis] for axis in _axes(name, len(shape)))


def _tensors(source: Tensors, names: Mapping[str, str], null_text: np.ndarray) -> Iterator[Lazy]:
    """All parameters of a stage, each read when its turn comes."""

    def read(ours: str, theirs: str) -> np.ndarray:
        values = source.read_finite(theirs)
        return values.transpose(_axes(ours, values.ndim))

    yield NULL_TEXT, null_text.dtype, null_text.shape, lambda: null_text
    for ours, theirs in sorted(names.items()):
        shape = _turned_shape(ours, source.shapes[theirs])
        yield ours, source.dtype(theirs), shape, functools.partial(read, ours, theirs)


def _text_directory(given: str | Path | None, parts: Sequence[_Part]) -> Path:
    if given is not None:
        return local_path(given)
    for part in parts:
        if (part.root / t5_if.ENCODER).is_dir():
            return part.root
    raise UserError(
        "none of the given directories has text_encoder/; pass the one that has (--text-encoder): "
        "the networks need T5's states of the empty caption"
    )


def _read_text(directory: Path, width: int) -> tuple[dict[str, str], np.ndarray]:
    """The record of T5's encoder, and its states of the empty caption."""
    encoder = load_encoder("t5-if", directory)
    if encoder.width != width:
        raise UserError(
            f"the encoder in {directory} makes states of {encoder.width} channels, but the "
            f"networks read {width}; they do not belong together"
        )
    (states,) = encoder.encode_tokens(encoder.tokenize([""]))
    record = {"name": encoder.name, "fingerprint": encoder.fingerprint}
    del encoder
    gc.collect()
    return record, states
