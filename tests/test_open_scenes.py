"""Open scenes: every emoji by its names, captions that say part, what is held out, rendering."""

from __future__ import annotations

import json
import re
from collections import Counter

import numpy as np
import pytest
from fetched_emoji import fetched_emoji

from imagen_jax.data.scenes import (
    Group,
    Scene,
    caption,
    fetch_full_set,
    get_level,
    layout,
    render,
    sample_scene,
    vocabulary,
)
from imagen_jax.data.scenes.concepts import concepts, owners
from imagen_jax.data.scenes.open_grammar import (
    RELATION_WORDS,
    STYLE_WORDS,
    describe,
    unseen_words,
)
from imagen_jax.data.scenes.open_sampling import held_out_kinds, held_out_style, sample_open_scene
from imagen_jax.data.sources import SceneSource, described_level
from imagen_jax.errors import UserError


@pytest.fixture(scope="module")
def level(tmp_path_factory):
    with fetched_emoji(tmp_path_factory.mktemp("cache")):
        yield get_level("emoji")


@pytest.fixture(scope="module")
def scenes(level):
    return [sample_scene(level, "train", 0, index) for index in range(400)]


def test_concepts_are_told_apart_by_their_first_names():
    assert len(concepts()) > 1400
    first = Counter(concept.names[0] for concept in concepts().values())
    assert max(first.values()) == 1
    assert owners()["panda"] == {"🐼"}
    # A name that people use for two emoji means either.
    assert owners()["cat"] == {"🐱", "🐈️"} == owners()["cat face"] | {"🐈️"}


def test_no_keyword_belongs_to_two_concepts():
    words = Counter(word for concept in concepts().values() for word in concept.keywords)
    assert max(words.values()) == 1
    assert not set(words) & {name for c in concepts().values() for name in c.names}
    further = {w for c in concepts().values() for w in (*c.names[1:], *c.keywords)}
    assert not {part for word in further for part in word.split()} & vocabulary.UNSEEN_WORDS


@pytest.mark.slow
def test_training_scenes_hold_nothing_that_is_held_out(level, scenes):
    for scene in scenes:
        assert not held_out_kinds(level, scene)


def test_training_captions_hold_no_held_out_word(level):
    for noun in level.nouns[8:200]:
        words = {*vocabulary.NOUNS[noun].names, *vocabulary.NOUNS[noun].keywords}
        held_out = {*unseen_words(noun)}
        for variation in range(5):
            text = describe(Scene((Group(noun),), "white", "noto", variation=variation)).text
            assert any(word in text for word in words - held_out)
            assert not any(
                word in text for word in held_out if not any(word in w for w in words - held_out)
            )


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "groups"), [("style", 1), ("colour", 1), ("pair", 2)])
def test_held_out_scenes_hold_one_kind_alone(level, kind, groups):
    for index in range(40):
        scene = sample_open_scene(level, np.random.default_rng(index), groups, kind)
        assert held_out_kinds(level, scene) == {kind}
        assert len(scene.groups) == groups


def test_every_concept_is_seen_in_a_style(level):
    without = [noun for noun in level.nouns if held_out_style(noun, level.styles) is not None]
    assert 0.03 < len(without) / len(level.nouns) < 0.07
    assert {held_out_style(noun, level.styles) for noun in without} == set(level.styles)


def test_descriptions_agree_with_scene_and_caption(scenes):
    for scene in scenes:
        said = describe(scene)
        assert caption(scene) == said.text == said.text.lower()
        for group, things, colour in zip(scene.groups, said.things, said.colours, strict=True):
            assert group.noun in things
            assert colour in (group.colour, None)
            assert (
                colour is not None or group.colour is None or vocabulary.NOUNS[group.noun].is_shape
            )
            if colour is not None:
                assert colour in said.text
        if said.style is not None:
            assert said.style == scene.style
            assert any(word in said.text for word in STYLE_WORDS[said.style])
        if said.background is not None:
            assert said.background == scene.background
            assert said.background in said.text
        if said.relation is not None:
            assert any(word in said.text for word in RELATION_WORDS[said.relation])


