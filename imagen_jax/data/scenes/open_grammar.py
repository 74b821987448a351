"""Captions of open scenes, as people type them: they say part of what the image shows.

What a caption leaves open (style, colour of a shape, size, place, background, which side) varies in
the data, so that several images fit it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Sequence
from dataclasses import dataclass

import numpy as np

from imagen_jax.data.scenes.concepts import owners
from imagen_jax.data.scenes.scene import Scene
from imagen_jax.data.scenes.vocabulary import COLOURS, COUNT_WORDS, NOUNS, SIZES, article, plural
from imagen_jax.errors import UserError

STYLE_WORDS = {
    "noto": ("drawing", "cartoon", "illustration"),
    "fluent": ("flat icon", "flat design", "icon"),
}
"""Art style -> how captions call it; the first is its name."""
RELATION_WORDS = {
    "left of": ("left of", "to the left of"),
    "right of": ("right of", "to the right of"),
    "above": ("above", "over", "on top of"),
    "below": ("below", "under", "beneath"),
    "beside": ("next to", "beside", "and"),
}
"""Relation -> how captions say it; "beside" leaves open on which side."""
BESIDE = "beside"
HELD_OUT_WORDS = 0.1
"""Share of further names and of keywords that no training caption contains."""
_SAID = {"style": 0.4, "background": 0.45, "shape colour": 0.75, "side": 0.65}
_FIRST_NAME, _KEYWORD, _ARTICLE = 0.6, 0.08, 0.8
_COLOUR_WORDS = frozenset((*COLOURS, "grey", "dark", "light"))


@dataclass(frozen=True)
class Description:
    """Words of a caption about a scene.

    Attributes:
      text: the caption, in lower case.
      things: for each group, the nouns that its words may mean.
      colours: for each group, the colour that it is said to have, or None.
      relation: a key of RELATION_WORDS, or None with one group.
      style, background, size: as in Scene, or None where the caption does not say them.
    """

    text: str
    things: tuple[frozenset[str], ...]
    colours: tuple[str | None, ...]
    relation: str | None
    style: str | None
    background: str | None
    size: str | None


def describe(scene: Scene, say: Collection[str] = (), unseen_word: bool = False) -> Description:
    """A caption of an open scene, and what it says.

    Args:
      scene: whose variation chooses what is said, and the words.
      say: "style" and "background" where the caption must say them.
      unseen_word: call the first group by a word that no training caption contains.

    Raises:
      UserError: unseen_word, and there is no such word for it.
    """
    rng = np.random.default_rng([scene.variation, 1])
    says = {what: rng.random() < share for what, share in _SAID.items()}
    says |= dict.fromkeys(say, True)
    names, colours, phrases = [], [], []
    for i, group in enumerate(scene.groups):
        colour = group.colour
        if NOUNS[group.noun].is_shape and not says["shape colour"]:
            colour = None
        name = _name(rng, group.noun, unseen_word and i == 0)
        size = None if scene.size is None or i else _pick(rng, SIZES[scene.size])
        names.append(name)
        colours.append(colour)
        phrases.append(_phrase(rng, name, colour, size, group.count))
    relation = scene.relation
    if relation in ("left of", "right of") and not says["side"]:
        relation = BESIDE
    body = phrases[0]
    if relation is not None:
        body = f"{body} {_pick(rng, RELATION_WORDS[relation])} {phrases[1]}"
    style = scene.style if says["style"] else None
    background = scene.background if says["background"] else None
    return Description(
        text=_sentence(rng, body, style, background),
        things=tuple(
            owners().get(name, frozenset()) | {group.noun}
            for name, group in zip(names, scene.groups, strict=True)
        ),
        colours=tuple(colours),
        relation=relation,
        style=style,
        background=background,
        size=scene.size,
    )


def _sentence(
    rng: np.random.Generator, body: str, style: str | None, background: str | None
) -> str:
    if background is not None:
        ending = _pick(
            rng, (" on {a} background", " on {a} background", ", {b} background", " on {b}")
        )
        body += ending.format(a=article(background), b=background)
    if style is None:
        return body
    word = _pick(rng, STYLE_WORDS[style])
    return _pick(rng, ("{a} of {body}", "{body}, {word}", "{word} of {body}")).format(
        a=article(word), body=body, word=word
    )


def _phrase(
    rng: np.random.Generator, name: str, colour: str | None, size: str | None, count: int
) -> str:
    words = [word for word in (size, colour) if word is not None]
    if count > 1:
        number = COUNT_WORDS[count] if rng.random() < 0.8 else str(count)
        return " ".join([number, *words, plural(name)])
    phrase = " ".join([*words, name])
    several = name.endswith("s") or name.split(" ")[0] in ("people", "men", "women")
    with_article = rng.random() < _ARTICLE and not several
    return article(phrase) if with_article else phrase


def _name(rng: np.random.Generator, noun: str, unseen: bool) -> str:
    """A word for a noun, without colours of its own where it is drawn in another."""
    thing = NOUNS[noun]
    if unseen:
        words = unseen_words(noun)
        if not words:
            raise UserError(f"every word for {thing.name!r} occurs in training captions")
        return _pick(rng, words)
    roll = rng.random()
    keywords = [word for word in thing.keywords if not is_held_out_word(word)]
    if roll < _KEYWORD and keywords:
        return _pick(rng, keywords)
    further = [name for name in thing.names[1:] if not is_held_out_word(name)]
    if roll > _FIRST_NAME and further:
        return _pick(rng, further)
    return thing.name


def has_colour_word(noun: str) -> bool:
    """True if a name says a colour, so that the noun is not drawn in another."""
    return any(_COLOUR_WORDS.intersection(name.split(" ")) for name in NOUNS[noun].names)


def is_held_out_word(word: str) -> bool:
    """True if no training caption calls anything by this further name or keyword."""
    digest = hashlib.sha256(f"word|{word}".encode()).digest()
    return int.from_bytes(digest[:8], "big") / 2**64 < HELD_OUT_WORDS


def unseen_words(noun: str) -> tuple[str, ...]:
    """Words for a noun that no training caption contains."""
    thing = NOUNS[noun]
    return tuple(w for w in (*thing.names[1:], *thing.keywords) if is_held_out_word(w))


def _pick(rng: np.random.Generator, choices: Sequence[str]) -> str:
    return choices[int(rng.integers(len(choices)))]
