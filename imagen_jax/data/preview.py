"""A look at a corpus before anything is embedded: what it is, and what would become of it."""

from __future__ import annotations

import html
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

from imagen_jax.data.advice import advice_on
from imagen_jax.data.corpora.captions import says_nothing
from imagen_jax.data.fitting import fit_image
from imagen_jax.data.images import open_image
from imagen_jax.data.pages import bars, figure, histogram, sheet, spaced, table, write_page
from imagen_jax.data.sources import Dropped, Example, Source, same_image
from imagen_jax.errors import UnusableError

SHOWN = 64


@dataclass
class Preview:
    """Summary of a corpus from its first examples.

    Attributes:
      summary: the recognised kind.
      size: side that images would have, in pixels.
      seen: examples that were looked at, with those that would be left out.
      whole: they are all there are.
      images: different images among them.
      formats: formats of images, counted.
      sides: (shorter, longer) side of each image in pixels.
      letters: length of each caption.
      captions_of: number of captions of an image -> number of images.
      changed: counts of changes to examples.
      dropped: why examples would be left out, counted.
      first: reason -> the first example that it left out, with its detail.
      samples: (id, caption, image as training would see it) of those that are kept.
    """

    summary: str
    size: int
    seen: int = 0
    whole: bool = True
    images: int = 0
    formats: Counter[str] = field(default_factory=Counter)
    sides: list[tuple[int, int]] = field(default_factory=list)
    letters: list[int] = field(default_factory=list)
    captions_of: Counter[int] = field(default_factory=Counter)
    changed: Counter[str] = field(default_factory=Counter)
    dropped: Counter[str] = field(default_factory=Counter)
    first: dict[str, str] = field(default_factory=dict)
    samples: list[tuple[str, str, bytes]] = field(default_factory=list)


def preview(corpus: Source, size: int, fit: str, count: int = 1000) -> Preview:
    """Look at the first examples of a corpus.

    Args:
      corpus: a place that `open_corpus` opens, or any `Source`.
      size: side that images are to have, in pixels.
      fit: one of choices.FITS.
      count: most examples to look at.

    Raises:
      UserError: damage in a file, unless the corpus is to drop it.
    """
    found = Preview(getattr(corpus, "summary", ""), size)
    examples = iter(corpus.examples_of_shard(0, 1))
    before: Example | None = None
    of_image = 0
    for example in islice(examples, count):
        found.seen += 1
        if isinstance(example, Dropped):
            before = None
            _drop(found, example.id, example.reason, example.detail)
            continue
        found.letters.append(len(example.caption))
        new, before = not same_image(before, example), example
        if new:
            found.captions_of.update([of_image] if of_image else [])
            of_image = 0
        of_image += 1
        try:
            _look(found, example, new, fit)
        except UnusableError as error:
            _drop(found, example.id, error.reason, error.detail)
    found.captions_of.update([of_image] if of_image else [])
    found.whole = next(examples, None) is None
    return found


def _look(found: Preview, example: Any, new: bool, fit: str) -> None:
    if says_nothing(example.caption):
        raise UnusableError("empty caption")
    content = example.image.read() if hasattr(example.image, "read") else example.image
    if content is None:
        raise UnusableError("no image")
    opened = open_image(content)
    if new:
        found.images += 1
        found.formats[opened.kind] += 1
        found.sides.append((min(opened.image.size), max(opened.image.size)))
    recorded = fit_image(opened, content, found.size, fit)
    found.changed.update(recorded.changed)
    found.samples.append((example.id, example.caption, recorded.content))


def _drop(found: Preview, name: str, reason: str, detail: str) -> None:
    found.dropped[reason] += 1
    found.first.setdefault(reason, f"{name}: {detail}" if detail else name)


def lines_of(found: Preview) -> list[str]:
    """The preview in words."""
    kept = len(found.samples)
    more = "all there are" if found.whole else "there are more"
    lines = [
        found.summary,
        f"{found.seen:,} examples looked at ({more}): {kept:,} would be kept, "
        f"{found.seen - kept:,} left out",
    ]
    if found.sides:
        short, long = min(s for s, _ in found.sides), max(s for _, s in found.sides)
        kinds = ", ".join(f"{number:,} {kind}" for kind, number in found.formats.most_common())
        lines.append(
            f"images: {kinds}; sides of {short:,} to {long:,} pixels, to be {found.size} x "
            f"{found.size}"
        )
    if found.captions_of:
        several = ", ".join(
            f"{number:,} {'image' if number == 1 else 'images'} with {n}"
            for n, number in sorted(found.captions_of.items())
        )
        lines.append(
            f"captions: {several}; of {min(found.letters):,} to {max(found.letters):,} letters"
        )
    for what, counts in (("changed", found.changed), ("left out", found.dropped)):
        for reason, number in counts.most_common():
            line = f"{what}: {number:,} {reason}"
            if reason == "reduced":
                line += f" to {found.size} x {found.size} pixels"
            if reason in found.first:
                line += f" (first {found.first[reason]})"
            if advice := advice_on(reason):
                line += f"; {advice}"
            lines.append(line)
    return lines


def write_preview(found: Preview, output: str | Path) -> None:
    """Write the preview as one HTML file, with SHOWN images as training would see them."""
    title, *lines = lines_of(found)
    parts: list[str] = [f"<p>{html.escape(line)}</p>" for line in lines]
    parts.append(table({"size": f"{found.size} x {found.size} pixels"}))
    if found.letters:
        parts += ["<h3>Letters of a caption</h3>", histogram(found.letters, whole=True)]
    if found.sides:
        parts += ["<h3>Shorter side of the images, in pixels</h3>", bars(_powers(found.sides))]
    if found.samples:
        chosen = [found.samples[i] for i in spaced(len(found.samples), SHOWN)]
        parts.append(f"<h3>{len(chosen)} examples as training would see them</h3>")
        parts.append(sheet(figure(image, caption, name) for name, caption, image in chosen))
    write_page(output, title, parts)


def _powers(sides: Iterable[tuple[int, int]]) -> list[tuple[str, int]]:
    counts = Counter(2 ** (short.bit_length() - 1) for short, _ in sides)
    return [(f"{power}-{2 * power - 1}", number) for power, number in sorted(counts.items())]
