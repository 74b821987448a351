"""How fast variants of a stage learn: loss by noise level over steps and seconds, side by side.

    python -m benchmarks.learning_curve --data runs/quickstart/embeddings --steps 300 \
        --variant shipped \
        --variant adam stages.base.train.optimizer=adam stages.base.train.learning_rate=1e-3 \
        --variant "predicts x0" stages.base.diffusion.parametrization=x0

Each variant is the config with the given changes. They take turns of a few steps, so that what else
the machine does falls on all of them alike; the learning-rate schedule is that of the whole run
(train.steps), of which the first --steps are taken. The losses of variants with another weighting
cannot be compared.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from imagen_jax import sharding
from imagen_jax.config import load_config
from imagen_jax.data.iterator import BatchIterator, train_batches
from imagen_jax.stage import Stage, make_stage
from imagen_jax.train.metrics import summarise
from imagen_jax.train.optimizer import make_optimizer
from imagen_jax.train.state import count_parameters, create_state
from imagen_jax.train.step import make_train_step


def open_batches(stage: Stage, data: str) -> BatchIterator:
    """The training batches of a stage, as `imagen train` reads them on one host."""
    return train_batches(
        data,
        image_size=stage.resolution,
        low_res_size=stage.low_res,
        text_length=stage.text.max_length,
        batch_size=stage.train.batch_size,
        seed=stage.train.seed,
        text_width=stage.text.width,
    )


class Variant:
    """One variant: its state, and what it has cost and learned so far."""

    def __init__(self, name: str, config: ConfigDict, stage_name: str, data: str):
        """Args:
        name: how it is called in the table.
        config: as load_config returns it.
        stage_name: key of config.stages.
        data: embeddings written by `imagen embed`.
        """
        stage = make_stage(config, stage_name)
        optimizer = make_optimizer(stage.train)
        self.name = name
        self.batches = open_batches(stage, data)
        self.state = create_state(stage, optimizer, sharding.make_mesh())
        self.step = jax.jit(make_train_step(stage, optimizer), donate_argnums=0)
        self.parameters = count_parameters(self.state.params)
        self.seconds = 0.0
        self.curve: list[dict[str, float]] = []

    def advance(self, steps: int) -> None:
        """Takes steps, timing all but the first ever, which compiles."""
        metrics: list[Any] = []
        for _ in range(steps):
            batch = {name: jnp.asarray(value) for name, value in next(self.batches).items()}
            start = time.perf_counter()
            self.state, found = self.step(self.state, batch)
            metrics.append(jax.device_get(found))
            if int(self.state.step) > 1:
                self.seconds += time.perf_counter() - start
        row = {"step": int(self.state.step), "seconds": self.seconds}
        self.curve.append(row | summarise(metrics))


def print_table(variants: list[Variant]) -> None:
    """The last row of every curve, and the time of a step beside that of the first variant."""
    columns = sorted({key for v in variants for key in v.curve[-1] if key.startswith("loss_")},
                     key=lambda key: float(key.split("_")[2]))  # fmt: skip
    heads = [column.removeprefix("loss_logsnr_").replace("_", "..") for column in columns]
    print(f"{'variant':<24}{'params':>8}{'ms/step':>9}{'ratio':>7}{'loss':>9}"
          + "".join(f"{head:>10}" for head in heads))  # fmt: skip
    pace = [v.seconds / (v.curve[-1]["step"] - 1) for v in variants]
    for variant, seconds in zip(variants, pace, strict=True):
        last = variant.curve[-1]
        print(
            f"{variant.name:<24}{variant.parameters / 1e6:>7.1f}M{1e3 * seconds:>9.0f}"
            f"{seconds / pace[0]:>7.2f}{last['loss']:>9.4f}"
            + "".join(f"{last.get(column, np.nan):>10.4f}" for column in columns)
        )


def main() -> None:
    """Prints a table after every round, and writes the curves."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--config", default="quickstart", help="default: %(default)s")
    parser.add_argument("--stage", default="base", help="default: %(default)s")
    parser.add_argument("--data", required=True, help="what `imagen embed` wrote")
    parser.add_argument("--steps", type=int, default=300, help="of each (default: %(default)s)")
    parser.add_argument("--round", type=int, default=50, help="steps of a turn (%(default)s)")
    parser.add_argument(
        "--variant",
        nargs="+",
        action="append",
        required=True,
        metavar=("NAME", "KEY=VALUE"),
        help="a name and changes to the config; may be given several times",
    )
    parser.add_argument("--output", type=Path, help="JSON file for the curves")
    args = parser.parse_args()
    variants = [
        Variant(name, load_config(args.config, changes), args.stage, args.data)
        for name, *changes in args.variant
    ]
    for end in range(args.round, args.steps + 1, args.round):
        for variant in variants:
            variant.advance(args.round)
        print(f"\nafter {end} steps; mean loss of the last {args.round}, by logsnr")
        print_table(variants)
        if args.output is not None:
            curves = {variant.name: variant.curve for variant in variants}
            args.output.write_text(json.dumps(curves, indent=2) + "\n")


if __name__ == "__main__":
    main()
