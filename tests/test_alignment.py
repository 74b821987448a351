"""Alignment: real images are right, planted faults are caught, blur is forgiven."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from scipy import ndimage

from imagen_jax.data.scenes import Group, Scene, get_level, layout, render, sample_scene
from imagen_jax.eval.alignment import alignment_report, score, score_all
from imagen_jax.eval.metrics.intervals import wilson_interval
from imagen_jax.eval.template_matching import decode

DEMO = get_level("demo")
LEVELS = [get_level("quickstart"), DEMO]
PAIR = Scene((Group("apple", "blue"), Group("dog", "red")), "white", "noto", "left of")


def drawn(level, count, groups=None, split="train"):
    return [sample_scene(level, split, 1, i, groups) for i in range(count)]


def share_correct(scenes, images, level):
    return np.mean([result["all_correct"] for result in score_all(scenes, images, level)])


@pytest.mark.slow
@pytest.mark.parametrize("level", LEVELS, ids=lambda level: level.name)
@pytest.mark.parametrize("split", ["train", "heldout"])
def test_real_images_are_right(level, split):
    scenes = drawn(level, 150, split=split)
    assert share_correct(scenes, [render(s, 64) for s in scenes], level) >= 0.98


@pytest.mark.slow
@pytest.mark.parametrize("level", LEVELS, ids=lambda level: level.name)
def test_somewhat_spoilt_images_are_right(level):
    scenes = drawn(level, 100)
    noise = np.random.default_rng(0)
    blurred = [ndimage.gaussian_filter(render(s, 64), (0.8, 0.8, 0)) for s in scenes]
    noisy = [
        (render(s, 64) + noise.normal(0, 8, (64, 64, 3))).clip(0, 255).astype(np.uint8)
        for s in scenes
    ]
    assert share_correct(scenes, blurred, level) >= 0.9
    assert share_correct(scenes, noisy, level) >= 0.9


def test_boxes_are_read_back():
    for scene in drawn(DEMO, 30):
        seen = sorted(thing.box[:2] for thing in decode(render(scene, 64), DEMO).objects)
        true = sorted((placed.left, placed.top) for placed in layout(scene))
        assert len(seen) == len(true)
        np.testing.assert_allclose(seen, true, atol=5 / 64)


def test_images_of_other_sizes_are_read():
    scenes = drawn(DEMO, 30)
    assert share_correct(scenes, [render(s, 128) for s in scenes], DEMO) >= 0.9


@pytest.mark.parametrize(
    ("planted", "wrong"),
    [
        (
            replace(PAIR, groups=(Group("apple", "red"), Group("dog", "blue"))),
            {"colour"},
        ),
        (replace(PAIR, relation="right of"), {"relation"}),
        (replace(PAIR, relation="above"), {"relation"}),
        (
            replace(PAIR, groups=(Group("apple", "blue"), Group("cat", "red"))),
            {"object"},
        ),
        (replace(PAIR, groups=(Group("apple", "blue", 2), Group("dog", "red"))), {"count"}),
        (replace(PAIR, groups=(Group("apple"), Group("dog", "red"))), {"colour"}),
        (replace(PAIR, background="black"), {"background"}),
        (replace(PAIR, style="fluent"), {"style"}),
        (
            Scene((Group("apple", "blue"),), "white", "noto"),
            {"object", "colour", "count", "style", "relation"},
        ),
    ],
    ids=["swapped colours", "swapped sides", "above", "wrong noun", "two", "natural colour",
         "background", "style", "one is missing"],
)  # fmt: skip
@pytest.mark.parametrize("variation", range(5))
def test_planted_faults_are_caught_and_only_they(planted, wrong, variation):
    result = score(PAIR, render(replace(planted, variation=variation), 64), DEMO)
    assert {name for name, holds in result.items() if not holds} == wrong | {"all_correct"}


def test_size_is_scored_when_said():
    large = Scene((Group("star", "red"),), "white", "noto", size="large")
    assert score(large, render(large, 64), DEMO)["size"]
    assert not score(large, render(replace(large, size="small"), 64), DEMO)["size"]
    assert "size" not in score(replace(large, size=None), render(large, 64), DEMO)


def test_only_a_tint_like_the_natural_colours_is_accepted_for_them():
    def colour_holds(noun, style, asked, shown):
        scene, other = (Scene((Group(noun, c),), "white", style) for c in (asked, shown))
        return score(scene, render(other, 64), DEMO)["colour"]

    assert colour_holds("fox", "fluent", None, "orange")
    assert colour_holds("fox", "fluent", "orange", None)
    assert not colour_holds("fox", "fluent", None, "blue")
    assert not colour_holds("fox", "fluent", "blue", None)
    for noun in ("dog", "sunflower", "rocket"):
        assert not colour_holds(noun, "noto", "yellow", "orange")


@pytest.mark.parametrize("name", ["blank", "noise", "smear"])
def test_images_of_nothing_are_wrong(name):
    rng = np.random.default_rng(0)
    images = {
        "blank": np.full((64, 64, 3), 250),
        "noise": rng.integers(0, 256, (64, 64, 3)),
        "smear": ndimage.gaussian_filter(rng.normal(128, 900, (64, 64, 3)), (6, 6, 0)).clip(0, 255),
    }
    for scene in drawn(DEMO, 20):
        result = score(scene, images[name].astype(np.uint8), DEMO)
        assert not result["object"]
        assert not result["all_correct"]


def test_the_report_lies_between_ceiling_and_floor():
    scenes = drawn(DEMO, 40)
    half = [render(scenes[i if i % 2 else i - 1], 64) for i in range(40)]
    report = alignment_report(scenes, np.stack(half), DEMO)
    floor, value, ceiling = (report[name]["all_correct"] for name in ("floor", "images", "ceiling"))
    assert floor["accuracy"] < 0.1 < value["accuracy"] < 0.6 < 0.98 <= ceiling["accuracy"]
    assert value["low"] < value["accuracy"] < value["high"]
    assert value["n"] == 40
    assert report["images"]["relation"]["n"] == sum(len(s.groups) == 2 for s in scenes)


def test_wilson_interval_contains_the_true_share_as_often_as_it_says():
    rng = np.random.default_rng(0)
    hits = [wilson_interval(int(k), 50) for k in rng.binomial(50, 0.9, 2000)]
    assert np.mean([low <= 0.9 <= high for low, high in hits]) == pytest.approx(0.95, abs=0.03)
    assert wilson_interval(0, 10)[0] == 0
    assert wilson_interval(10, 10)[1] == 1


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: alignment_report([], [], DEMO), "0 scenes"),
        (lambda: alignment_report([PAIR], [], DEMO), "0 images for 1 scenes"),
        (lambda: decode(np.zeros((64, 32, 3), np.uint8), DEMO), r"\[64, 32, 3\]"),
        (lambda: decode(np.zeros((64, 64, 3), np.float32), DEMO), "float32"),
        (lambda: wilson_interval(3, 2), "3 of 2"),
    ],
)
def test_bad_arguments_are_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()
