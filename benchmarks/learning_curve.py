"""Learning curves of variants of a stage: errors over steps, CPU seconds and FLOPs, side by side.

    imagen embed --scenes quickstart --count 1000 --split validation \
        --output runs/quickstart/embeddings
    python -m benchmarks.learning_curve --data runs/quickstart/embeddings --steps 300 \
        --variant shipped \
        --variant adam stages.base.train.optimizer=adam stages.base.train.learning_rate=1e-3 \
        --variant "predicts x0" stages.base.diffusion.parametrization=x0 --output runs/curves

Each variant is the config with the given changes. They take turns of a few steps, so that what else
the machine does falls on all of them alike; the learning-rate schedule is that of the whole run
(train.steps), of which the first --steps are taken.

The losses of variants with another weighting cannot be compared. Errors can: of the estimates of x0
that the averaged weights make, clipped to [-1, 1] as in sampling, on images kept from training,
at the noise levels of TIMES of the first variant's schedule, with the same noise for all.

Interrupted, the same command resumes after the last round that it finished.
"""

from __future__ import annotations

import argparse
import csv
import functools
import json
import re
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
from matplotlib.ticker import FormatStrFormatter, LogLocator, NullLocator
from ml_collections import ConfigDict
from tqdm import tqdm

from imagen_jax import sharding
from imagen_jax.checkpoints.writing import Checkpointer
from imagen_jax.config import load_config, to_plain
from imagen_jax.data.iterator import BatchIterator
from imagen_jax.diffusion.parametrization import diffuse, to_x0
from imagen_jax.eval.metrics.intervals import Z95
from imagen_jax.files import differences, write_json
from imagen_jax.stage import Stage, make_stage
from imagen_jax.stage_config import VALIDATION_LOSS
from imagen_jax.train.start import open_batches
from imagen_jax.train.state import TrainState, abstract_state, count_parameters, create_state
from imagen_jax.train.step import Batch, batch_conditioning, make_train_step, model_flops
from imagen_jax.typing import TextEmbedding

TIMES = np.linspace(0.1, 0.9, 9)
"""Noise levels at which errors are measured."""
HELD_OUT = 256
"""Images that errors are measured on, at least: whole batches of them."""


def x0_error(
    stage: Stage, params: Any, batch: Batch, level: jax.Array, key: jax.Array
) -> jax.Array:
    """Mean squared error [b] of the clipped estimates of x0 at one noise level.

    Args:
      level: logsnr, scalar.
      key: key of the noise.
    """
    text = TextEmbedding(batch["text_emb"].astype(jnp.float32), batch["text_mask"])
    noise_key, condition_key = jax.random.split(key)
    x0 = batch["image"]
    logsnr = jnp.full(x0.shape[0], level)
    x_t = diffuse(x0, jax.random.normal(noise_key, x0.shape), logsnr)
    conditioning = batch_conditioning(stage, batch, text, condition_key)
    prediction = stage.apply(params, x_t, logsnr, conditioning)
    estimate = jnp.clip(to_x0(stage.parametrization, prediction, x_t, logsnr), -1, 1)
    return jnp.mean((estimate - x0) ** 2, axis=(1, 2, 3))


class Kept:
    """The state of a variant and its curve on disk."""

    def __init__(self, directory: Path, config: Any):
        """Args:
        directory: directory of the variant.
        config: plain; of another one nothing is taken.
        """
        self._checkpointer = Checkpointer(
            directory, keep=1, keep_every_hours=0, keep_best=0, best_metric=VALIDATION_LOSS,
            report=print,
        )  # fmt: skip
        self._record, self._config = directory / "curve.json", config

    def save(
        self, state: TrainState, batches: BatchIterator, curve: list[dict[str, float]]
    ) -> None:
        """Keeps both, the curve first: killed in between, there is a row too many."""
        write_json(self._record, {"config": self._config, "curve": curve})
        self._checkpointer.save(int(state.step), state.items(), batches.position())
        self._checkpointer.wait()

    def restore(
        self, shapes: Any, batches: BatchIterator
    ) -> tuple[TrainState | None, list[dict[str, float]]]:
        """(state, curve), None and empty at first; moves the batches to where they were.

        Raises:
          ValueError: they are of another config.
        """
        saved = self._checkpointer.restore(shapes.items(), fall_back=False)
        if saved is None:
            return None, []
        batches.restore(saved.position)
        state = shapes.with_items(saved.items)
        found = json.loads(self._record.read_text())
        if lines := differences(found["config"], self._config):
            raise ValueError(
                f"{self._record} is of another config (there != wanted); delete its folder "
                "to begin again:\n  " + "\n  ".join(lines[:5])
            )
        return state, [row for row in found["curve"] if row["step"] <= int(state.step)]


