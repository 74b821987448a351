"""Cost and savings of int8 states against bfloat16: bytes, cosine, and the demo cascade's scores.

    python -m benchmarks.int8_states --count 128

The states of MiniLM are stored and read back as an embedding directory does it. The same held-out
prompts with the same noise are then sampled by the demo cascade from each. docs/data.md shows it.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import ml_dtypes
import numpy as np

from imagen_jax.cascade import Cascade
from imagen_jax.checkpoints.cascades import open_cascade
from imagen_jax.data.records import quantise
from imagen_jax.data.scenes import caption, get_level, sample_scene
from imagen_jax.eval.alignment import alignment_report
from imagen_jax.text.encoder import TextEncoder

SEED = 1_000_000


def read_back(states: np.ndarray, kind: str) -> np.ndarray:
    """States [l, d] float32 after storage, in float32."""
    if kind == "int8":
        numbers, scale = quantise(states.astype(ml_dtypes.bfloat16))
        states = numbers * scale[:, None]
    if kind != "float32":
        states = states.astype(ml_dtypes.bfloat16)
    return states.astype(np.float32)


@dataclass(frozen=True, eq=False)
class Stored(TextEncoder):
    """An encoder whose states have been stored."""

    kind: str = "float32"

    def encode_tokens(
        self,
        tokens: Sequence[np.ndarray],
        on_progress: Callable[[int], None] = lambda captions: None,
    ) -> list[np.ndarray]:
        """As TextEncoder's, then stored and read back."""
        return [read_back(row, self.kind) for row in super().encode_tokens(tokens, on_progress)]


def main() -> None:
    """Prints both tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--count", type=int, default=128, help="prompts of each kind")
    count = parser.parse_args().count
    demo = Cascade.load(None)
    level = get_level(demo.source["train"]["level"])
    scenes = {
        groups: [sample_scene(level, "heldout", SEED, i, groups) for i in range(count)]
        for groups in (1, 2)
    }
    captions = [caption(scene) for of_groups in scenes.values() for scene in of_groups]
    exact = np.concatenate(demo.encoder.encode_tokens(demo.encoder.tokenize(captions)))
    width = exact.shape[1]
    print(f"{len(captions)} captions, {len(exact) / len(captions):.1f} tokens of {width} channels")
    print(f"{'stored as':<12}{'B/caption':>12}{'mean cosine':>14}{'least':>12}{'one':>8}{'two':>8}")
    for kind in ("float32", "bfloat16", "int8"):
        stored = read_back(exact, kind)
        norms = np.linalg.norm(stored, axis=1) * np.linalg.norm(exact, axis=1)
        cosine = np.sum(stored * exact, axis=1) / norms
        per_token = {"float32": 4 * width, "bfloat16": 2 * width, "int8": width + 4}[kind]
        fields = {name: getattr(demo.encoder, name) for name in TextEncoder.__dataclass_fields__}
        encoder = Stored(**fields, kind=kind)
        cascade = Cascade(open_cascade(None), lambda encoder=encoder: encoder)
        right = []
        for of_groups in scenes.values():
            prompts = [caption(scene) for scene in of_groups]
            samples = cascade.sample(prompts, seed=range(count), show_progress=False)
            report = alignment_report(of_groups, samples.images, level)
            right.append(100 * report["images"]["all_correct"]["accuracy"])
        print(
            f"{kind:<12}{per_token * len(exact) / len(captions):>12.0f}{cosine.mean():>14.6f}"
            f"{cosine.min():>12.6f}{right[0]:>7.1f}%{right[1]:>7.1f}%",
            flush=True,
        )


if __name__ == "__main__":
    main()
