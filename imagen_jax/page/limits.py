"""Limits of the page. More is refused with an error on the page, never cut.

A browser can send anything for the value of any field: what is not checked elsewhere, as text and
numbers of a job are in form.py, goes through `clamped`.
"""

from __future__ import annotations

from typing import Any

MAX_PROMPT = 1000
"""Characters of a prompt or negative prompt; the text encoder's limit in tokens is lower still."""
MAX_IMAGES = 16
"""Images of one job: one batch on one device."""
MAX_UPLOAD = 10 * 2**20
"""Bytes of an uploaded file."""
MAX_RECEIVED = 2**26
"""Bytes of uploads that are under way, of all tabs."""
REQUEST_SECONDS = 60.0
"""Seconds in which a request has come, an upload for instance."""
HEAD_SECONDS = 10.0
"""Seconds in which the head of a request has come, or a connection is closed."""
MAX_HEAD = 2**16
"""Bytes of the head of a request."""
MAX_CONNECTIONS = 600
"""Connections at once; a tab has one, and a few more while it is loaded."""
MESSAGES = (200, 400)
"""Messages of a tab in a second, and how many may come at once; more of them wait."""
MAX_PIXELS = 2**24
"""Of an uploaded image: some 200 MB while it is read, one at a time."""
MAX_READING = 8
"""Uploads that wait to be read, of all tabs."""
MAX_STEPS = 250
"""Steps of one stage."""
MAX_WORK = 5_000
"""Steps of one job: of all stages, for each image, and for each pass over a part."""
MAX_WAITING = 32
"""Jobs that wait for their turn, of all who have the page open."""
MAX_WAITING_OF_TAB = 2
"""Of those, jobs of one tab."""
MAX_KEPT = 24
"""Jobs whose images a tab keeps; older ones are dropped."""
MAX_KEPT_BYTES = 2**29
"""Of images that are kept for all tabs; the oldest job's are dropped first."""
MAX_KINDS = 32
"""Kinds of jobs whose compiled programs are kept: other shapes, numbers of images, samplers and
thresholds are other programs, of some megabytes each."""
MAX_FRAMES = 24
"""Steps of a stage whose estimates are kept to look at again, beside the first and the last."""
MAX_TABS = 200
"""Tabs that are open at once, those that have not connected yet included."""
BRUSH = (2, 40)
"""Width of the brush, in percent of the image's width."""
MAX_POINTS = 5000
"""Of all strokes of the brush over an image."""
LARGE = 512
"""Longest side, in pixels, of a finished image in the browser; files have all pixels."""
PREVIEW = 256
"""Longest side, in pixels, of what the browser shows while an image is being made."""


def clamped(value: Any, low: float, high: float) -> float | None:
    """Return a number within bounds; None for what is no number."""
    if isinstance(value, bool) or not isinstance(value, int | float) or value != value:
        return None
    return min(max(value, low), high)
