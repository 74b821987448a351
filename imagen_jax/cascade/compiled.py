"""A stage as a compiled artefact that runs without this package: StableHLO by jax.export.

<stage>.jax          the sampler with all of its steps, for any batch size
<stage>.safetensors  the weights
<stage>.json         what the program takes and makes
run_exported.py      loads and runs them, with jax, numpy and safetensors alone
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import flax.traverse_util
import jax
import jax.export
import jax.numpy as jnp
import safetensors.numpy

from imagen_jax.cascade import run_exported
from imagen_jax.checkpoints.exported import flat_weights, new_files
from imagen_jax.checkpoints.pretrained import Pretrained, abstract_params
from imagen_jax.chips import no_platform
from imagen_jax.errors import UserError
from imagen_jax.files import atomic_path
from imagen_jax.sampling import image_keys, whole_sampler
from imagen_jax.stage import Stage
from imagen_jax.stage_config import SampleConfig
from imagen_jax.stage_programs import StageInputs
from imagen_jax.typing import TextEmbedding

PLATFORMS = ("cpu", "cuda", "rocm", "tpu")


def export_stages(
    cascade: Pretrained,
    output: str | Path,
    settings: Mapping[str, SampleConfig] | None = None,
    platforms: Sequence[str] = (),
    stages: Sequence[Stage] | None = None,
) -> list[Path]:
    """Write stages as compiled artefacts.

    Args:
      cascade: the cascade that the stages belong to.
      output: directory of the files.
      settings: sampling settings of stages by name; without them, those of the config. Steps,
        sampler, time grid, threshold, padding and whether and where there is guidance are fixed in
        the program; the guidance scale and aug_level are arguments.
      platforms: some of PLATFORMS, for which programs are lowered; () is that of this machine.
      stages: some of cascade.stages; None is all.

    Returns:
      Paths of the written files.

    Raises:
      UserError: an unknown platform, the files are there already, or a stage's network calls code
        that lies outside of a program.

    Warns:
      UserWarning: the cascade has a safety checker or a watermark, which the programs do not apply.
    """
    for platform in platforms:
        if platform not in PLATFORMS:
            raise UserError(f"unknown platform {platform!r}; choices: {', '.join(PLATFORMS)}")
    stages = cascade.stages if stages is None else stages
    if cascade.safety is not None:
        warnings.warn(
            "the programs apply neither safety checker nor watermark of the cascade: what you show "
            "to others is yours to check",
            stacklevel=2,
        )
    source = Path(run_exported.__file__)
    names = [f"{stage.name}.{kind}" for stage in stages for kind in ("jax", "safetensors", "json")]
    with new_files(output, [*names, source.name]) as paths:
        for i, stage in enumerate(stages):
            how = (settings or {}).get(stage.name, stage.sample)
            _export(cascade, stage, paths[3 * i : 3 * i + 3], how, platforms)
        with atomic_path(paths[-1]) as temporary:
            temporary.write_bytes(source.read_bytes())
    return paths


def _export(
    cascade: Pretrained,
    stage: Stage,
    paths: Sequence[Path],
    settings: SampleConfig,
    platforms: Sequence[str],
) -> None:
    """Write a stage's program, weights and record."""
    shapes = flax.traverse_util.flatten_dict(abstract_params(stage), sep="/")
    inputs = _inputs(stage, settings)
    elsewhere = any(platform != jax.default_backend() for platform in platforms)
    with jax.sharding.use_abstract_mesh(no_platform()) if elsewhere else contextlib.nullcontext():
        program = jax.export.export(
            jax.jit(_program(stage, settings)), platforms=tuple(platforms) or None
        )(shapes, inputs)
    try:
        run_exported.check_calls(program, stage.name)
    except ValueError as error:  # of a network of one's own, such as for a decomposition
        raise UserError(f"stage {error}: it cannot be exported as a program") from error
    weights = flat_weights(cascade.weights(stage))

    with atomic_path(paths[0]) as temporary:
        temporary.write_bytes(program.serialize())
    with atomic_path(paths[1]) as temporary:
        safetensors.numpy.save_file(weights, temporary)
    record = {
        "stage": stage.name,
        "program": paths[0].name,
        "weights": paths[1].name,
        "arguments": {
            name: {"shape": _plain(of.shape), "dtype": of.dtype.name, "meaning": MEANINGS[name]}
            for name, of in inputs.items()
        },
        "result": {
            "shape": _plain(program.out_avals[0].shape),
            "dtype": program.out_avals[0].dtype.name,
            "meaning": "images in [-1, 1]",
        },
        "settings": dataclasses.asdict(settings),
        "text": dataclasses.asdict(stage.text) | {"fingerprint": cascade.encoder["fingerprint"]},
        "fingerprint": cascade.fingerprint(stage),
        "platforms": list(program.platforms),
        "jax": jax.__version__,
    }  # fmt: skip
    with atomic_path(paths[2]) as temporary:
        temporary.write_text(json.dumps(record, indent=2) + "\n", "utf-8")


MEANINGS = {
    "text_states": "token states of the prompts, by the encoder named in text",
    "text_mask": "True at tokens",
    "negative_states": "of what is guided away from",
    "negative_mask": "False everywhere for no negative prompt",
    "seeds": "of the noise; the same seed gives the same image",
    "guidance": "weight of classifier-free guidance",
    "low_res": "images in [-1, 1] to be enlarged",
    "aug_level": "noise put on them, in [0, 1]",
}
"""Arguments of an exported program; a stage has those that it needs."""


def _inputs(stage: Stage, settings: SampleConfig) -> dict[str, jax.ShapeDtypeStruct]:
    (b,) = jax.export.symbolic_shape("b")
    length, width = stage.text.max_length, stage.text.width
    shapes: dict[str, tuple[tuple[Any, ...], Any]] = {
        "text_states": ((b, length, width), jnp.float32),
        "text_mask": ((b, length), jnp.bool_),
        "seeds": ((b,), jnp.uint32),
    }
    if settings.guidance != 1:
        shapes["negative_states"] = shapes["text_states"]
        shapes["negative_mask"] = shapes["text_mask"]
        shapes["guidance"] = ((), jnp.float32)
    if stage.low_res is not None:
        shapes["low_res"] = ((b, stage.low_res, stage.low_res, 3), jnp.float32)
        shapes["aug_level"] = ((), jnp.float32)
    return {name: jax.ShapeDtypeStruct(*of) for name, of in shapes.items()}


def _program(stage: Stage, settings: SampleConfig) -> Any:
    sampler = whole_sampler(stage, settings)

    def program(weights: dict[str, jax.Array], inputs: dict[str, jax.Array]) -> jax.Array:
        negative = None
        if "guidance" in inputs:
            negative = TextEmbedding(inputs["negative_states"], inputs["negative_mask"])
        given = StageInputs(
            text=TextEmbedding(inputs["text_states"], inputs["text_mask"]),
            keys=image_keys(inputs["seeds"]),
            low_res=inputs.get("low_res"),
            negative=negative,
        )
        params = flax.traverse_util.unflatten_dict(weights, sep="/")
        aug_level = inputs.get("aug_level", jnp.zeros(()))
        return sampler(params, given, inputs.get("guidance"), aug_level)

    return program


def _plain(shape: Sequence[Any]) -> list[Any]:
    """A shape as JSON knows it: symbolic sizes by their names."""
    return [n if isinstance(n, int) else str(n) for n in shape]
