"""Hints about prompts: the words that a cascade was trained with, and the nearest known ones.

Needs no drawings: a cascade trained on fetched emoji can tell what it knows on any machine.
"""

from __future__ import annotations

import difflib
import functools
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from imagen_jax.data.scenes.levels import LEVELS, Level
from imagen_jax.data.scenes.open_grammar import RELATION_WORDS, STYLE_WORDS, is_held_out_word
from imagen_jax.data.scenes.vocabulary import (
    COUNT_WORDS,
    NOUNS,
    RELATIONS,
    SIZES,
    STYLES,
    plural,
)

NEAREST = 3
"""Known words that are offered for a prompt."""
_SIMILAR = 0.72
"""Least similarity of a word to be offered, as difflib measures it (0..1)."""
_FUNCTION_WORDS = {
    "a", "an", "and", "as", "at", "background", "by", "for", "from", "in", "is", "it", "its", "of",
    "on", "one", "or", "the", "there", "to", "with",
}  # fmt: skip


@dataclass(frozen=True)
class Words:
    """Words that the captions of a level are made of.

    Attributes:
      things: names of things, in alphabetical order; several may name one thing.
      colours, backgrounds, styles, relations, sizes, counts: words for these.
    """

    things: tuple[str, ...]
    colours: tuple[str, ...]
    backgrounds: tuple[str, ...]
    styles: tuple[str, ...]
    relations: tuple[str, ...]
    sizes: tuple[str, ...]
    counts: tuple[str, ...]


@dataclass(frozen=True)
class Hint:
    """Things that a cascade knows of a prompt.

    Attributes:
      known: things that the prompt names and training had.
      nearest: known things whose names are like the prompt's words; empty if `known` is not.
    """

    known: tuple[str, ...]
    nearest: tuple[str, ...]

    @property
    def warning(self) -> str | None:
        """One line where the prompt names nothing that is known, else None."""
        if self.known:
            return None
        offer = f"; near: {', '.join(self.nearest)}" if self.nearest else ""
        return f"no word of this prompt names a thing from training{offer} (imagen data words)"


@functools.cache
def words_of(level: Level) -> Words:
    """The words of training captions of a level."""
    things = set()
    for noun in level.nouns:
        known = NOUNS[noun]
        further = (*known.names[1:], *known.keywords) if level.open else ()
        things |= {known.name, *(word for word in further if not is_held_out_word(word))}
    styles = STYLE_WORDS if level.open else {style: (STYLES[style],) for style in level.styles}
    relations = RELATION_WORDS if level.open else RELATIONS
    return Words(
        things=tuple(sorted(things)),
        colours=level.colours,
        backgrounds=level.backgrounds,
        styles=tuple(word for words in styles.values() for word in words),
        relations=tuple(word for words in relations.values() for word in words),
        sizes=tuple(word for words in SIZES.values() for word in words) if level.sized else (),
        counts=tuple(COUNT_WORDS.values()) if level.counts else (),
    )


def words_of_source(source: Mapping[str, Any]) -> Words | None:
    """The words of a cascade by the description of its training data, see SceneSource.describe.

    Returns:
      None if it was trained on something else than scenes.
    """
    name = source.get("level")
    return words_of(LEVELS[name]) if name in LEVELS else None


def hint(prompt: str, words: Words) -> Hint:
    """Find what is known of a prompt.

    Names are looked for as whole words, in the singular and the plural, the longest first: "hot
    dog" is no dog.

    Args:
      prompt: any text.
      words: what is known.
    """
    singular = _by_form(words)
    tokens = re.findall(r"[a-z0-9'-]+", prompt.lower())
    longest = max(len(form.split(" ")) for form in singular)
    known, rest, start = [], [], 0
    while start < len(tokens):
        for length in range(min(longest, len(tokens) - start), 0, -1):
            form = " ".join(tokens[start : start + length])
            if form in singular:
                known.append(singular[form])
                start += length
                break
        else:
            rest.append(tokens[start])
            start += 1
    if known:
        return Hint(tuple(dict.fromkeys(known)), ())
    said = {part for phrase in (*words.colours, *words.backgrounds, *words.styles,
                                *words.relations, *words.sizes, *words.counts)
            for part in phrase.split(" ")} | _FUNCTION_WORDS  # fmt: skip
    near: list[tuple[float, str]] = []
    for token in rest:
        if token not in said:
            near += _similar(token, words)
    near.sort(key=lambda pair: (-pair[0], len(pair[1]), pair[1]))
    return Hint((), tuple(dict.fromkeys(name for _, name in near))[:NEAREST])


@functools.cache
def _by_form(words: Words) -> Mapping[str, str]:
    """Singular or plural -> singular."""
    return {plural(name): name for name in words.things} | {name: name for name in words.things}


def _similar(token: str, words: Words) -> list[tuple[float, str]]:
    """(similarity, name) of the names that have a word like the token."""
    parts = {part for name in words.things for part in name.split(" ")}
    like = difflib.get_close_matches(token, sorted(parts), NEAREST, _SIMILAR)
    ratios = {part: difflib.SequenceMatcher(None, token, part).ratio() for part in like}
    return [
        # Of names with the same word, the shorter is meant more likely.
        (ratios[part] - 0.01 * (len(name.split(" ")) - 1), name)
        for name in words.things for part in name.split(" ") if part in ratios
    ]  # fmt: skip
