"""The scenes source: vocabulary, split, captions, layout, rendering, the sheet."""

from __future__ import annotations

import itertools
import re
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from imagen_jax.data.scenes import (
    LEVELS,
    Group,
    Scene,
    caption,
    contact_sheet,
    get_level,
    held_out_pairs,
    held_out_triples,
    is_held_out,
    layout,
    render,
    sample_scene,
    sample_unseen_words,
    scene_examples,
    sprite,
    vocabulary,
)
from imagen_jax.data.scenes.sampling import is_held_out_pair, is_held_out_triple
from imagen_jax.data.scenes.source import scene_of
from imagen_jax.grid import labelled_grid

VENDORED = sorted(name for name, level in LEVELS.items() if not level.open)
MIRROR = {"left of": "right of", "above": "below", "right of": "left of", "below": "above"}


def scenes(level: str, split: str, count: int, groups: int | None = None) -> list[Scene]:
    return [sample_scene(get_level(level), split, 0, i, groups) for i in range(count)]


@pytest.mark.slow
def test_every_sprite_fills_its_box():
    found = []
    for noun, style in itertools.product(get_level("full").nouns, vocabulary.STYLES):
        colour = "blue" if vocabulary.NOUNS[noun].is_shape else None
        rgba = sprite(noun, style, colour, 40)
        ink = rgba[..., 3] > 8
        edges = [edge.any() for edge in (ink[0], ink[-1], ink[:, 0], ink[:, -1])]
        if max(rgba.shape[:2]) != 40 or not all(edges):
            found.append(f"{style} {noun}: {rgba.shape}, ink on the edges {edges}")
    assert not found, "\n".join(found)


def test_a_tint_keeps_the_silhouette_and_shows_its_colour():
    natural, blue = (sprite("dog", "noto", colour, 40) for colour in (None, "blue"))
    np.testing.assert_array_equal(natural[..., 3], blue[..., 3])
    red, green, strongest = blue[blue[..., 3] == 255][:, :3].mean(0)
    assert strongest > 1.5 * max(red, green)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("griffin", "noto", None), "griffin"),
        (("dog", "oil", None), "oil.*noto"),
        (("dog", "noto", "beige"), "beige.*purple"),
        (("circle", "noto", None), "circle.*needs a colour"),
    ],
)
def test_unknown_words_are_named(words, message):
    with pytest.raises(ValueError, match=message):
        sprite(*words, 32)


@pytest.mark.parametrize("level", VENDORED)
def test_scenes_are_a_function_of_level_split_seed_index(level):
    first = [next(scene_examples(level, "train", 3, 1, 32, start=i)) for i in range(20)]
    again = list(scene_examples(level, "train", 3, 20, 32))
    for a, b in zip(first, again, strict=True):
        assert (a.id, a.caption) == (b.id, b.caption)
        np.testing.assert_array_equal(a.image, b.image)
    assert len({example.id for example in again}) == 20
    assert scenes(level, "train", 20) != scenes(level, "heldout", 20)


@pytest.mark.slow
@pytest.mark.parametrize("level", VENDORED)
def test_no_training_scene_holds_a_held_out_composition(level):
    for scene in scenes(level, "train", 3000):
        assert not is_held_out(scene)


@pytest.mark.parametrize("level", VENDORED)
def test_held_out_scenes_are_new_in_their_composition_only(level):
    for scene in scenes(level, "heldout", 300, groups=1):
        (group,) = scene.groups
        assert is_held_out_triple(group.noun, group.colour, scene.style)
    for scene in scenes(level, "heldout", 300, groups=2):
        first, second = scene.groups
        assert is_held_out_pair(first.noun, scene.relation, second.noun)
        for group in scene.groups:
            assert not is_held_out_triple(group.noun, group.colour, scene.style)


