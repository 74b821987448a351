"""Quality against steps for each sampler: draws what sweeps over them have measured.

    imagen evaluate sweep --sweep 'base.sampler=ddpm,ddim,dpmpp_2m,dpmpp_2m(sde=true),heun' \\
        --sweep base.steps=2,3,4,6,8,12,16,24,32 --count 64 --output runs/sampler_quality/base
    python -m benchmarks.sampler_quality runs/sampler_quality/base docs/sampling/base.png

Heun's method calls the network twice a step; the plot is over calls. docs/sampling.md shows it.
"""

from __future__ import annotations

import argparse
import csv
from pathlib import Path

from imagen_jax.eval.sweep import TABLE


def calls(row: dict[str, str]) -> int:
    """Calls of the network for one image; Heun's last step, to no noise, needs one."""
    steps = int(row["steps"])
    return 2 * steps - 1 if row["sampler"] == "heun" else steps


def plot(rows: list[dict[str, str]], output: Path) -> None:
    """Draws the share of right images, with 95% intervals, and the kernel distance."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10.5, 4.2), layout="constrained", dpi=130)
    right, distance = figure.subplots(1, 2)
    for name in dict.fromkeys(row["sampler"] for row in rows):
        chosen = sorted((row for row in rows if row["sampler"] == name), key=calls)
        x = [calls(row) for row in chosen]
        value, low, high = (
            [100 * float(row[f"alignment{end}"]) for row in chosen] for end in ("", "_low", "_high")
        )
        (line,) = right.plot(x, value, "o-", ms=4, label=name)
        right.fill_between(x, low, high, color=line.get_color(), alpha=0.08, linewidth=0)
        distance.plot(x, [float(row["kernel"]) for row in chosen], "o-", ms=4, label=name)
    right.set_ylabel("everything right, %")
    right.set_ylim(0, 102)
    title = rows[0]["distance_of"].replace("Fréchet", "Kernel")
    distance.set_ylabel(f"{title} (lower is better)")
    distance.set_ylim(0, 1.1 * max(float(row["kernel"]) for row in rows))
    for axis in (right, distance):
        axis.set_xscale("log", base=2)
        axis.xaxis.set_major_formatter("{x:.0f}")
        axis.set_xlabel(f"calls of the network; {rows[0]['count']} images")
        axis.spines[["top", "right"]].set_visible(False)
        axis.grid(alpha=0.2)
    right.legend(frameon=False, fontsize=9)
    output.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(output)


def main() -> None:
    """Reads a sweep, and draws it."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("sweep", help="directory of a sweep over samplers and steps")
    parser.add_argument("plot", help="PNG to write")
    args = parser.parse_args()
    with open(Path(args.sweep) / TABLE, newline="") as file:
        rows = list(csv.DictReader(file))
    # Without the name of the stage: base.steps is steps.
    plot([{key.rpartition(".")[2]: row[key] for key in row} for row in rows], Path(args.plot))


if __name__ == "__main__":
    main()
