"""The report on a job: scores beside their bounds, and the images, as one HTML file."""

from __future__ import annotations

import html
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from imagen_jax.data.scenes.levels import Level
from imagen_jax.eval import page
from imagen_jax.eval.alignment import score_all
from imagen_jax.eval.feature_sets import METRICS
from imagen_jax.eval.job import ImageStore
from imagen_jax.eval.measure import ALL, indices_by_category
from imagen_jax.eval.prompts import Suite

SHOWN = 24
TITLES = {
    "kernel": "kernel distance (squared MMD)",
    "precision": "precision",
    "recall": "recall",
    "density": "density",
    "coverage": "coverage",
}
BETTER = {"frechet": "lower", "kernel": "lower"}


def write_report(
    path: str | Path,
    title: str,
    facts: Mapping[str, str],
    scores: Mapping[str, Any],
    store: ImageStore,
    suite: Suite,
    level: Level | None,
    shown: int = SHOWN,
) -> None:
    """Writes the report.

    Args:
      path: the HTML file.
      title, facts: heading and facts of the report.
      scores: result of measure.measure.
      store, suite: the images and their prompts.
      level: level of the scenes, to mark images right or wrong; None if they are no scenes.
      shown: images of each category.
    """
    body = [f"<h1>{html.escape(title)}</h1>", page.facts(facts), _cards(scores)]
    if "alignment" in scores:
        body.append(_alignment(scores["alignment"]))
    if "clip" in scores:
        body.append(_clip(scores["clip"]))
    if "distance" in scores:
        body.append(_distance(scores["distance"]))
    body.append("<h2>Images</h2>")
    for category, members in indices_by_category(suite, len(store)).items():
        chosen = [int(i) for i in members[:shown]]
        images = [store.read(i, i + 1)[0] for i in chosen]
        prompts = [suite.prompts[i % len(suite.prompts)] for i in chosen]
        marks: list[bool | None] = [None] * len(chosen)
        scenes = [prompt.scene for prompt in prompts if prompt.scene is not None]
        if level is not None and len(scenes) == len(prompts):
            marks = [result["all_correct"] for result in score_all(scenes, images, level)]
        count = f"{len(members)}" if len(members) == len(chosen) else (
            f"the first {len(chosen)} of {len(members)}"
        )  # fmt: skip
        body.append(f"<h3>{html.escape(category)} <small>{count}</small></h3>")
        body.append(
            page.sheet(
                [
                    page.figure(image, prompt.text, mark)
                    for image, prompt, mark in zip(images, prompts, marks, strict=True)
                ]
            )
        )
    if store.side > page.SHOWN_SIDE:
        body.append(
            f'<p class="soft">Images are shown at {page.SHOWN_SIDE} of {store.side} pixels; '
            "those that were measured are in images/.</p>"
        )
    page.write_page(path, title, body)


def percent(row: Mapping[str, float]) -> str:
    """A share with its interval, in percent."""
    return f"{100 * row['accuracy']:.0f}% ({100 * row['low']:.0f}–{100 * row['high']:.0f})"


def _cards(scores: Mapping[str, Any]) -> str:
    cards = []
    if "alignment" in scores:
        of = scores["alignment"]
        row = {name: of[name]["all_correct"] for name in (ALL, "floor", "ceiling")}
        bounds = (
            f"95%: {100 * row[ALL]['low']:.0f}–{100 * row[ALL]['high']:.0f}; shuffled captions "
            f"{100 * row['floor']['accuracy']:.0f}, real images "
            f"{100 * row['ceiling']['accuracy']:.0f}"
        )
        cards.append(page.card("everything right", f"{100 * row[ALL]['accuracy']:.0f}%", bounds))
    if "clip" in scores:
        row = scores["clip"]
        bounds = (
            f"95%: {row[ALL]['low']:.3f}–{row[ALL]['high']:.3f}; shuffled captions "
            f"{row['shuffled']['mean']:.3f}"
        )
        cards.append(page.card(f"CLIP score, {row['network']}", f"{row[ALL]['mean']:.3f}", bounds))
    if "distance" in scores:
        of = scores["distance"]
        row = of["frechet"]
        cards.append(
            page.card(
                of["title"],
                f"{row['value']:.4g}",
                f"95%: {row['low']:.4g}–{row['high']:.4g}; real against real {floor_text(of, row)}"
                f"; {of['count']} images",
            )
        )
    return f'<div class="cards">{"".join(cards)}</div>'


