"""Reading images of open scenes back, and scoring them against what their captions say."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from fetched_emoji import fetched_emoji

from imagen_jax.data.scenes import Group, Scene, get_level, render
from imagen_jax.data.scenes.backgrounds import shaded_background
from imagen_jax.data.scenes.concepts import concepts
from imagen_jax.data.scenes.open_grammar import Description, describe
from imagen_jax.data.scenes.open_sampling import sample_open_scene
from imagen_jax.errors import UserError
from imagen_jax.eval.attributes import accuracies
from imagen_jax.eval.open_alignment import ATTRIBUTES, open_alignment_report, score, score_all
from imagen_jax.eval.open_matching import SIDE, find_objects, fit_background, read_all
from imagen_jax.eval.scenes import OPEN_SETS, _prompt_sets

SHAPES = 8


@pytest.fixture(scope="module")
def level(tmp_path_factory):
    """Shapes and the first forty emoji, whose stand-ins are all different."""
    with fetched_emoji(tmp_path_factory.mktemp("cache")):
        full = get_level("emoji")
        nouns = [n for n, c in list(concepts().items())[:40] if not c.rare]
        yield replace(full, nouns=(*full.nouns[:SHAPES], *nouns))


def drawn(level, count, groups, **changes):
    rng = np.random.default_rng(5)
    scenes = [sample_open_scene(replace(level, **changes), rng, groups, None) for _ in range(count)]
    return scenes, [describe(scene) for scene in scenes]


@pytest.mark.slow
@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize("side", [64, 256])
def test_real_images_show_what_their_captions_say(level, groups, side):
    scenes, said = drawn(level, 24, groups)
    seen = read_all([render(scene, side) for scene in scenes], level)
    found = accuracies(score_all(scenes, said, seen), ATTRIBUTES)
    assert found["object"]["accuracy"] >= 0.9
    assert found["count"]["accuracy"] >= 0.9
    assert found["top 5"]["correct"] >= found["object"]["correct"]
    for attribute in ("background", "relation", "style"):
        if attribute in found:
            assert found[attribute]["accuracy"] >= 0.9


def test_images_of_other_captions_are_the_floor(level):
    scenes, said = drawn(level, 24, 1)
    report = open_alignment_report(scenes, said, [render(s, 64) for s in scenes], level)
    assert report["images"]["all_correct"]["accuracy"] >= 0.85
    assert report["floor"]["all_correct"]["accuracy"] <= 0.2
    with pytest.raises(UserError, match="need as many"):
        open_alignment_report(scenes, said, [], level)


@pytest.mark.parametrize("attribute", ["object", "count", "background", "relation", "colour"])
def test_one_wrong_thing_is_found(level, attribute):
    first, second, other = level.nouns[SHAPES : SHAPES + 3]
    scene = Scene(
        (Group(first, "blue"), Group(second)), "white", "noto", "left of", variation=11, open=True
    )
    said = Description(
        "", (frozenset({first}), frozenset({second})), ("blue", None), "left of", "noto", "white",
        None,
    )  # fmt: skip
    wrong = {
        "object": replace(scene, groups=(scene.groups[0], Group(other))),
        "count": replace(scene, groups=(scene.groups[0], Group(second, None, 2))),
        "background": replace(scene, background="dark blue"),
        "relation": replace(scene, relation="right of"),
        "colour": replace(scene, groups=(Group(first, "red"), scene.groups[1])),
    }[attribute]
    right, changed = read_all([render(scene, 128), render(wrong, 128)], level)
    assert score(said, (1, 1), right)["all_correct"]
    found = score(said, (1, 1), changed)
    assert not found[attribute]
    assert not found["all_correct"]


def test_noise_names_nothing(level):
    noise = np.random.default_rng(0).integers(0, 256, (8, 8, 3), np.uint8).repeat(8, 0).repeat(8, 1)
    (seen,) = read_all([noise], level)
    assert not any(thing.nouns for thing in seen.things)


def test_a_shaded_background_is_found(level):
    scene = Scene((Group("circle", "red"),), "blue", "fluent", variation=4, open=True)
    for variation in range(8):
        scene = replace(scene, variation=variation)
        image = render(scene, SIDE).astype(np.float32)
        away = np.abs(fit_background(image) - shaded_background(scene, SIDE)).max()
        assert away < 20
        assert len(find_objects(image, fit_background(image))) == 1


def test_every_kind_of_prompt_is_asked_for_what_it_says(level):
    sets = _prompt_sets(level, ("train", "heldout", "unseen"), 0, 3)
    assert [asked.name for asked in sets] == list(sum(OPEN_SETS.values(), ()))
    for asked in sets:
        images = np.stack([render(scene, 64) for scene in asked.scenes])
        assert len(asked.right(images[:2])) == 2
        assert asked.report(images)["images"]["object"]["n"] == 3
        assert len({*asked.prompts}) > 1
