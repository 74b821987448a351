"""Curves, scores and images of a cascade trained on the built-in scenes, as docs/demo.md shows.

    python -m benchmarks.demo_figures --workdir runs/demo --output docs/demo

Reads the logs of `imagen train`, what `imagen evaluate scenes` wrote to <workdir>/evaluation, and
what `imagen sample` wrote to <workdir>/samples.
"""

from __future__ import annotations

import argparse
import json
import shutil
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.util import tensor_util

STAGES = ("base", "sr")
BARS = ("images", "ceiling", "floor")
TITLES = {
    "seen-one": "seen, one object",
    "seen-two": "seen, two objects",
    "heldout-one": "held out, one object",
    "heldout-two": "held out, two objects",
    "unseen-words": "unseen words",
}


def read_scalar(logs: Path, name: str) -> np.ndarray:
    """[n, 2] steps and values of a scalar that training logged, in the order of steps.

    Raises:
      FileNotFoundError: no logs there.
    """
    events = EventAccumulator(str(logs), size_guidance={"tensors": 0}).Reload()
    if name not in events.Tags()["tensors"]:
        raise FileNotFoundError(f"no scalar {name!r} in {logs}; imagen train writes it")
    found = {e.step: float(tensor_util.make_ndarray(e.tensor_proto)) for e in events.Tensors(name)}
    return np.array(sorted(found.items()))


def plot_losses(workdir: Path, output: Path) -> None:
    """Loss of each stage over its steps."""
    figure, axes = plt.subplots(1, len(STAGES), figsize=(9, 3.2), layout="constrained")
    for axis, stage in zip(axes, STAGES, strict=True):
        steps, loss = read_scalar(workdir / stage / "logs", "loss").T
        axis.plot(steps, loss, linewidth=1)
        axis.set(title=stage, xlabel="step", ylabel="training loss", yscale="log")
        axis.grid(alpha=0.3, which="both")
    figure.savefig(output / "loss.png", dpi=110)


def table(scores: dict) -> str:
    """All scores in percent, as a table in Markdown."""
    columns = ("object", "colour", "count", "style", "relation")
    titles = ("prompts", "all correct (95%)", *columns, "real images", "shuffled captions")
    lines = [f"| {' | '.join(titles)} |", "| :--- |" + " ---: |" * (len(titles) - 1)]
    for name, report in scores.items():
        right = report["images"]["all_correct"]
        cells = [
            f"{100 * right['accuracy']:.1f} ({100 * right['low']:.0f}-{100 * right['high']:.0f})"
        ]
        for column in columns:
            found = report["images"].get(column)
            cells.append("-" if found is None else f"{100 * found['accuracy']:.0f}")
        cells += [f"{100 * report[bar]['all_correct']['accuracy']:.0f}" for bar in BARS[1:]]
        lines.append(f"| {TITLES[name]} | {' | '.join(cells)} |")
    return "\n".join(lines)


def plot_alignment(scores: dict, output: Path) -> None:
    """Share of images with everything right, with 95% intervals."""
    figure, axis = plt.subplots(figsize=(9, 3.4), layout="constrained")
    for i, bar in enumerate(BARS):
        rows = [report[bar]["all_correct"] for report in scores.values()]
        height = 100 * np.array([row["accuracy"] for row in rows])
        low, high = (100 * np.array([row[end] for row in rows]) for end in ("low", "high"))
        x = np.arange(len(rows)) + 0.27 * (i - 1)
        label = {"images": "cascade", "ceiling": "real images", "floor": "shuffled captions"}
        error = np.maximum([height - low, high - height], 0)
        bars = axis.bar(x, height, 0.25, yerr=error, capsize=3, label=label[bar])
        axis.bar_label(bars, fmt="%.0f", padding=2, fontsize=8)
    axis.set_xticks(range(len(scores)), [TITLES[name] for name in scores])
    axis.set(ylabel="all correct, %", ylim=(0, 112))
    axis.legend(ncols=3, loc="upper center", bbox_to_anchor=(0.5, -0.12), frameon=False)
    figure.savefig(output / "alignment.png", dpi=110)


def main() -> None:
    """Writes all figures, and prints the table of scores."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--workdir", type=Path, default=Path("runs/demo"))
    parser.add_argument("--output", type=Path, default=Path("docs/demo"))
    args = parser.parse_args()
    args.output.mkdir(parents=True, exist_ok=True)
    evaluation = args.workdir / "evaluation"
    record = json.loads((evaluation / "scores.json").read_text())
    plot_losses(args.workdir, args.output)
    plot_alignment(record["scores"], args.output)
    print(table(record["scores"]))
    for name in record["scores"]:
        shutil.copy(evaluation / f"{name}.png", args.output / f"{name}.png")
    shutil.copy(evaluation / "scores.json", args.output / "scores.json")
    shutil.copy(args.workdir / "samples" / "grid.png", args.output / "grid.png")


if __name__ == "__main__":
    main()
