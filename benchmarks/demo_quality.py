"""Grain, variety and distance from real images of a cascade trained on the level "emoji".

    python -m benchmarks.demo_quality --workdir runs/demo --output runs/demo/quality

Prints a table and writes quality.json:

* grain: root mean square of what the background, where nothing lies, differs from a plane of
  colour, in levels of 255; in the outermost ring and inside, for a few and for many steps;
* variety: mean distance between MobileNetV2's features of eight seeds of a prompt, over that
  between eight real images of it that differ in all that the prompt leaves open;
* distance: Frechet and kernel distance, precision and coverage of whole images, or of crops,
  beside those of other real images.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from scipy import ndimage

from imagen_jax.cascade import Cascade
from imagen_jax.data.scenes.levels import Level, get_level
from imagen_jax.data.scenes.open_grammar import describe
from imagen_jax.data.scenes.render import render
from imagen_jax.data.scenes.sampling import sample_scene
from imagen_jax.data.scenes.scene import Group, Scene
from imagen_jax.eval.feature_sets import METRICS, FeatureSet, compare, compute_features
from imagen_jax.eval.features.network import FeatureNetwork, load_network
from imagen_jax.eval.images import Arrays
from imagen_jax.eval.open_matching import fit_background

SEED = 505
SEEDS = 8
NEAR = 5.0
"""Levels of 255 that the surroundings of a pixel of the background may differ from it."""


def grain(images: np.ndarray) -> dict[str, float]:
    """Root mean square grain of backgrounds, in the outermost ring and 6 and more pixels inside."""
    side = images.shape[1]
    line = np.minimum(np.arange(side), np.arange(side)[::-1])
    from_edge = np.minimum(*np.meshgrid(line, line))
    square = {"ring": [0.0, 0], "inside": [0.0, 0]}
    for image in images.astype(np.float32):
        off = image - fit_background(image)
        around = ndimage.uniform_filter(off, (7, 7, 0), mode="nearest")
        free = ndimage.binary_erosion(
            np.abs(around).max(-1) < NEAR, np.ones((5, 5)), border_value=1
        )
        for name, where in (("ring", from_edge == 0), ("inside", from_edge >= 6)):
            values = off[free & where]
            square[name][0] += float((values**2).sum())
            square[name][1] += values.size
    return {name: (total / max(count, 1)) ** 0.5 for name, (total, count) in square.items()}


def plain_scenes(level: Level, count: int) -> list[Scene]:
    """Training scenes of one thing in its own colours."""
    scenes: list[Scene] = []
    index = 0
    while len(scenes) < count:
        scene = sample_scene(level, "train", SEED, index, groups=1)
        if scene.groups[0] == Group(scene.groups[0].noun) and scene.size is None:
            scenes.append(scene)
        index += 1
    return scenes


def open_images(level: Level, scene: Scene, side: int) -> np.ndarray:
    """Real images that differ from a scene in style, background, size and place."""
    images = []
    for i in range(SEEDS):
        rng = np.random.default_rng([SEED, scene.variation, i])
        drawn = dataclasses.replace(
            scene,
            style=level.styles[int(rng.integers(len(level.styles)))],
            background=level.backgrounds[int(rng.integers(len(level.backgrounds)))],
            variation=int(rng.integers(2**31)),
        )
        images.append(render(drawn, side))
    return np.stack(images)


def spread(network: FeatureNetwork, images: np.ndarray) -> float:
    """Mean distance between the features of two of the images."""
    features = compute_features(network, Arrays("seeds", images)).features
    distances = np.linalg.norm(features[:, None] - features[None], axis=-1)
    return float(distances.sum() / (len(images) * (len(images) - 1)))


def variety(cascade: Cascade, level: Level, network: FeatureNetwork, count: int) -> dict[str, Any]:
    """Spread of seeds, and of real images, by prompt."""
    names = [scene.groups[0].noun for scene in plain_scenes(level, count)]
    sampled = cascade.sample([f"a {name}" for name in names], per_prompt=SEEDS, seed=SEED).images
    sampled = sampled.reshape(count, SEEDS, *sampled.shape[1:])
    found = []
    for scene, images in zip(plain_scenes(level, count), sampled, strict=True):
        real = spread(network, open_images(level, scene, images.shape[1]))
        found.append((spread(network, images), real))
    ours, real = np.array(found).mean(0)
    return {"seeds": float(ours), "real": float(real), "ratio": float(ours / real)}


def crops(images: np.ndarray, side: int) -> np.ndarray:
    """A square of each image at a place that its number chooses."""
    rng = np.random.default_rng(SEED)
    span = images.shape[1] - side + 1
    places = rng.integers(span, size=(len(images), 2))
    return np.stack(
        [image[y : y + side, x : x + side] for image, (y, x) in zip(images, places, strict=True)]
    )


def distance(
    sampled: np.ndarray, scenes: Sequence[Sequence[Scene]], network: FeatureNetwork, side: int
) -> dict[str, Any]:
    """Distances of sampled images from the scenes they are to show, beside other scenes'."""

    def features(name: str, images: np.ndarray) -> FeatureSet:
        return compute_features(network, Arrays(name, crops(images, side)))

    full = sampled.shape[1]
    real, others = (np.stack([render(scene, full) for scene in part]) for part in scenes)
    compared = compare(
        features("sampled", sampled), features("real", real), features("others", others)
    )
    return {name: compared[name] for name in METRICS}


def main() -> None:
    """Measures, prints and writes."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--workdir", help="default: the cascade that is shipped")
    parser.add_argument("--stages", nargs="+", help="default: all")
    parser.add_argument("--output", type=Path, default=Path("runs/demo/quality"))
    parser.add_argument("--count", type=int, default=256, help="images of the distance")
    parser.add_argument("--prompts", type=int, default=16, help="prompts of grain and variety")
    parser.add_argument("--steps", type=int, nargs="+", default=[8, 128], help="those of grain")
    parser.add_argument("--crop", type=int, help="pixels of crops; default: whole images")
    args = parser.parse_args()
    level, network = get_level("emoji"), load_network("mobilenet-v2")
    cascade = Cascade.load(args.workdir, stages=args.stages)
    scenes = plain_scenes(level, args.prompts)
    texts = [describe(scene, say=("background",)).text for scene in scenes]
    side = cascade.stages[-1].resolution
    result: dict[str, Any] = {
        "grain": {"real": grain(np.stack([render(scene, side) for scene in scenes]))}
    }
    for steps in args.steps:
        result["grain"][str(steps)] = grain(cascade.sample(texts, seed=SEED, steps=steps).images)
    print(json.dumps(result["grain"], indent=1), flush=True)
    result["variety"] = variety(cascade, level, network, args.prompts)
    print(json.dumps(result["variety"], indent=1), flush=True)
    parts = [
        [sample_scene(level, "train", SEED + k, i) for i in range(args.count)] for k in range(2)
    ]
    sampled = cascade.sample([describe(scene).text for scene in parts[0]], seed=SEED).images
    result["distance"] = distance(sampled, parts, network, args.crop or side)
    print(json.dumps(result["distance"], indent=1), flush=True)
    args.output.mkdir(parents=True, exist_ok=True)
    (args.output / "quality.json").write_text(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
