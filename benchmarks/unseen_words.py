"""Benefit of a frozen language model: prompts in words that training never saw.

    python -m benchmarks.unseen_words --minilm runs/quickstart --random runs/quickstart-random

Two cascades of one config, trained on the same images and captions, differ in their text encoder:
MiniLM with its pretrained weights, and the same network with random ones (minilm-random). Both are
given one-object prompts in which the noun or the colour is replaced by a synonym that no training
caption contains, and the same prompts in the words of training. Counts how often the attribute that
the word names is right, word by word. docs/unseen_words.md has the result.
"""

from __future__ import annotations

import argparse
import json
from collections import defaultdict
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np

from imagen_jax.cascade import Cascade
from imagen_jax.data.scenes.grammar import caption
from imagen_jax.data.scenes.levels import get_level
from imagen_jax.data.scenes.sampling import sample_unseen_words
from imagen_jax.data.scenes.scene import Scene
from imagen_jax.data.scenes.vocabulary import COLOURS, SYNONYMS, UNSEEN_WORDS
from imagen_jax.eval.alignment import score_all
from imagen_jax.eval.metrics.intervals import wilson_interval
from imagen_jax.grid import labelled_grid

NAMES = {"minilm": "pretrained MiniLM", "random": "random weights"}
SHOWN = (
    "a drawing of a crimson circle on a white background",
    "a puppy on a pink background, drawing",
    "a flat icon of a kitten on a blue background",
    "a flat icon of a golden star on a black background",
    "a drawing of an automobile on a white background",
    "a spaceship on a black background, drawing",
    "a flat icon of an emerald square on a white background",
    "a violet dog on a white background, flat icon",
)
SEED = 2_000_000


def unseen_word(prompt: str) -> str:
    """The word of a prompt that no training caption contains."""
    (word,) = UNSEEN_WORDS & set(prompt.replace(",", "").split())
    return word


def original(word: str) -> str:
    """The word of the training captions that an unseen word stands for."""
    return next(known for known, words in SYNONYMS.items() if word in words)


def attribute_right(
    cascade: Cascade, scenes: list[Scene], prompts: list[str], words: list[str]
) -> list[bool]:
    """For every prompt, whether the image shows the noun or colour that its word names."""
    samples = cascade.sample(prompts, seed=range(SEED, SEED + len(prompts)))
    results = score_all(scenes, samples.images, get_level(cascade.source["train"]["level"]))
    return [
        result["colour" if original(word) in COLOURS else "object"]
        for result, word in zip(results, words, strict=True)
    ]


def plot(shares: dict[str, dict[str, tuple[int, int]]], path: Path) -> None:
    """Bars: share of right images by word, for each encoder, with 95% intervals."""
    words = sorted(shares["minilm"], key=lambda w: (original(w) in COLOURS, original(w), w))
    figure, axis = plt.subplots(figsize=(10, 4.2), layout="constrained")
    for i, (name, label) in enumerate(NAMES.items()):
        counts = [shares[name][word] for word in words]
        height = np.array([100 * right / n for right, n in counts])
        ends = 100 * np.array([wilson_interval(right, n) for right, n in counts]).T
        error = np.maximum([height - ends[0], ends[1] - height], 0)
        axis.bar(np.arange(len(words)) + 0.4 * i, height, 0.38, yerr=error, capsize=2, label=label)
    ticks = [f"{word} ({original(word)})" for word in words]
    axis.set_xticks(
        np.arange(len(words)) + 0.2, ticks, rotation=40, ha="right", rotation_mode="anchor"
    )
    axis.set(ylabel="noun or colour right, %", ylim=(0, 105))
    axis.legend(ncols=2, loc="upper center", bbox_to_anchor=(0.5, 1.12), frameon=False)
    figure.savefig(path, dpi=110)


def main() -> None:
    """Prints the table, and writes it with its plot and images."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--minilm", type=Path, default=Path("runs/quickstart"))
    parser.add_argument("--random", type=Path, default=Path("runs/quickstart-random"))
    parser.add_argument("--count", type=int, default=128, help="prompts (default: %(default)s)")
    parser.add_argument("--output", type=Path, default=Path("docs/unseen_words"))
    args = parser.parse_args()
    args.output.mkdir(parents=True, exist_ok=True)
    cascades = {"minilm": Cascade.load(args.minilm), "random": Cascade.load(args.random)}
    level = get_level(cascades["minilm"].source["train"]["level"])
    drawn = [sample_unseen_words(level, SEED, i) for i in range(args.count)]
    scenes = [scene for scene, _ in drawn]
    words = [unseen_word(prompt) for _, prompt in drawn]
    prompts = {"unseen": [p for _, p in drawn], "training": [caption(s) for s in scenes]}
    totals: dict[str, dict[str, int]] = defaultdict(dict)
    shares: dict[str, dict[str, tuple[int, int]]] = {}
    for name, cascade in cascades.items():
        for kind, texts in prompts.items():
            right = attribute_right(cascade, scenes, texts, words)
            totals[name][kind] = sum(right)
            if kind == "unseen":
                of_word = defaultdict(list)
                for word, is_right in zip(words, right, strict=True):
                    of_word[word].append(is_right)
                shares[name] = {word: (sum(r), len(r)) for word, r in of_word.items()}
        print(f"{NAMES[name]:<20}", end="")
        for kind, count in totals[name].items():
            low, high = wilson_interval(count, args.count)
            share = f"{100 * count / args.count:.1f}% ({100 * low:.0f}-{100 * high:.0f})"
            print(f"  {kind} words: {share}", end="")
        print()
    plot(shares, args.output / "words.png")
    record = {"count": args.count, "right": totals, "by_word": shares}
    (args.output / "scores.json").write_text(json.dumps(record, indent=2) + "\n")
    images = [cascade.sample(SHOWN).images for cascade in cascades.values()]
    labels = [f"{label}: {prompt}" for label in NAMES.values() for prompt in SHOWN]
    grid = labelled_grid(np.concatenate(images), labels, columns=len(SHOWN), scale=2)
    grid.save(args.output / "images.png")


if __name__ == "__main__":
    main()
