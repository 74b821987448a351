"""What the page takes, at most. More is refused with an error on the page, never cut."""

MAX_PROMPT = 1000
"""Characters of a prompt or negative prompt; the text encoder's limit in tokens is lower still."""
MAX_IMAGES = 16
"""Images of one job: one batch on one device."""
MAX_UPLOAD = 10 * 2**20
"""Bytes of an uploaded file."""
MAX_STEPS = 250
"""Steps of one stage."""
MAX_WAITING = 8
"""Jobs that wait for their turn, of all who have the page open."""
MAX_KEPT = 24
"""Jobs whose images a tab keeps; older ones are dropped."""
MAX_FRAMES = 24
"""Steps of a stage whose estimates are kept to look at again, beside the first and the last."""
PREVIEW = 256
"""Longest side, in pixels, of what the browser shows while an image is being made."""
