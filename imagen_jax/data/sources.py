"""Sources of captioned images for an embedding job.

Any object with the methods of `Source` will do; the built-in one is `SceneSource`, and `corpora`
has those that read files.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any, Protocol

import numpy as np

from imagen_jax.data.scenes.art import fingerprint
from imagen_jax.data.scenes.levels import Level, get_level
from imagen_jax.data.scenes.render import RENDERING
from imagen_jax.data.scenes.source import scene_examples
from imagen_jax.errors import UserError


class Example(Protocol):
    """An example of a source.

    Attributes:
      id: name of the example, unique in the source.
      caption: the text.
      image: [size, size, 3] uint8 pixels, an encoded image, one that is read when it is needed, or
        None if there is none.
    """

    @property
    def id(self) -> str: ...
    @property
    def caption(self) -> str: ...
    @property
    def image(self) -> np.ndarray | bytes | StoredImage | None: ...


@dataclass(frozen=True)
class Dropped:
    """A damaged example, or the damaged rest of a file, of a source.

    Attributes:
      id: name of the example or of the file.
      reason: in words that many share; they are counted by it.
      detail: particulars of this case.
    """

    id: str
    reason: str
    detail: str = ""


def same_image(first: Example | Dropped | None, second: Example | Dropped) -> bool:
    """True if two neighbours are captions of one image: one array, file, or bytes."""
    if first is None or isinstance(first, Dropped) or isinstance(second, Dropped):
        return False
    a, b = first.image, second.image
    if a is None or isinstance(a, np.ndarray) or isinstance(b, np.ndarray):
        return a is b and a is not None
    return a is b or bool(a == b)


class StoredImage(Protocol):
    """An image that is read when it is needed."""

    def read(self) -> bytes:
        """The encoded image.

        Raises:
          UnusableError: there is none.
          OSError: it may not be read.
        """
        ...


class Source(Protocol):
    """Captioned images, in a fixed order and division into shards.

    One that knows how many examples it has says so by __len__.
    """

    def examples_of_shard(self, shard: int, num_shards: int) -> Iterable[Example | Dropped]:
        """The examples of one shard: the same ones whenever it is called.

        Raises:
          UserError: at once, not on iteration, if there cannot be so many shards.
        """
        ...

    def describe(self) -> dict[str, Any]:
        """JSON values that fix the examples: two sources with one description are the same."""
        ...


@dataclass(frozen=True)
class SceneSource:
    """The built-in scenes as a `Source`: shards are consecutive parts of the endless sequence.

    Attributes:
      level: vocabulary of the scenes.
      split: "train" or "heldout".
      seed: names the sequence.
      count: number of scenes.
      size: side of the images in pixels.
    """

    level: str
    split: str
    seed: int
    count: int
    size: int

    def __post_init__(self) -> None:
        get_level(self.level)  # an unknown one is an error at once

    def examples_of_shard(self, shard: int, num_shards: int) -> Iterator[Example]:
        """The scenes of one shard, rendered one by one."""
        start, end = (self.count * edge // num_shards for edge in (shard, shard + 1))
        level = get_level(self.level)
        return scene_examples(level, self.split, self.seed, end - start, self.size, start=start)

    def describe(self) -> dict[str, Any]:
        """The name of the source, the arguments, and what draws the scenes."""
        description = {"name": "scenes", **asdict(self), "rendering": RENDERING}
        if get_level(self.level).open:
            description["emoji"] = fingerprint()
        return description

    def __len__(self) -> int:
        return self.count


def described_level(description: Mapping[str, Any]) -> Level:
    """The level of the scenes that `SceneSource.describe` has described.

    Raises:
      UserError: its emoji have not been fetched on this machine.
      UserError: they are other emoji now.
    """
    level = get_level(description["level"])
    described = description.get("emoji")
    if level.open and (found := fingerprint()) != described:
        raise UserError(
            "the fetched emoji are not those of the described scenes: their sha256 is "
            f"{found}, not {described}; imagen data fetch gets the pinned versions"
        )
    return level


def check_rendering(description: Mapping[str, Any] | None, where: str) -> None:
    """Checks that recorded scenes look as scenes do now; other sources pass.

    Args:
      description: description of the source, from a manifest.
      where: the embedding directory, for the message.

    Raises:
      UserError: they were drawn by another version, so that new ones would not be like them.
    """
    if description is None or description.get("name") != "scenes":
        return
    if (found := description.get("rendering")) != RENDERING:
        raise UserError(
            f"the scenes in {where} were drawn by version {found} of the renderer, and this is "
            f"version {RENDERING}: images or captions have changed since; embed them again into "
            "a new directory"
        )
