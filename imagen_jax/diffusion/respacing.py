"""Respacings of a discrete process by section counts: Nichol & Dhariwal 2021, section 4.

A process of 1000 steps is cut into equal sections, and from each as many steps are taken as its
count says, evenly from its first to its last.
"""

from __future__ import annotations

from collections.abc import Sequence

RESPACINGS: dict[str, tuple[int, ...]] = {
    "fast27": (10, 10, 3, 2, 2),
    "smart27": (7, 4, 2, 1, 2, 4, 7),
    "smart50": (10, 6, 4, 3, 2, 2, 3, 4, 6, 10),
    "smart100": (1, 1, 1, 1, *[2] * 6, 3, 3, 4, 4, 5, 5, 6, 7, 7, 8, 9, 10, 13),
    "smart185": (1, 1, 2, 2, 2, 3, 3, 3, *range(4, 17), 18, 20),
    "super27": (1, 1, 1, 1, 1, 1, 1, 2, 5, 13),
    "super40": (2, 2, 2, 2, 2, 2, 3, 4, 6, 15),
    "super100": (4, 4, 6, 6, 8, 8, 10, 10, 14, 30),
}
"""Counts of the sections, the clean end first, by the names that DeepFloyd IF has for them. "super"
is for super-resolution; the number is their sum."""

PROCESS = 1000
"""Steps of the process that is respaced."""


def respaced(counts: Sequence[int]) -> list[int]:
    """The steps that are taken, from the noisiest to the cleanest, each in 0 ... 999."""
    taken, start = [], 0
    for i, count in enumerate(counts):
        size = PROCESS // len(counts) + (i < PROCESS % len(counts))
        stride, at = (size - 1) / max(count - 1, 1), 0.0
        for _ in range(count):
            taken.append(start + round(at))
            at += stride  # summed up as others do: a tie is rounded as they round it
        start += size
    return taken[::-1]