@pytest.mark.parametrize("level", VENDORED)
def test_a_tenth_is_held_out(level):
    level = get_level(level)
    triples = len(level.nouns) * len(level.colours) * len(level.styles)
    pairs = len(level.nouns) * (len(level.nouns) - 1) * len(vocabulary.RELATIONS)
    assert 0.06 < len(held_out_triples(level)) / triples < 0.14
    assert 0.06 < len(held_out_pairs(level)) / pairs < 0.14


@pytest.mark.parametrize("level", VENDORED)
def test_every_word_of_a_level_occurs_in_training(level):
    level = get_level(level)
    drawn = scenes(level.name, "train", 4000)
    groups = [(group, scene.style) for scene in drawn for group in scene.groups]
    assert {(group.noun, style) for group, style in groups} == {
        (noun, style) for noun in level.nouns for style in level.styles
    }
    assert {group.colour for group, _ in groups} == {None, *level.colours}
    assert {scene.background for scene in drawn} == set(level.backgrounds)
    assert {scene.relation for scene in drawn} == {None, *vocabulary.RELATIONS}
    two = Counter(len(scene.groups) for scene in drawn)[2]
    assert two / len(drawn) == pytest.approx(level.two_groups, abs=0.05)


def test_a_pair_said_the_other_way_round_is_the_same_pair():
    for first, relation, second in held_out_pairs(get_level("demo")):
        assert is_held_out_pair(second, MIRROR[relation], first)


@pytest.mark.parametrize("level", VENDORED)
def test_layouts_obey_their_scene(level):
    for scene in [*scenes(level, "train", 1500), *scenes(level, "heldout", 300)]:
        boxes = layout(scene)
        assert [box.group for box in boxes] == [
            index for index, group in enumerate(scene.groups) for _ in range(group.count)
        ]
        assert sum(group.count for group in scene.groups) <= 4
        for box in boxes:
            assert min(box.left, box.top) >= 1 / 64
            assert max(box.left + box.width, box.top + box.height) <= 63 / 64
            assert max(box.width, box.height) >= 14 / 64
        for i, a in enumerate(boxes):
            for b in boxes[:i]:
                across = max(a.left - b.left - b.width, b.left - a.left - a.width)
                along = max(a.top - b.top - b.height, b.top - a.top - a.height)
                assert max(across, along) >= 3 / 64
                if scene.relation is not None and a.group != b.group:
                    # b belongs to the first group, a to the second.
                    way = {"left of": a.left - b.left, "right of": b.left - a.left,
                           "above": a.top - b.top, "below": b.top - a.top}  # fmt: skip
                    assert way[scene.relation] > 0


@pytest.mark.parametrize("level", VENDORED)
def test_ink_lies_exactly_in_the_boxes(level):
    for scene in scenes(level, "train", 60):
        image = render(scene, 64)
        ink = (image != vocabulary.BACKGROUNDS[scene.background]).any(-1)
        for _, *box in layout(scene):
            left, top, width, height = (round(64 * edge) for edge in box)
            assert ink[top : top + height, left : left + width].any()
            ink[top : top + height, left : left + width] = False
        assert not ink.any()


def test_sizes_of_an_image_agree():
    for scene in scenes("demo", "train", 30):
        images = {size: render(scene, size) for size in (16, 32, 64, 96, 256)}
        for size, image in images.items():
            assert image.shape == (size, size, 3)
            assert image.dtype == np.uint8
            reduced = np.asarray(Image.fromarray(image).resize((16, 16), Image.Resampling.BOX))
            assert np.abs(reduced.astype(int) - images[16]).mean() < 1.5


@pytest.mark.parametrize("size", [0, 1025])
def test_sizes_out_of_range_are_named(size):
    with pytest.raises(ValueError, match=str(size)):
        render(scenes("demo", "train", 1)[0], size)