def test_captions_leave_open_what_varies(scenes):
    said = [describe(scene) for scene in scenes]
    for share, least, most in (
        (np.mean([s.style is not None for s in said]), 0.3, 0.5),
        (np.mean([s.background is not None for s in said]), 0.35, 0.55),
        (np.mean([s.relation == "beside" for s in said if s.relation]), 0.1, 0.3),
    ):
        assert least < share < most
    assert describe(scenes[0], say=("style", "background")).style == scenes[0].style


def test_drawings_of_one_prompt_differ(level):
    group = Group("🐼")
    images = [render(Scene((group,), "blue", "noto", variation=v, open=True), 64) for v in range(6)]
    distances = [np.abs(a.astype(int) - b).mean() for i, a in enumerate(images) for b in images[:i]]
    assert min(distances) > 3


@pytest.mark.slow
@pytest.mark.parametrize("size", [64, 256, 1024])
def test_sizes_show_the_same(scenes, size):
    for scene in scenes[:6]:
        small = render(scene, 64).astype(float)
        other = render(scene, size)
        assert other.shape == (size, size, 3)
        np.testing.assert_array_equal(other, render(scene, size))
        block = size // 64
        reduced = other.reshape(64, block, 64, block, 3).mean((1, 3))
        assert np.abs(reduced - small).mean() < 4


def test_objects_lie_apart_and_within_the_image(scenes):
    for scene in scenes[:300]:
        boxes = layout(scene)
        assert len(boxes) == sum(group.count for group in scene.groups)
        for i, box in enumerate(boxes):
            assert min(box.left, box.top) >= 1 / 64
            assert max(box.left + box.width, box.top + box.height) <= 63 / 64
            for other in boxes[:i]:
                apart = max(
                    box.left - other.left - other.width, other.left - box.left - box.width,
                    box.top - other.top - other.height, other.top - box.top - box.height,
                )  # fmt: skip
                assert apart >= 2 / 64


def test_an_unseen_word_names_the_concept(level):
    noun = next(noun for noun in level.nouns if unseen_words(noun))
    said = describe(Scene((Group(noun),), "white", "noto", open=True), unseen_word=True)
    assert any(word in said.text for word in unseen_words(noun))
    assert noun in said.things[0]
    with pytest.raises(UserError, match="every word"):
        describe(Scene((Group("ring", "red"),), "white", "noto", open=True), unseen_word=True)


def test_the_description_of_a_source_names_its_drawings(tmp_path):
    with fetched_emoji(tmp_path) as directory:
        source = SceneSource("emoji", "train", 0, 4, 8)
        described = json.loads(json.dumps(source.describe()))
        assert re.fullmatch("[0-9a-f]{64}", described["emoji"])
        assert described_level(described) == get_level("emoji")
        path = directory / "noto.json"
        path.write_text(path.read_text() + " ")
        with pytest.raises(UserError, match=r"not those of the described.*imagen data fetch"):
            described_level(described)
        path.unlink()
        with pytest.raises(UserError, match=r"noto\.json; run: imagen data fetch"):
            source.describe()
    assert "emoji" not in SceneSource("demo", "train", 0, 4, 8).describe()


@pytest.mark.parametrize(
    "content", ["{", "[]", "{}", '{"width": 1, "height": 1, "icons": {"a": {}}}']
)
def test_a_damaged_fetched_set_is_named(tmp_path, content):
    with fetched_emoji(tmp_path) as directory:
        (directory / "fluent.json").write_text(content)
        with pytest.raises(UserError, match=r"fluent\.json is not the set .*fetch it again"):
            get_level("emoji")


def test_fetching_without_npm_says_so(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    with pytest.raises(RuntimeError, match="npm"):
        fetch_full_set()
