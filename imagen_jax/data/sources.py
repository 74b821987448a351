"""What an embedding job reads: sources of captioned pictures.

Any object with the methods of `Source` will do; the built-in one is `SceneSource`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from typing import Any, Protocol

import numpy as np

from imagen_jax.data.scenes.source import scene_examples


class Example(Protocol):
    """What a source yields.

    Attributes:
      id: name of the example, unique in the source.
      caption: the text.
      image: [size, size, 3] uint8; None if the source could not decode its picture.
    """

    @property
    def id(self) -> str: ...
    @property
    def caption(self) -> str: ...
    @property
    def image(self) -> np.ndarray | None: ...


class Source(Protocol):
    """Captioned pictures, in a fixed order and division into shards."""

    def examples_of_shard(self, shard: int, num_shards: int) -> Iterable[Example]:
        """The examples of one shard: the same ones whenever it is called."""
        ...

    def describe(self) -> dict[str, Any]:
        """JSON values that fix the examples: two sources with one description are the same."""
        ...

    def __len__(self) -> int:
        """Number of examples in all shards."""
        ...


@dataclass(frozen=True)
class SceneSource:
    """The built-in scenes as a `Source`: shards are consecutive parts of the endless sequence.

    Attributes:
      level: vocabulary of the scenes.
      split: "train" or "heldout".
      seed: names the sequence.
      count: number of scenes.
      size: side of the pictures in pixels.
    """

    level: str
    split: str
    seed: int
    count: int
    size: int

    def examples_of_shard(self, shard: int, num_shards: int) -> Iterator[Example]:
        """The scenes of one shard, rendered one by one."""
        start, end = (self.count * edge // num_shards for edge in (shard, shard + 1))
        return scene_examples(
            self.level, self.split, self.seed, end - start, self.size, start=start
        )

    def describe(self) -> dict[str, Any]:
        """The arguments, and the name of the source."""
        return {"name": "scenes", **asdict(self)}

    def __len__(self) -> int:
        return self.count
