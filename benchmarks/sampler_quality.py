"""Quality against steps for each sampler, measured on a cascade that was trained on scenes.

    python -m benchmarks.sampler_quality --output runs/sampler_quality --count 64
    python -m benchmarks.sampler_quality --output runs/sampler_quality --plot docs/sampling

Samples the same held-out prompts from the same noise with every sampler and number of steps of one
stage, and scores how many pictures are right in everything. What is done is kept in
OUTPUT/results.jsonl, line by line: the same command goes on where it was stopped. Heun's method
calls the network twice a step; the plot is over calls. docs/sampling.md shows it.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

from imagen_jax.cascade import Cascade
from imagen_jax.data.scenes.grammar import caption
from imagen_jax.data.scenes.levels import get_level
from imagen_jax.data.scenes.sampling import sample_scene
from imagen_jax.diffusion.samplers import SAMPLERS
from imagen_jax.eval.alignment import alignment_report

SEED = 2_000_000
STEPS = (2, 3, 4, 6, 8, 12, 16, 24, 32, 48)


def measure(args: argparse.Namespace, results: Path) -> None:
    """Measures what is not in results yet, and adds it there."""
    done = {tuple(row["key"]) for row in read(results)}
    cascade = Cascade.load(args.workdir)
    level = get_level(cascade.source["train"]["level"])
    stage = args.stage or cascade.stages[0].name
    scenes = [sample_scene(level, "heldout", SEED, i, 1 + i % 2) for i in range(args.count)]
    prompts = [caption(scene) for scene in scenes]
    seeds = [SEED + i for i in range(args.count)]
    for sampler in args.samplers:
        for steps in args.steps:
            key = (stage, sampler, args.time_grid, steps, args.count)
            if key in done:
                continue
            overrides: dict[str, Any] = {"sampler": {stage: sampler}, "steps": {stage: steps}}
            if args.time_grid:
                overrides["time_grid"] = {stage: args.time_grid}
            start = time.perf_counter()
            samples = cascade.sample_each(prompts, seeds, show_progress=False, **overrides)
            report = alignment_report(scenes, samples.images, level)["pictures"]["all_correct"]
            row = {"key": key, "seconds": time.perf_counter() - start} | report
            with results.open("a") as file:
                file.write(json.dumps(row) + "\n")
            print(f"{stage} {sampler:<14}{steps:>4} steps: {100 * report['accuracy']:5.1f}% "
                  f"({row['seconds']:.0f} s)", flush=True)  # fmt: skip


def read(results: Path) -> list[dict[str, Any]]:
    """Rows that were measured."""
    if not results.is_file():
        return []
    return [json.loads(line) for line in results.read_text().splitlines() if line]


def plot(rows: list[dict[str, Any]], output: Path) -> None:
    """Draws accuracy over calls of the network, with 95% intervals; one plot for each stage."""
    import matplotlib.pyplot as plt

    output.mkdir(parents=True, exist_ok=True)
    for stage in sorted({row["key"][0] for row in rows}):
        figure, axes = plt.subplots(figsize=(7, 4.2), layout="constrained")
        of_stage = [row for row in rows if row["key"][0] == stage]
        for name, grid in sorted({(row["key"][1], row["key"][2] or "") for row in of_stage}):
            chosen = [r for r in of_stage if (r["key"][1], r["key"][2] or "") == (name, grid)]
            chosen.sort(key=lambda row: row["key"][3])
            steps = [row["key"][3] for row in chosen]
            calls = [2 * n - 1 if name == "heun" else n for n in steps]
            label = f"{name}, {grid}" if grid else name
            (line,) = axes.plot(
                calls, [100 * r["accuracy"] for r in chosen], "o-", ms=3, label=label
            )
            axes.fill_between(
                calls,
                [100 * row["low"] for row in chosen],
                [100 * row["high"] for row in chosen],
                color=line.get_color(),
                alpha=0.12,
                linewidth=0,
            )
        axes.set_xscale("log", base=2)
        axes.xaxis.set_major_formatter("{x:.0f}")
        axes.set_xlabel(f"calls of the network of stage {stage}")
        axes.set_ylabel("held-out prompts, everything right (%)")
        axes.set_ylim(0, 100)
        axes.grid(alpha=0.3)
        axes.legend(frameon=False)
        axes.set_title(f"{of_stage[0]['n']} prompts with one or two objects; bands: 95% intervals",
                       fontsize=10)  # fmt: skip
        figure.savefig(output / f"sampler_quality_{stage}.png", dpi=130)


def main() -> None:
    """Measures, and plots if told where to."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--workdir", help="of a cascade trained on scenes (default: the demo)")
    parser.add_argument("--output", required=True, help="directory of results.jsonl")
    parser.add_argument("--count", type=int, default=64, help="prompts")
    parser.add_argument("--stage", help="whose sampler varies (default: the first)")
    parser.add_argument("--samplers", nargs="+", default=list(SAMPLERS), choices=list(SAMPLERS))
    parser.add_argument("--steps", nargs="+", type=int, default=list(STEPS))
    parser.add_argument("--time-grid", help="in place of the config's")
    parser.add_argument("--plot", metavar="DIR", help="only draw what was measured")
    args = parser.parse_args()
    results = Path(args.output) / "results.jsonl"
    if args.plot:
        plot(read(results), Path(args.plot))
        return
    results.parent.mkdir(parents=True, exist_ok=True)
    measure(args, results)


if __name__ == "__main__":
    main()
