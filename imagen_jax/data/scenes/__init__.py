"""Built-in data: scenes of shapes and real emoji art, captioned by a small grammar."""

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
