"""`imagen evaluate scenes`: samples prompts of known scenes, and scores the images exactly."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from imagen_jax.cascade import Cascade, Settings
from imagen_jax.data.scenes.grammar import caption
from imagen_jax.data.scenes.levels import Level
from imagen_jax.data.scenes.open_grammar import Description, describe, unseen_words
from imagen_jax.data.scenes.open_sampling import sample_open_scene
from imagen_jax.data.scenes.sampling import sample_scene, sample_unseen_words
from imagen_jax.data.scenes.scene import Scene
from imagen_jax.errors import UserError
from imagen_jax.eval import open_alignment
from imagen_jax.eval.alignment import ATTRIBUTES, alignment_report, score_all
from imagen_jax.eval.job import ImageStore, keep_earlier
from imagen_jax.eval.open_matching import read_all
from imagen_jax.eval.protocols import level_of
from imagen_jax.files import as_json, atomic_path, output_folder, write_json
from imagen_jax.grid import labelled_grid

SPLITS = ("train", "heldout", "unseen")
"""Compositions seen in training; kept from it; said in words that no training caption contains."""
SHOWN = 24


def evaluate_scenes(
    workdir: str | Path | None,
    count: int,
    splits: Sequence[str],
    seed: int,
    output_dir: str | Path,
    encoder_weights: str | None = None,
    vocabulary: str | None = None,
    settings: Settings | None = None,
) -> dict[str, Any]:
    """Measures how often the images of a cascade are what their prompts say.

    Every split is measured for one and for two groups of objects, "unseen" for one; of open scenes,
    for the kinds of OPEN_SETS. Writes
    scores.json and a labelled grid for each, and prints a table. Images are kept in
    <output_dir>/<set>/, see job: after a kill, the same call resumes.

    Args:
      workdir, encoder_weights, vocabulary: arguments of Cascade.load.
      count: images of each split and number of groups.
      splits: some of SPLITS.
      seed: seed of the prompts; image i has the noise of seed + i.
      output_dir: folder for scores and images.
      settings: sampling settings that replace the cascade's.

    Returns:
      What scores.json holds: for each measured set the report of alignment_report.

    Raises:
      UserError: an unknown split, count below 1, a cascade that was not trained on scenes, or
        output_dir holds images of another job.
      UserError: no cascade.
    """
    unknown = set(splits) - set(SPLITS)
    if unknown:
        raise UserError(f"unknown splits {sorted(unknown)}; choices: {', '.join(SPLITS)}")
    if count < 1:
        raise UserError(f"count must be at least 1, got {count}")
    cascade = Cascade.load(workdir, encoder_weights, vocabulary)
    level = level_of(cascade)
    output = output_folder(output_dir)
    output.mkdir(parents=True, exist_ok=True)
    scores: dict[str, Any] = {}
    for asked in _prompt_sets(level, splits, seed, count):
        seeds = range(seed, seed + count)
        store = ImageStore(output / asked.name, asked.prompts, seeds, cascade.size)
        store.sample(cascade, settings=settings)
        images = store.read(0, count)
        scores[asked.name] = asked.report(images)
        labels = [
            f"{'right' if right else 'wrong'}: {prompt}"
            for right, prompt in zip(asked.right(images[:SHOWN]), asked.prompts, strict=False)
        ]
        grid = labelled_grid(
            images[:SHOWN], labels, columns=6, scale=2 if cascade.size < 128 else 1
        )
        with atomic_path(output / f"{asked.name}.png") as temporary:
            grid.save(temporary, "png")
    record = {
        "level": level.name,
        "encoder": cascade.encoder.name,
        "count": count,
        "seed": seed,
        "overrides": settings or {},
        "scores": scores,
    }
    path = output / "scores.json"
    keep_earlier([path], as_json(record))
    write_json(path, record)
    print(table(scores))
    print(f"\nscores.json and an image of each row are in {output}")
    return record


@dataclasses.dataclass(frozen=True)
class _PromptSet:
    """Prompts of one kind, and the scenes that they describe."""

    name: str
    level: Level
    scenes: list[Scene]
    prompts: list[str]

    def report(self, images: np.ndarray) -> dict[str, Any]:
        return alignment_report(self.scenes, images, self.level)

    def right(self, images: np.ndarray) -> list[bool]:
        """Return True for each of the first images that shows everything."""
        results = score_all(self.scenes[: len(images)], images, self.level)
        return [result["all_correct"] for result in results]


@dataclasses.dataclass(frozen=True)
class _OpenPromptSet(_PromptSet):
    """Prompts of open scenes, which say part of them."""

    said: list[Description]

    def report(self, images: np.ndarray) -> dict[str, Any]:
        return open_alignment.open_alignment_report(self.scenes, self.said, images, self.level)

    def right(self, images: np.ndarray) -> list[bool]:
        count = len(images)
        results = open_alignment.score_all(
            self.scenes[:count], self.said[:count], read_all(images, self.level)
        )
        return [result["all_correct"] for result in results]


def _prompt_sets(level: Level, splits: Sequence[str], seed: int, count: int) -> list[_PromptSet]:
    # Training scenes have small seeds; prompts of seen compositions are other drawings of them.
    prompt_seed = 1_000_000 + seed
    if level.open:
        return [
            _open_prompt_set(level, name, prompt_seed, count)
            for split in splits
            for name in OPEN_SETS[split]
        ]
    sets = []
    for split in splits:
        if split == "unseen":
            pairs = [sample_unseen_words(level, prompt_seed, i) for i in range(count)]
            texts = [text for _, text in pairs]
            sets.append(_PromptSet("unseen-words", level, [s for s, _ in pairs], texts))
            continue
        for groups, word in ((1, "one"), (2, "two")):
            scenes = [sample_scene(level, split, prompt_seed, i, groups) for i in range(count)]
            name = f"{'seen' if split == 'train' else 'heldout'}-{word}"
            sets.append(_PromptSet(name, level, scenes, [caption(scene) for scene in scenes]))
    return sets


OPEN_SETS = {
    "train": ("seen-one", "seen-count", "seen-two"),
    "heldout": ("heldout-style", "heldout-colour", "heldout-pair"),
    "unseen": ("unseen-words",),
}
"""Split -> kinds of prompts of open scenes; all but seen-count have one of each thing."""


def _open_prompt_set(level: Level, name: str, seed: int, count: int) -> _OpenPromptSet:
    drawn = dataclasses.replace(level, counts=1.0 if name == "seen-count" else 0.0)
    groups = 2 if name in ("seen-two", "heldout-pair") else 1
    kind = name.removeprefix("heldout-") if name.startswith("heldout-") else None
    unseen = name == "unseen-words"
    rng = np.random.default_rng([seed, sum(OPEN_SETS.values(), ()).index(name)])
    scenes: list[Scene] = []
    while len(scenes) < count:
        scene = sample_open_scene(drawn, rng, groups, kind)
        if not unseen or unseen_words(scene.groups[0].noun):
            scenes.append(scene)
    say = ("style",) if name == "heldout-style" else ()
    said = [describe(scene, say, unseen) for scene in scenes]
    return _OpenPromptSet(name, level, scenes, [d.text for d in said], said)


def table(scores: dict[str, Any]) -> str:
    """The scores as text: percent per attribute, with the 95% interval of all-correct."""
    measured = {attribute for report in scores.values() for attribute in report["ceiling"]}
    known = dict.fromkeys((*ATTRIBUTES, *open_alignment.ATTRIBUTES))
    attributes = [attribute for attribute in known if attribute in measured]
    attributes.remove("all_correct")
    lines = [f"{'prompts':<22}{'all correct (95%)':>20}" + "".join(f"{a:>12}" for a in attributes)]
    for name, report in scores.items():
        for part in ("images", "ceiling", "floor"):
            row = report[part]
            total = row["all_correct"]
            interval = f"({100 * total['low']:.0f}-{100 * total['high']:.0f})"
            label = name if part == "images" else f"  {part}"
            cells = [f"{100 * row[a]['accuracy']:.0f}" if a in row else "-" for a in attributes]
            lines.append(
                f"{label:<22}{100 * total['accuracy']:>10.1f} {interval:>9}"
                + "".join(f"{cell:>12}" for cell in cells)
            )
    return "\n".join(lines)
