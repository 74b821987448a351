"""The sentences that describe scenes."""

from __future__ import annotations

import numpy as np

from imagen_jax.data.scenes.open_grammar import describe
from imagen_jax.data.scenes.scene import Group, Scene
from imagen_jax.data.scenes.vocabulary import (
    COUNT_WORDS,
    NOUNS,
    RELATIONS,
    SIZES,
    STYLES,
    article,
)

_SENTENCES = (
    "{a_style} of {body} on {a_background} background",
    "{body} on {a_background} background, {style}",
    "{a_background} background with {a_style} of {body}",
)


def caption(scene: Scene) -> str:
    """One sentence in lower case that says all attributes of the scene; of an open one, some."""
    if scene.open:
        return describe(scene).text
    rng = np.random.default_rng([scene.variation, 1])
    size = None if scene.size is None else _pick(rng, SIZES[scene.size])
    body = _group_phrase(scene.groups[0], size)
    if scene.relation is not None:
        relation = _pick(rng, RELATIONS[scene.relation])
        body = f"{body} {relation} {_group_phrase(scene.groups[1], None)}"
    style = STYLES[scene.style]
    return _pick(rng, _SENTENCES).format(
        body=body, style=style, a_style=article(style), a_background=article(scene.background)
    )


def _group_phrase(group: Group, size: str | None) -> str:
    noun = NOUNS[group.noun]
    words = [word for word in (size, group.colour) if word is not None]
    if group.count == 1:
        return article(" ".join([*words, noun.name]))
    return " ".join([COUNT_WORDS[group.count], *words, noun.plural])


def _pick(rng: np.random.Generator, choices: tuple[str, ...]) -> str:
    return choices[int(rng.integers(len(choices)))]
