"""A stand-in for the emoji that are fetched: vendored drawings under the names of all others."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from imagen_jax.data.scenes import art, open_sampling, sprites, vocabulary
from imagen_jax.data.scenes.concepts import concepts


@contextmanager
def fetched_emoji(cache: Path) -> Iterator[Path]:
    """A directory such as `imagen data fetch` fills, within a cache that the machine uses now."""
    packs = {}
    for style in vocabulary.STYLES:
        pack = json.loads((art.VENDORED / f"{style}.json").read_text())
        drawings = list(pack["icons"].values())
        pack["icons"] = {
            concept.icons[style]: drawings[i % len(drawings)]
            for i, concept in enumerate(concepts().values())
        }
        packs[style] = json.dumps(pack)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(cache))
        directory = art.fetched_set()
        directory.mkdir(parents=True, exist_ok=True)
        for style, pack in packs.items():
            (directory / f"{style}.json").write_text(pack)
        _forget()
        yield directory
    _forget()


def _forget() -> None:
    """Forgets the drawings of other fetched emoji."""
    art._icons.clear()
    for kept in (
        art.add_icons, sprites.aspect, sprites.is_loose, sprites.stands_out, sprites.is_visible,
        sprites._kept_drawing, sprites._kept_sprite, open_sampling.held_out_style,
    ):  # fmt: skip
        kept.cache_clear()
