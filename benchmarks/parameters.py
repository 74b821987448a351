"""Parameters of the paper's stages by resolution.

python -m benchmarks.parameters                      # prints the table of docs/paper-scale.md
"""

from __future__ import annotations

import collections
import re

import flax.linen as nn
import jax

from imagen_jax.config import load_config
from imagen_jax.stage import Stage, make_stage

STAGES = {"base64": 64, "sr256": 128, "sr1024": 128}
"""Pixels per side at the first level of residual blocks, as trained."""


def by_resolution(stage: Stage, first: int) -> dict[str, int]:
    """Parameters for each resolution of residual blocks, and what serves all of them."""
    params = nn.unbox(jax.eval_shape(stage.init, jax.random.key(0)))
    counted: dict[str, int] = collections.Counter()
    lowest = max(int(m[1]) for key in params if (m := re.match(r"down_(\d+)", key)))
    for key, tree in params.items():
        level = re.match(r"(?:down|up)_(\d+)", key)
        if level:
            where = f"{first >> int(level[1])}"
        elif key.startswith("middle"):
            where = f"{first >> lowest}"
        else:
            where = "conditioning" if key == "conditioning" else "first and last"
        counted[where] += sum(leaf.size for leaf in jax.tree.leaves(tree))
    return counted


def main() -> None:
    """Prints the table in Markdown."""
    tables = {
        name: by_resolution(make_stage(load_config(name), None), first)
        for name, first in STAGES.items()
    }
    rows = [str(128 >> i) for i in range(5)] + ["conditioning", "first and last"]
    print(f"| pixels | {' | '.join(tables)} |\n|---|{'--:|' * len(tables)}")
    for row in rows:
        cells = [f"{t[row] / 1e6:,.1f}" if t.get(row) else "" for t in tables.values()]
        print(f"| {row} | {' | '.join(cells)} |")
    print(f"| all | {' | '.join(f'{sum(t.values()) / 1e6:,.1f}' for t in tables.values())} |")


if __name__ == "__main__":
    main()