@pytest.mark.parametrize("level", VENDORED)
def test_captions_say_every_attribute(level):
    for scene in scenes(level, "train", 500):
        text = caption(scene)
        assert f"{scene.background} background" in text
        assert vocabulary.STYLES[scene.style] in text
        for group in scene.groups:
            noun = vocabulary.NOUNS[group.noun]
            phrase = noun.name if group.count == 1 else noun.plural
            assert re.search(rf"\b{group.colour or ''}\s*{phrase}\b", text)
            if group.count > 1:
                assert vocabulary.COUNT_WORDS[group.count] in text
        if scene.relation is not None:
            assert any(words in text for words in vocabulary.RELATIONS[scene.relation])
        if scene.size is not None:
            assert any(word in text for word in vocabulary.SIZES[scene.size])
        assert not re.search(r"\ba [aeio]|\ban [^aeiou]", text)


def test_wordings_vary_and_plurals_are_english():
    scene = Scene((Group("butterfly", "red", 2), Group("fish")), "white", "noto", "above")
    texts = {caption(replace(scene, variation=i)) for i in range(60)}
    assert "a drawing of two red butterflies above a fish on a white background" in texts
    assert len(texts) == 6


@pytest.mark.slow
@pytest.mark.parametrize("level", VENDORED)
def test_unseen_words_are_in_no_training_caption(level):
    heard = {word for s in scenes(level, "train", 4000) for word in re.findall(r"\w+", caption(s))}
    assert not heard & vocabulary.UNSEEN_WORDS
    level = get_level(level)
    every = {word for noun in level.nouns for word in noun.split()} | {*level.colours}
    assert not every & vocabulary.UNSEEN_WORDS


def test_an_unseen_caption_differs_by_one_word_of_a_seen_composition():
    for index in range(200):
        scene, text = sample_unseen_words(get_level("demo"), 0, index)
        assert not is_held_out(scene)
        old, new = (re.sub(r"\ban?\b", "a", t).split() for t in (caption(scene), text))
        ((before, after),) = [(a, b) for a, b in zip(old, new, strict=True) if a != b]
        before, after = before.strip(","), after.strip(",")
        assert after in vocabulary.SYNONYMS[before]
        assert before in (scene.groups[0].noun, scene.groups[0].colour)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: get_level("hard"), "hard.*quickstart"),
        (lambda: sample_scene(get_level("demo"), "test", 0, 0), "test.*heldout"),
        (lambda: sample_scene(get_level("demo"), "train", 0, 0, 3), "groups=3; choices: None, 1"),
        (
            lambda: scene_of("demo-train-0-1", get_level("demo"), "train", 1),
            "example 'demo-train-0-1' is not of 'demo-train-1'",
        ),
        (lambda: labelled_grid(np.zeros((2, 8, 8, 3), np.uint8), ["one"], 2), "2 images"),
        (lambda: labelled_grid(np.zeros((1, 8, 8, 3), np.float32), ["one"], 2), "float32"),
        (lambda: labelled_grid(np.zeros((1, 8, 8, 3), np.uint8), ["one"], 0), "columns=0"),
    ],
)
def test_bad_arguments_are_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_a_contact_sheet_has_room_for_its_captions():
    sheet = contact_sheet("quickstart", count=5, columns=3, size=64)
    taller = contact_sheet("quickstart", count=7, columns=3, size=64)
    assert sheet.width == taller.width > 3 * 64
    assert taller.height > sheet.height > 2 * 64


def test_a_grid_shows_the_images_unchanged():
    images = np.random.default_rng(0).integers(0, 256, (3, 8, 8, 3), np.uint8)
    long_word = "incomprehensibility"
    sheet = np.asarray(labelled_grid(images, ["a", "", long_word], columns=2, scale=8))
    enlarged = images.repeat(8, 1).repeat(8, 2)
    for image in enlarged:
        windows = np.lib.stride_tricks.sliding_window_view(sheet, image.shape)[:, :, 0]
        corners = np.argwhere((windows[:, :, 0, 0] == image[0, 0]).all(-1))
        assert any((windows[y, x] == image).all() for y, x in corners)
