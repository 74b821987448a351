"""Teaches the demo one more thing, a mushroom, by LoRA on ten images, with and without images of
what it knew.

    python -m benchmarks.lora_demo                        # everything goes to runs/lora

Embeds ten images of a mushroom with their captions, trains a change of rank 8 of the demo's base
stage on them alone, and on them and as many of 64 images that the demo itself made of its own
prompts (the prior images of DreamBooth, Ruiz et al. 2022, arXiv 2208.12242). Images of the new
prompts and of old ones, before and after, are read back by template matching. Prints the share of
images with the right object, and with everything right, and writes a grid: rows are before, after,
and after with prior images. docs/fine-tuning.md has what it printed.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from imagen_jax import Cascade, load_config
from imagen_jax.checkpoints.lora import export_lora
from imagen_jax.data.scenes.grammar import caption
from imagen_jax.data.scenes.levels import QUICKSTART
from imagen_jax.data.scenes.sampling import sample_scene
from imagen_jax.data.scenes.source import Example, scene_examples
from imagen_jax.embed import embed
from imagen_jax.eval.alignment import score_all
from imagen_jax.grid import labelled_grid
from imagen_jax.train.loop import train

NEW = "mushroom"
IMAGES, PRIOR, SEED, SHOWN = 10, 64, 7, 8
ALONE = replace(QUICKSTART, name=NEW, nouns=(NEW,), two_groups=0.0)
ALL = replace(QUICKSTART, nouns=(*QUICKSTART.nouns, NEW))
"""Level that images are read back in."""


class Images:
    """Captioned images in memory, as a corpus."""

    size = 64

    def __init__(self, name: str, examples: list[Example]):
        self._name, self._examples = name, examples

    def __len__(self) -> int:
        return len(self._examples)

    def examples_of_shard(self, shard: int, num_shards: int) -> Iterator[Example]:
        """Every num_shards-th image."""
        return iter(self._examples[shard::num_shards])

    def describe(self) -> dict[str, Any]:
        """A description of the corpus."""
        return {"name": self._name, "count": len(self._examples)}


def measure(cascade: Cascade, count: int) -> tuple[dict[str, dict[str, float]], np.ndarray]:
    """Shares of right images of new and of old prompts, and images to look at."""
    shares, shown = {}, []
    for name, level in (("new", ALONE), ("old", QUICKSTART)):
        # Other scenes than those of the ten images.
        scenes = [sample_scene(level, "train", SEED + 1, i, 1) for i in range(count)]
        prompts = [caption(scene) for scene in scenes]
        images = np.asarray(cascade.sample(prompts, seed=range(count)).images)
        scores = score_all(scenes, images, ALL)
        shares[name] = {
            key: float(np.mean([score[key] for score in scores]))
            for key in ("object", "all_correct")
        }
        shown.append(images[: SHOWN // 2])
    return shares, np.concatenate(shown)


def main() -> None:
    """Does it, and prints the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--output", type=Path, default=Path("runs/lora"))
    parser.add_argument("--steps", type=int, default=150)
    parser.add_argument("--count", type=int, default=128, help="images of each kind of prompt")
    args = parser.parse_args()
    cascade = Cascade.load()
    output: Path = args.output
    scenes = [sample_scene(QUICKSTART, "train", SEED, i, 1) for i in range(PRIOR)]
    prompts = [caption(scene) for scene in scenes]
    made = np.asarray(cascade.sample(prompts, seed=range(PRIOR)).images)
    own = [Example(str(i), *pair) for i, pair in enumerate(zip(prompts, made, strict=True))]
    new = list(scene_examples(ALONE, "train", SEED, IMAGES, Images.size))
    for name, examples in (("new", new), ("prior", own)):
        embed(Images(name, examples), output / name, encoder=cascade.encoder, image_size=64)

    results = {"before": measure(cascade, args.count)}
    both = f"{output / 'new'}=0.5,{output / 'prior'}=0.5"
    for name, data in (("alone", str(output / "new")), ("prior images", both)):
        settings = {
            "lora_rank": 8, "lora_layers": "('*',)", "ema_decay": 0, "optimizer": "adam",
            "batch_size": 10, "learning_rate": 0.002, "steps": args.steps,
            "warmup_steps": args.steps // 15, "checkpoint_every": args.steps, "log_every": 10,
            "sample_every": 0,
        }  # fmt: skip
        config = load_config(
            "quickstart", [f"stages.base.train.{k}={v}" for k, v in settings.items()]
        )
        workdir = output / f"run {name}"
        train(config, "base", data, workdir, init_from="demo")
        change = output / f"{name}.safetensors"
        if not change.exists():
            export_lora(workdir, change)
        print(f"{change}: {change.stat().st_size / 1e3:.0f} kB")
        results[name] = measure(Cascade.load(lora={change: 1.0}), args.count)

    print("weights        new: object  all right   old: object  all right")
    for name, (shares, _) in results.items():
        cells = [shares[kind][key] for kind in ("new", "old") for key in ("object", "all_correct")]
        print(f"{name:<15}" + "".join(f"{cell:12.1%}" for cell in cells))
    (output / "shares.json").write_text(json.dumps({k: v for k, (v, _) in results.items()}))
    rows = np.concatenate([images for _, images in results.values()])
    labels = [name for name in results for _ in range(SHOWN)]
    labelled_grid(rows, labels, columns=SHOWN).save(output / "grid.png")


if __name__ == "__main__":
    main()
