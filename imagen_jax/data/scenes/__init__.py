"""Built-in data: scenes of shapes and real emoji art, captioned by a small grammar.

    vocabulary.py     nouns, colours, backgrounds, styles, relations
    levels.py         how rich the scenes are
    scene.py          the content of an image
    sampling.py       scenes, each a pure function of (level, split, seed, index)
    grammar.py        the sentences that describe them
    art.py            the drawings behind the sprites; sprites.py: as RGBA images
    render.py         places the sprites of a scene and draws them; sheet.py: a contact sheet
    source.py         scenes as examples: (id, caption, image)
    hints.py          the words that a cascade was trained with, and those near a prompt's

of the level "emoji":

    concepts.py       the emoji that it knows; make_concepts.py writes their list
    open_sampling.py  its scenes; backgrounds.py: what they lie on
    open_grammar.py   captions as people type them
"""

from imagen_jax.data.scenes.art import fetch_full_set
from imagen_jax.data.scenes.grammar import caption
from imagen_jax.data.scenes.levels import LEVELS, Level, get_level
from imagen_jax.data.scenes.render import Placed, layout, render
from imagen_jax.data.scenes.sampling import (
    SPLITS,
    held_out_pairs,
    held_out_triples,
    is_held_out,
    sample_scene,
    sample_unseen_words,
)
from imagen_jax.data.scenes.scene import Group, Scene
from imagen_jax.data.scenes.sheet import contact_sheet
from imagen_jax.data.scenes.source import Example, scene_examples
from imagen_jax.data.scenes.sprites import sprite

__all__ = [
    "LEVELS", "SPLITS", "Example", "Group", "Level", "Placed", "Scene", "caption", "contact_sheet",
    "fetch_full_set", "get_level", "held_out_pairs", "held_out_triples", "is_held_out", "layout",
    "render", "sample_scene", "sample_unseen_words", "scene_examples", "sprite",
]  # fmt: skip
