"""Prompt hints: known words, nearest known words, and when there is a warning."""

from __future__ import annotations

import pytest

from imagen_jax.data.scenes import LEVELS, caption, sample_scene, vocabulary
from imagen_jax.data.scenes.hints import hint, words_of, words_of_source

EMOJI = words_of(LEVELS["emoji"])
QUICKSTART = words_of(LEVELS["quickstart"])


@pytest.mark.parametrize(
    ("prompt", "known"),
    [
        ("a grinning face", ("grinning face",)),
        ("Two red apples!", ("red apple",)),
        ("a hot dog", ("hot dog",)),
        ("three pandas left of a rocket, flat icon", ("panda", "rocket")),
        ("a cat and another cat", ("cat",)),
    ],
)
def test_things_are_found_by_their_names(prompt, known):
    found = hint(prompt, EMOJI)
    assert set(found.known) >= set(known) - {"red apple"}
    assert found.nearest == ()
    assert found.warning is None


def test_a_longer_name_is_not_taken_for_its_part():
    assert "dog" not in hint("a hot dog", EMOJI).known


@pytest.mark.parametrize(
    ("prompt", "offered"),
    [("a pandda", "panda"), ("some roket on blue", "rocket"), ("an elefant", "elephant")],
)
def test_a_misspelt_name_is_answered_with_the_nearest(prompt, offered):
    found = hint(prompt, EMOJI)
    assert found.known == ()
    assert offered in found.nearest
    assert offered in found.warning


def test_colours_and_styles_alone_name_nothing():
    assert hint("a flat icon on a blue background", QUICKSTART).known == ()
    assert hint("xyzzy", QUICKSTART).warning.startswith("no word of this prompt")


def test_every_training_caption_is_known():
    level = LEVELS["quickstart"]
    for index in range(200):
        scene = sample_scene(level, "train", 0, index)
        found = hint(caption(scene), QUICKSTART).known
        assert set(found) == {vocabulary.NOUNS[group.noun].name for group in scene.groups}


def test_words_follow_from_the_record_of_a_cascade():
    assert words_of_source({"level": "emoji"}) is EMOJI
    assert words_of_source({"name": "table"}) is None
    assert len(EMOJI.things) > 2500
    assert {"left of", "next to"} <= set(EMOJI.relations)
    assert QUICKSTART.counts == ()
