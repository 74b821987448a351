"""`imagen evaluate scenes`: samples prompts of known scenes, and scores the images exactly."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from imagen_jax.cascade import Cascade
from imagen_jax.data.scenes.grammar import caption
from imagen_jax.data.scenes.levels import Level
from imagen_jax.data.scenes.sampling import sample_scene, sample_unseen_words
from imagen_jax.data.scenes.scene import Scene
from imagen_jax.errors import UserError
from imagen_jax.eval.alignment import ATTRIBUTES, alignment_report, score_all
from imagen_jax.eval.job import ImageStore
from imagen_jax.eval.protocols import level_of
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
    **overrides: Any,
) -> dict[str, Any]:
    """Measures how often the images of a cascade are what their prompts say.

    Every split is measured for one and for two groups of objects, "unseen" for one. Writes
    scores.json and a labelled grid for each, and prints a table. Images are kept in
    <output_dir>/<set>/, see job: after a kill, the same call resumes.

    Args:
      workdir, encoder_weights, vocabulary: arguments of Cascade.load.
      count: images of each split and number of groups.
      splits: some of SPLITS.
      seed: seed of the prompts; image i has the noise of seed + i.
      output_dir: folder for scores and images.
      **overrides: sampling settings, see Cascade.settings.

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
    output = Path(output_dir)
    output.mkdir(parents=True, exist_ok=True)
    scores: dict[str, Any] = {}
    for name, scenes, prompts in _prompt_sets(level, splits, seed, count):
        store = ImageStore(output / name, prompts, range(seed, seed + count), cascade.size)
        store.sample(cascade, **overrides)
        images = store.read(0, count)
        scores[name] = alignment_report(scenes, images, level)
        shown = images[:SHOWN]
        results = score_all(scenes[:SHOWN], shown, level)
        labels = [
            f"{'right' if result['all_correct'] else 'wrong'}: {prompt}"
            for result, prompt in zip(results, prompts[:SHOWN], strict=True)
        ]
        grid = labelled_grid(shown, labels, columns=6, scale=2)
        grid.save(output / f"{name}.png")
    record = {
        "level": level.name,
        "encoder": cascade.encoder.name,
        "count": count,
        "seed": seed,
        "overrides": overrides,
        "scores": scores,
    }
    (output / "scores.json").write_text(json.dumps(record, indent=2) + "\n")
    print(table(scores))
    print(f"\nscores.json and an image of each row are in {output}")
    return record


def _prompt_sets(
    level: Level, splits: Sequence[str], seed: int, count: int
) -> list[tuple[str, list[Scene], list[str]]]:
    sets = []
    # Training scenes have small seeds; prompts of seen compositions are other drawings of them.
    prompt_seed = 1_000_000 + seed
    for split in splits:
        if split == "unseen":
            pairs = [sample_unseen_words(level, prompt_seed, i) for i in range(count)]
            sets.append(("unseen-words", [s for s, _ in pairs], [text for _, text in pairs]))
            continue
        for groups, word in ((1, "one"), (2, "two")):
            scenes = [sample_scene(level, split, prompt_seed, i, groups) for i in range(count)]
            name = f"{'seen' if split == 'train' else 'heldout'}-{word}"
            sets.append((name, scenes, [caption(scene) for scene in scenes]))
    return sets


def table(scores: dict[str, Any]) -> str:
    """The scores as text: percent per attribute, with the 95% interval of all-correct."""
    attributes = [a for a in ATTRIBUTES if a != "all_correct"]
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
