"""Compare an imported DeepFloyd IF with diffusers: one call of each U-Net, in float32.

    imagen import deepfloyd IF-I-XL-v1.0 IF-II-L-v1.0 --variant fp16 --output IF
    python launch/compare_deepfloyd.py IF-I-XL-v1.0 IF-II-L-v1.0 IF --variant fp16

Needs torch and diffusers beside imagen-jax, and memory for one network at a time in float32: 17 GB
for I-XL. Both get the same random images, step and text states. Prints for each stage the largest
difference relative to the largest output. Exit status: 0 all are equal, 1 one is not, 2 it could
not be compared.
"""

from __future__ import annotations

import argparse
import gc
import importlib.util
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from imagen_jax.checkpoints.cascades import open_cascade
from imagen_jax.diffusion.augment import SCHEDULE
from imagen_jax.diffusion.schedule import DiscreteCosineSchedule
from imagen_jax.errors import UserError
from imagen_jax.files import read_json
from imagen_jax.typing import Conditioning, TextEmbedding

PACKAGES = ("torch", "diffusers")
BOUND = 1e-4
"""Rounding in float32 is far below it in tiny networks (3e-6), a wrong formula far above (1e-3)."""
LENGTH = 77

Inputs = Mapping[str, np.ndarray]
"""x, low_res [b, h, w, 3] float32; step, noise_level [b] in 0 ... 999; text [b, 77, d] float32."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; return its exit status."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("pipelines", nargs="+", help="downloaded pipelines, with unet/ in them")
    parser.add_argument("cascade", help="the cascade that was imported from them")
    parser.add_argument("--variant", help="variant of the weights that was imported, such as fp16")
    parser.add_argument("--step", type=int, default=500, choices=range(1000), metavar="0...999")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--bound", type=float, default=BOUND, help="default: %(default)g")
    args = parser.parse_args(argv)
    try:
        for package in PACKAGES:
            if importlib.util.find_spec(package) is None:
                raise UserError(
                    f"{package} is not installed in {sys.executable}; pip install torch diffusers"
                )
        configs = [read_config(Path(path)) for path in args.pipelines]
        equal = True
        for path, config in zip(args.pipelines, configs, strict=True):
            name = "sr" if config["in_channels"] == 6 else "base"
            inputs = random_inputs(config, args.step, args.seed)
            expected = theirs(Path(path), args.variant, inputs, name == "sr")
            gc.collect()
            same, said = verdict(ours(args.cascade, name, inputs), expected, args.bound)
            print(f"{name}: {said}", flush=True)
            equal &= same
    except UserError as error:
        print(f"{parser.prog}: {error}", file=sys.stderr)
        return 2
    return 0 if equal else 1


def read_config(pipeline: Path) -> dict[str, Any]:
    """Return unet/config.json of a pipeline."""
    config = read_json(pipeline / "unet" / "config.json", "config of a network")
    for key in ("in_channels", "sample_size", "encoder_hid_dim"):
        if not isinstance(config.get(key), int):
            raise UserError(f"{pipeline}/unet/config.json: {key} is {config.get(key)!r}")
    return config


def random_inputs(config: Mapping[str, Any], step: int, seed: int) -> Inputs:
    """Return inputs of one image, of the size of a stage."""
    generator = np.random.default_rng(seed)
    size = config["sample_size"]

    def normal(*shape: int) -> np.ndarray:
        return generator.standard_normal(shape, np.float32)

    return {
        "x": normal(1, size, size, 3), "low_res": normal(1, size, size, 3),
        "step": np.array([step]), "noise_level": np.array([250]),
        "text": 0.2 * normal(1, LENGTH, config["encoder_hid_dim"]),
    }  # fmt: skip


def ours(cascade: str | Path, name: str, inputs: Inputs) -> np.ndarray:
    """Return the output [b, h, w, 6] of a stage of an imported cascade.

    Raises:
      UserError: no cascade is there, or it has no such stage.
    """
    opened = open_cascade(cascade)
    found = [stage for stage in opened.stages if stage.name == name]
    if not found:
        there = ", ".join(stage.name for stage in opened.stages)
        raise UserError(f"the cascade in {cascade} has no stage {name!r}; it has {there}")
    (stage,) = found
    table = DiscreteCosineSchedule()

    def logsnr(step: np.ndarray) -> jax.Array:
        return table.logsnr(jnp.asarray((step + 1) / table.steps, jnp.float32))

    text = jnp.asarray(inputs["text"])
    conditioning = Conditioning(TextEmbedding(text, jnp.ones(text.shape[:2], bool)))
    if stage.low_res is not None:
        aug_level = SCHEDULE.t(logsnr(inputs["noise_level"]))
        low_res = jnp.asarray(inputs["low_res"])
        conditioning = conditioning._replace(low_res=low_res, aug_level=aug_level)
    network = stage.network.with_dtype("float32")
    with jax.default_matmul_precision("highest"):
        made = jax.jit(network.apply)(
            {"params": opened.weights(stage)}, inputs["x"], logsnr(inputs["step"]), conditioning
        )
    return np.asarray(made)


def theirs(pipeline: Path, variant: str | None, inputs: Inputs, second: bool) -> np.ndarray:
    """Return the same of diffusers' network.

    Raises:
      UserError: it cannot be loaded.
    """
    import diffusers
    import torch

    try:
        network = diffusers.UNet2DConditionModel.from_pretrained(
            pipeline, subfolder="unet", variant=variant, torch_dtype=torch.float32,
            use_safetensors=True, local_files_only=True,
        )  # fmt: skip
    except (OSError, ValueError) as error:
        raise UserError(f"diffusers cannot load {pipeline}/unet: {error}") from error
    images = [inputs["x"], inputs["low_res"]] if second else [inputs["x"]]
    stacked = np.concatenate(images, axis=-1).transpose(0, 3, 1, 2).copy()
    levels = torch.from_numpy(inputs["noise_level"]) if second else None
    with torch.no_grad():
        made = network.eval()(
            torch.from_numpy(stacked), torch.from_numpy(inputs["step"]),
            torch.from_numpy(inputs["text"]), class_labels=levels, return_dict=False,
        )[0]  # fmt: skip
    return made.numpy().transpose(0, 2, 3, 1)


def verdict(made: np.ndarray, expected: np.ndarray, bound: float) -> tuple[bool, str]:
    """Return whether two outputs are equal, and the line that says it."""
    if made.shape != expected.shape:
        return False, f"not equal: shapes {made.shape} and {expected.shape}"
    largest = np.abs(expected).max()
    difference = np.abs(made - expected).max() / largest
    equal = bool(difference <= bound)  # False of NaN
    said = f"largest difference {difference:.1e} of the largest output, {largest:.3g}"
    return equal, f"{said}: {'equal' if equal else 'NOT equal'} (bound {bound:g})"


if __name__ == "__main__":
    sys.exit(main())