class Variant:
    """One variant: its state, and what it has cost and learned so far."""

    def __init__(
        self, name: str, config: ConfigDict, stage_name: str, data: str, directory: Path | None
    ):
        """Args:
        name: how it is called in the table.
        config: as load_config returns it.
        stage_name: key of config.stages.
        data: embeddings written by `imagen embed`, with the splits train and validation.
        directory: where state and curve are kept, and found again; None is nowhere.

        Raises:
          ValueError: the directory has the curve of another config.
        """
        self.name = name
        self.stage = make_stage(config, stage_name)
        mesh = sharding.make_mesh()
        self.batches = open_batches(self.stage, data, mesh)
        self.held_out = open_batches(self.stage, data, mesh, "validation")
        self.flops = model_flops(self.stage)
        self.curve: list[dict[str, float]] = []
        self._kept = None if directory is None else Kept(directory, to_plain(config))
        state = None
        if self._kept is not None:
            shapes, _ = abstract_state(self.stage, mesh)
            state, self.curve = self._kept.restore(shapes, self.batches)
        self.state = create_state(self.stage, mesh) if state is None else state
        self.parameters = count_parameters(self.state.params)
        self._step = jax.jit(make_train_step(self.stage), donate_argnums=0)
        self._compiled: Any = None
        self._error = jax.jit(functools.partial(x0_error, self.stage))

    @property
    def steps(self) -> int:
        """Steps taken so far."""
        return int(self.state.step)

    def advance(self, steps: int, levels: np.ndarray) -> None:
        """Takes steps, measures the errors at the noise levels, and keeps what there is then."""
        losses = []
        seconds = self.curve[-1]["seconds"] if self.curve else 0.0
        for _ in tqdm(range(steps), desc=self.name, unit="step", leave=False):
            batch = {name: jnp.asarray(value) for name, value in next(self.batches).items()}
            if self._compiled is None:
                self._compiled = self._step.lower(self.state, batch).compile()
            start = time.process_time()
            self.state, found = self._compiled(self.state, batch)
            losses.append(float(found["loss"]))
            seconds += time.process_time() - start
        row = {"step": self.steps, "seconds": seconds, "flops": self.flops * self.steps}
        self.curve.append(row | {"loss": float(np.mean(losses))} | self.errors(levels))
        if self._kept is not None:
            self._kept.save(self.state, self.batches, self.curve)

    def errors(self, levels: np.ndarray) -> dict[str, float]:
        """Errors of x0 on images kept from training: mean over all levels with its 95% interval
        over the images, and at every level."""
        self.held_out.seek(0)
        rows = []
        for index in range(-(-HELD_OUT // self.stage.train.batch_size)):
            batch = {name: jnp.asarray(value) for name, value in next(self.held_out).items()}
            keys = jax.random.split(jax.random.key(index), len(levels))
            rows.append([self._error(self.state.ema, batch, level, key)
                         for level, key in zip(levels, keys, strict=True)])  # fmt: skip
        self.held_out.close()
        errors = np.concatenate(jax.device_get(rows), axis=1)  # [levels, images]
        each = errors.mean(axis=0)
        mean, half = each.mean(), Z95 * each.std(ddof=1) / np.sqrt(len(each))
        at_levels = zip(levels, errors.mean(axis=1), strict=True)
        return {
            "error": float(mean),
            "error_low": float(mean - half),
            "error_high": float(mean + half),
            **{f"error_logsnr_{level:.2f}": float(error) for level, error in at_levels},
        }


def by_level(row: dict[str, float]) -> dict[float, float]:
    """logsnr -> error of a row, the noisiest first."""
    prefix = "error_logsnr_"
    found = {float(k.removeprefix(prefix)): v for k, v in row.items() if k.startswith(prefix)}
    return dict(sorted(found.items()))


def print_table(variants: Sequence[Variant]) -> None:
    """The last row of every curve, and the CPU time of a step beside that of the first variant."""
    heads = [f"{level:.1f}" for level in by_level(variants[0].curve[-1])]
    print(f"{'variant':<24}{'params':>8}{'GFLOPs':>8}{'CPU ms':>9}{'ratio':>7}{'loss':>9}"
          f"{'error':>9}" + "".join(f"{head:>9}" for head in heads))  # fmt: skip
    pace = [v.curve[-1]["seconds"] / v.steps for v in variants]
    for variant, seconds in zip(variants, pace, strict=True):
        last = variant.curve[-1]
        print(
            f"{variant.name:<24}{variant.parameters / 1e6:>7.1f}M{variant.flops / 1e9:>8.1f}"
            f"{1e3 * seconds:>9.0f}{seconds / pace[0]:>7.2f}{last['loss']:>9.4f}"
            f"{last['error']:>9.4f}" + "".join(f"{e:>9.4f}" for e in by_level(last).values())
        )


def write(variants: Sequence[Variant], output: Path) -> None:
    """Writes <output>/curves.csv, a line for every variant and round, and curves.png."""
    with open(output / "curves.csv", "w", newline="") as file:
        levels = [f"error_logsnr_{level:.2f}" for level in by_level(variants[0].curve[0])]
        fields = ["variant", "parameters", "step", "seconds", "flops", "loss", "error",
                  "error_low", "error_high", *levels]  # fmt: skip
        writer = csv.DictWriter(file, fields, lineterminator="\n")
        writer.writeheader()
        for variant in variants:
            for row in variant.curve:
                named = {"variant": variant.name, "parameters": variant.parameters}
                writer.writerow(named | {k: f"{v:.6g}" for k, v in row.items()})
    figure, axes = plt.subplots(1, 4, figsize=(15, 4.2), layout="constrained", sharey=True)
    for variant in variants:
        errors, low, high = (np.array([row[key] for row in variant.curve])
                             for key in ("error", "error_low", "error_high"))  # fmt: skip
        units = {"step": 1, "seconds": 1, "flops": 1e12}
        for axis, (key, unit) in zip(axes, units.items(), strict=False):
            over = [row[key] / unit for row in variant.curve]
            (line,) = axis.plot(over, errors, marker="o", markersize=3, label=variant.name)
            axis.fill_between(over, low, high, color=line.get_color(), alpha=0.15, linewidth=0)
        levels = by_level(variant.curve[-1])
        axes[3].plot(list(levels), list(levels.values()), marker="o", markersize=3)
    for axis, label in zip(
        axes, ("steps", "CPU seconds of training", "TFLOPs of training", "logsnr, at the end"),
        strict=True,
    ):  # fmt: skip
        axis.set(xlabel=label, yscale="log")
        axis.yaxis.set_major_locator(LogLocator(subs=(1, 1.5, 2, 3, 4, 5, 7)))
        axis.yaxis.set_major_formatter(FormatStrFormatter("%.3g"))
        axis.yaxis.set_minor_locator(NullLocator())
        axis.grid(alpha=0.3)
        axis.spines[["top", "right"]].set_visible(False)
    axes[0].set_ylabel("mean squared error of x0, held-out images")
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside upper center",
                  ncols=len(variants), frameon=False)  # fmt: skip
    figure.savefig(output / "curves.png", dpi=110)
    plt.close(figure)


def main() -> None:
    """Prints a table after every round, and writes the curves."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--config", default="quickstart", help="default: %(default)s")
    parser.add_argument("--stage", default="base", help="default: %(default)s")
    parser.add_argument(
        "--data", required=True, help="what `imagen embed` wrote: the splits train and validation"
    )
    parser.add_argument("--steps", type=int, default=300, help="of each (default: %(default)s)")
    parser.add_argument("--round", type=int, default=50, help="steps of a turn (%(default)s)")
    parser.add_argument(
        "--variant",
        nargs="+",
        action="append",
        required=True,
        metavar=("NAME", "KEY=VALUE"),
        help="a name and changes to the config; also config=FILE, data=DIR and stage=NAME, for "
        "this variant in place of --config, --data and --stage; may be given several times",
    )
    parser.add_argument(
        "--output", type=Path, help="folder for curves.csv, curves.png and the variants' states"
    )
    args = parser.parse_args()
    variants = []
    for name, *changes in args.variant:
        folder = None if args.output is None else args.output / re.sub(r"\W+", "-", name)
        own = {"config": args.config, "data": args.data, "stage": args.stage}
        own |= dict(c.split("=", 1) for c in changes if c.partition("=")[0] in own)
        changes = [c for c in changes if c.partition("=")[0] not in own]
        config = load_config(own["config"], changes)
        variants.append(Variant(name, config, own["stage"], own["data"], folder))
    levels = np.asarray(variants[0].stage.schedule.logsnr(jnp.asarray(TIMES)))
    for end in range(args.round, args.steps + 1, args.round):
        waiting = [variant for variant in variants if variant.steps < end]
        for variant in waiting:
            variant.advance(end - variant.steps, levels)
        if waiting:
            print(f"\nafter {end} steps; mean loss of the last {args.round}, error by logsnr")
            print_table(variants)
    if args.output is not None:
        write(variants, args.output)


if __name__ == "__main__":
    main()