def floor_text(distance: Mapping[str, Any], row: Mapping[str, float]) -> str:
    """The floor of a distance, with its number of images where that is another."""
    if "floor" not in row:
        return "not measured"
    text = f"{row['floor']:.4g}"
    if distance["floor_count"] != distance["count"]:
        text += f" (of {distance['floor_count']} images only)"
    return text


def _alignment(alignment: Mapping[str, Any]) -> str:
    bounds = (ALL, "ceiling", "floor")
    labels = {
        ALL: "all",
        "ceiling": '<span class="soft">real images</span>',
        "floor": '<span class="soft">shuffled captions</span>',
    }
    names = [name for name in alignment if name not in bounds]
    attributes = [name for name in alignment[ALL] if name != "all_correct"]
    rows = []
    for name in (*names, *bounds):
        right = alignment[name]["all_correct"]
        cells = [
            f"{100 * alignment[name][a]['accuracy']:.0f}" if a in alignment[name] else "–"
            for a in attributes
        ]
        rows.append(
            [
                labels.get(name, html.escape(name)),
                page.bar(right["accuracy"], right["low"], right["high"]),
                percent(right),
                str(right["n"]),
                *cells,
            ]
        )
    header = ["", "everything right", "95%", "n", *attributes]
    return (
        "<h2>Alignment, read from the images</h2>"
        + page.table(header, rows, range(2, len(header)))
        + '<p class="soft">Percent of images that show what the prompt says, by template '
        "matching; intervals are Wilson's.</p>"
    )


def _clip(clip: Mapping[str, Any]) -> str:
    names = [name for name in clip if name not in (ALL, "shuffled", "network")]
    scale = max(clip[name]["high"] for name in (*names, ALL))
    rows = [
        [
            {"shuffled": '<span class="soft">shuffled captions</span>'}.get(
                name, html.escape(name)
            ),
            page.bar(clip[name]["mean"], clip[name]["low"], clip[name]["high"], scale),
            f"{clip[name]['mean']:.4f} ({clip[name]['low']:.4f}–{clip[name]['high']:.4f})",
            str(clip[name]["n"]),
        ]
        for name in (*names, ALL, "shuffled")
    ]
    return "<h2>CLIP score</h2>" + page.table(["", "cosine", "95%", "n"], rows, (2, 3))


def _distance(distance: Mapping[str, Any]) -> str:
    rows = []
    for name in METRICS:
        row = distance[name]
        interval = f" ({row['low']:.4g}–{row['high']:.4g})" if "low" in row else ""
        rows.append(
            [
                html.escape(TITLES.get(name, distance["title"])),
                f"{row['value']:.4g}{interval}",
                floor_text(distance, row),
                f'<span class="soft">{BETTER.get(name, "higher")}</span>',
            ]
        )
    identity = distance["identity"]
    return (
        "<h2>Distance from real images</h2>"
        + page.table(["", "sampled (95%)", "real against real", "better"], rows, (1, 2))
        + f'<p class="soft">{distance["count"]} images on each side, {identity["side"]} px; '
        f"features of {html.escape(identity['network'])} (weights "
        f"{html.escape(identity['weights'][:12])}), preprocessing: "
        f"{html.escape(identity['preprocessing'])}. No distance means anything without the column "
        "beside it: what other real images get, at the same number.</p>"
    )
