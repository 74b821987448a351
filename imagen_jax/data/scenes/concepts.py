"""The emoji that the level "emoji" knows: names and keywords, of which no drawing is needed."""

from __future__ import annotations

import functools
import json
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

CONCEPTS_FILE = Path(__file__).parent / "assets" / "concepts.json"
"""Written by make_concepts."""


@dataclass(frozen=True)
class Concept:
    """One emoji, whatever the art style.

    Attributes:
      emoji: the character itself, by which scenes name it.
      icon: its codepoints, by which its drawings are known.
      icons: art style -> name of its drawing in the icon pack.
      names: its names, in lower case; the first is its CLDR short name.
      keywords: further words that belong to it and to no other concept.
      rare: one of many of its kind (a symbol; a man or woman where there is a person): drawn half
        as often.
    """

    emoji: str
    icon: str
    icons: Mapping[str, str]
    names: tuple[str, ...]
    keywords: tuple[str, ...]
    rare: bool


@functools.cache
def concepts() -> Mapping[str, Concept]:
    """All concepts by their emoji, in the order of the Unicode charts."""
    listed = json.loads(CONCEPTS_FILE.read_bytes())
    return {
        entry["emoji"]: Concept(**entry | {key: tuple(entry[key]) for key in ("names", "keywords")})
        for entry in listed
    }


@functools.cache
def owners() -> Mapping[str, frozenset[str]]:
    """Name or keyword -> emoji that it may mean."""
    found: dict[str, set[str]] = defaultdict(set)
    for concept in concepts().values():
        for word in (*concept.names, *concept.keywords):
            found[word].add(concept.emoji)
    return {word: frozenset(emoji) for word, emoji in found.items()}
