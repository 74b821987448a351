"""Sweeps over sampling settings: distance against alignment, and which settings are best at both.

<output>/<settings>/     one job each, see job.py: images, features, scores.json, report.html
<output>/real/           features of the real images, shared by all
<output>/sweep.csv       a line for each
<output>/sweep.png       the curves
"""

from __future__ import annotations

import csv
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np

from imagen_jax.cascade import Axis, Cascade, Settings, combinations
from imagen_jax.cascade.sweep import check_not_given, label_of
from imagen_jax.errors import UserError
from imagen_jax.eval.measure import ALL, Instruments
from imagen_jax.eval.protocols import Work, run
from imagen_jax.files import atomic_path, output_folder

TABLE, CHART = "sweep.csv", "sweep.png"


def sweep(
    cascade: Cascade,
    work: Work,
    instruments: Instruments,
    output: str | Path,
    axes: Sequence[Axis],
    *,
    seed: int = 0,
    process: tuple[int, int] = (0, 1),
    fixed: Settings | None = None,
) -> list[dict[str, Any]]:
    """Sample the same prompts from the same noise under all combinations of settings.

    What is done is kept, so that a sweep resumes where it was killed, and can be widened.

    Args:
      cascade, work, instruments, seed: as protocols.run; `work` must have real images.
      output: directory.
      axes: settings and their values. Strong guidance of super-resolution only spoils colours: give
        an axis over guidance the first stage.
      process: (which of several processes this is, how many there are); each takes whole
        combinations.
      fixed: settings that are the same for all.

    Returns:
      The lines of sweep.csv of all combinations that are done.

    Raises:
      UserError: as run; work without real images, or nothing to measure alignment with.
    """
    if work.real is None:
        raise UserError(f"{work.suite.name} has no real images to measure a distance from")
    if work.level is None and instruments.clip is None:
        raise UserError("alignment of prompts that are no scenes needs CLIP: give its weights")
    output = output_folder(output)
    fixed = fixed or {}
    check_not_given(axes, fixed)
    chosen = combinations(axes)
    for combination in chosen:  # what is wrong with one should not show after hours
        cascade.settings(**(fixed | cast("Settings", combination.settings)))
    for combination in chosen[process[0] :: process[1]]:
        name = name_of(combination.values)
        print(f"{name} ({chosen.index(combination) + 1} of {len(chosen)})", flush=True)
        run(
            cascade, work, instruments, output / name, seed=seed,
            real_features=output / "real", settings=fixed | cast("Settings", combination.settings),
        )  # fmt: skip
    rows = []
    for combination in chosen:
        path = output / name_of(combination.values) / "scores.json"
        if path.is_file():
            rows.append(_row(combination.values, json.loads(path.read_bytes())["scores"]))
    if not rows:  # this process has no share, and the others have not finished theirs
        return []
    best = pareto([(row["distance"], row["alignment"]) for row in rows])
    rows = [row | {"pareto": int(i in best)} for i, row in enumerate(rows)]
    with (
        atomic_path(output / TABLE) as temporary,
        open(temporary, "w", newline="", encoding="utf-8") as file,
    ):
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return rows


def name_of(values: Mapping[str, Any]) -> str:
    """Return the name of a combination's directory, such as base.guidance=2,steps=16."""
    return label_of(values, "=", ",")


def _row(settings: Mapping[str, Any], scores: Mapping[str, Any]) -> dict[str, Any]:
    distance = scores["distance"]["frechet"]
    if "alignment" in scores:
        of = scores["alignment"][ALL]["all_correct"]
        aligned = {"alignment": of["accuracy"], "alignment_low": of["low"],
                   "alignment_high": of["high"], "alignment_of": "everything right"}  # fmt: skip
    else:
        of = scores["clip"][ALL]
        aligned = {"alignment": of["mean"], "alignment_low": of["low"],
                   "alignment_high": of["high"], "alignment_of": "CLIP score"}  # fmt: skip
    clip = {} if "clip" not in scores else {"clip_score": scores["clip"][ALL]["mean"]}
    return {
        **settings,
        "distance_of": scores["distance"]["title"],
        "distance": distance["value"], "distance_low": distance["low"],
        "distance_high": distance["high"], "distance_floor": distance.get("floor", ""),
        "kernel": scores["distance"]["kernel"]["value"],
        **aligned, **clip,
        "count": scores["count"],
    }  # fmt: skip


def pareto(points: Sequence[tuple[float, float]]) -> set[int]:
    """Indices of points (distance, alignment) that no other beats in one without losing in the
    other."""
    array = np.array(points, float).reshape(-1, 2)
    distance, alignment = array.T
    beaten = (
        (distance[:, None] <= distance) & (alignment[:, None] >= alignment)
        & ((distance[:, None] < distance) | (alignment[:, None] > alignment))
    ).any(0)  # fmt: skip
    return set(np.flatnonzero(~beaten).tolist())
