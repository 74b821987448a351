"""Safety: files of an exported cascade that are applied to every image that it makes.

safety_checker.safetensors  CLIP's image transformer and two heads, as diffusers names them
watermark.png               pasted into the lower right corner

cascade.json has `safety_checker`, with what the shapes of its weights do not say, and `watermark`.
A stage that is trained from such a cascade has both files, and the same entries in its stage.json.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from imagen_jax.errors import UserError

CHECKER = "safety_checker.safetensors"
WATERMARK = "watermark.png"
CHECKER_KEY, WATERMARK_KEY = "safety_checker", "watermark"


@dataclasses.dataclass(frozen=True)
class Safety:
    """A safety checker, a watermark, or both.

    Attributes:
      checker: file of the checker's weights; None without one, or where it is turned off.
      heads: attention heads of its transformer.
      activation: activation of its transformer, a key of clip.ACTIVATIONS.
      watermark: the watermark's file; None without one.
    """

    checker: Path | None
    heads: int
    activation: str
    watermark: Path | None

    @functools.cached_property
    def digests(self) -> dict[str, str | None]:
        """Hashes of the files that are applied to images; None for one that is not."""
        return {CHECKER_KEY: _digest(self.checker), WATERMARK_KEY: _digest(self.watermark)}

    @property
    def files(self) -> list[Path]:
        """All files."""
        return [path for path in (self.checker, self.watermark) if path is not None]

    def record(self) -> dict[str, Any]:
        """Return the entries of cascade.json."""
        of_checker = {CHECKER_KEY: {"heads": self.heads, "activation": self.activation}}
        return (of_checker if self.checker else {}) | (
            {WATERMARK_KEY: WATERMARK} if self.watermark else {}
        )


def safety_of(directory: Path, record: Mapping[str, Any]) -> Safety | None:
    """Return what the cascade.json or stage.json of a directory says of both; None for nothing.

    Raises:
      UserError: one of the files is not there.
    """
    checker, watermark = record.get(CHECKER_KEY), record.get(WATERMARK_KEY)
    if checker is None and watermark is None:
        return None
    said: Mapping[str, Any] = {"heads": 1, "activation": ""} if checker is None else checker
    safety = Safety(
        checker=None if checker is None else directory / CHECKER,
        heads=int(said["heads"]),
        activation=str(said["activation"]),
        watermark=None if watermark is None else directory / WATERMARK,
    )
    for path in safety.files:
        if not path.is_file():
            raise UserError(
                f"the cascade in {directory} lacks {path.name}, which is applied to its images"
            )
    return safety


def _digest(path: Path | None) -> str | None:
    if path is None:
        return None
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()[:16]
