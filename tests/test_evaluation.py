"""Protocols end to end on a tiny cascade: sampled, killed, resumed, divided, measured, reported."""

from __future__ import annotations

import csv
import dataclasses
import importlib.util
import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
import tiny
from PIL import Image
from scipy import ndimage
from test_feature_networks import write_clip

from imagen_jax.cascade import Axis, Cascade, combinations
from imagen_jax.data.scenes.grammar import caption
from imagen_jax.data.scenes.levels import get_level
from imagen_jax.data.scenes.render import render
from imagen_jax.data.scenes.sampling import sample_scene
from imagen_jax.errors import UserError
from imagen_jax.eval import coco, measure, protocols
from imagen_jax.eval.alignment import alignment_report
from imagen_jax.eval.feature_sets import FeatureSet, check_comparable, compare, compute_features
from imagen_jax.eval.features.clip_weights import read_clip
from imagen_jax.eval.features.network import (
    FeatureNetwork,
    clip_network,
    load_network,
    text_features,
)
from imagen_jax.eval.images import Arrays, Files, RenderedScenes, list_images, read_image
from imagen_jax.eval.job import ImageStore, Unfinished
from imagen_jax.eval.measure import Instruments
from imagen_jax.eval.metrics.scores import clip_scores, inception_score
from imagen_jax.eval.prompts import (
    DRAWBENCH_CATEGORIES,
    Prompt,
    Suite,
    read_drawbench,
    read_parti,
)
from imagen_jax.eval.scene_suite import DESCRIPTIONS, scene_suite
from imagen_jax.eval.scenes import evaluate_scenes
from imagen_jax.eval.summary import summary
from imagen_jax.eval.sweep import name_of, pareto, sweep
from imagen_jax.files import only_writer
from imagen_jax.main import main

QUICKSTART, DEMO = get_level("quickstart"), get_level("demo")
LONGEST = 40


def small_network(seed: int = 0) -> FeatureNetwork:
    """Features that cost nothing: random projections of the pixels and of their gradients."""
    weights = np.random.default_rng(seed).normal(size=(2 * 8 * 8 * 3, 12)).astype(np.float32)

    def forward(params: jax.Array, x: jax.Array) -> dict[str, jax.Array]:
        x = jax.image.resize(x, (x.shape[0], 8, 8, 3), "linear") / 255
        both = jax.numpy.concatenate([x, jax.numpy.abs(x - jax.numpy.roll(x, 1, 1))], -1)
        return {"features": both.reshape(len(x), -1) @ params}

    return FeatureNetwork("small", 12, f"seed {seed}", "linear to 8", weights, forward)


@pytest.fixture(scope="module")
def cascade(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cascade]:
    """A cascade with random weights that says it was trained on scenes."""
    patch = pytest.MonkeyPatch()
    patch.setattr(tiny, "MAX_TOKENS", LONGEST)
    directory = tmp_path_factory.mktemp("evaluation") / "cascade"
    tiny.write_cascade(directory, tiny.encoder(), scale=0.2)
    record = json.loads((directory / "cascade.json").read_text())
    record["config"]["text"]["max_length"] = LONGEST
    record["source"] = {"train": {"level": "quickstart"}}
    (directory / "cascade.json").write_text(json.dumps(record))
    yield Cascade.load(directory)
    patch.undo()


def scene_work(count: int) -> protocols.Work:
    return protocols.scene_caption_work(QUICKSTART, "heldout", count, 0, tiny.SR)


def images_of(directory: Path) -> dict[str, bytes]:
    return {p.name: p.read_bytes() for p in list_images(directory / "images")}


# sampling


@pytest.mark.slow
def test_a_killed_job_resumes_to_the_same_images_and_scores(
    cascade: Cascade, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    instruments = Instruments(small_network())
    whole = protocols.run(cascade, scene_work(80), instruments, tmp_path / "whole")

    sampled = Cascade.run
    calls = 0

    def killed(self: Cascade, *args: object, **kwargs: object) -> object:
        nonlocal calls
        calls += 1
        if calls == 3:
            raise KeyboardInterrupt
        return sampled(self, *args, **kwargs)  # type: ignore[arg-type]

    monkeypatch.setattr(Cascade, "run", killed)
    with pytest.raises(KeyboardInterrupt):
        protocols.run(cascade, scene_work(80), instruments, tmp_path / "killed")
    some = images_of(tmp_path / "killed")
    assert len(some) == 32
    (tmp_path / "killed" / "images" / "0000" / "000005.png").unlink()
    resumed = protocols.run(cascade, scene_work(80), instruments, tmp_path / "killed")
    assert calls == 3 + 4, "of five groups of 16, the two that were whole but one are done again"
    assert resumed == whole
    assert images_of(tmp_path / "killed") == images_of(tmp_path / "whole")

    calls = 10
    assert protocols.run(cascade, scene_work(80), instruments, tmp_path / "whole") == whole
    assert calls == 10, "nothing is sampled again"
    with pytest.raises(ValueError, match=r"another job.*settings\.base\.steps: 2 != 1"):
        protocols.run(
            cascade, scene_work(80), instruments, tmp_path / "whole", settings={"steps": 1}
        )


@pytest.mark.slow
def test_processes_divide_a_job(cascade: Cascade, tmp_path: Path) -> None:
    instruments = Instruments(small_network())
    with pytest.raises(Unfinished, match=r"64 of 80 images"):
        protocols.run(cascade, scene_work(80), instruments, tmp_path / "both", process=(1, 2))
    assert len(images_of(tmp_path / "both")) == 16
    assert not (tmp_path / "both" / "scores.json").exists()
    lock = tmp_path / "both" / "processes" / "00000"
    message = "is being written by imagen evaluate"
    with only_writer(lock, "imagen evaluate"), pytest.raises(UserError, match=message):
        protocols.run(cascade, scene_work(80), instruments, tmp_path / "both", process=(0, 2))
    both = protocols.run(cascade, scene_work(80), instruments, tmp_path / "both", process=(0, 2))
    alone = protocols.run(cascade, scene_work(80), instruments, tmp_path / "alone")
    assert both == alone


@pytest.mark.slow
def test_report_and_scores_of_our_suite(cascade: Cascade, tmp_path: Path) -> None:
    work = protocols.scene_suite_work(QUICKSTART, 2, 1, 0, tiny.SR)
    record = protocols.run(cascade, work, Instruments(small_network()), tmp_path)
    assert json.loads((tmp_path / "scores.json").read_text()) == record
    alignment = record["scores"]["alignment"]
    assert set(alignment) == {*DRAWBENCH_CATEGORIES, "all", "floor", "ceiling"}
    assert alignment["all"]["all_correct"]["n"] == 22
    distance = record["scores"]["distance"]
    assert distance["count"] == distance["floor_count"] == 22
    assert distance["frechet"]["floor"] < distance["frechet"]["low"]
    assert distance["title"] == "Fréchet distance, small"
    page = (tmp_path / "report.html").read_text()
    assert page.count("<figure") == 22
    assert not re.search(r'(src|href)="(?!data:)', page), "the page needs nothing else"
    for name in DRAWBENCH_CATEGORIES:
        assert name.replace("&", "&amp;") in page
    assert "FID" not in page


def test_long_prompts_are_cut_and_counted(cascade: Cascade, tmp_path: Path) -> None:
    """Those of a benchmark are not its user's to shorten."""
    suite = Suite("two", [Prompt("a red cat", "Text"), Prompt("dog " * 200, "Text")])
    work = protocols.suite_work(suite, per_prompt=1)
    with pytest.warns(UserWarning, match=r"^1 of 2 prompts have more than the 40 tokens that this"):
        record = protocols.run(cascade, work, Instruments(), tmp_path)
    assert record["cut"] == "1 of 2 prompts, to 40 tokens"
    assert record["cut"] in (tmp_path / "report.html").read_text()


def test_prompts_without_real_images_are_scored_by_clip(cascade: Cascade, tmp_path: Path) -> None:
    clip = read_clip(write_clip(tmp_path / "clip", "hf"))
    prompts = [Prompt("a red cat", "Colors"), Prompt("dog", "Text"), Prompt("a dog", "Text")]
    work = protocols.suite_work(Suite("three", prompts), per_prompt=2)
    scores = protocols.run(cascade, work, Instruments(clip=clip), tmp_path / "out")["scores"]
    assert set(scores) == {"count", "clip"}
    assert {name: row["n"] for name, row in scores["clip"].items() if name != "network"} == {
        "all": 6, "shuffled": 6, "Colors": 2, "Text": 4
    }  # fmt: skip
    assert scores["clip"]["network"] == "clip-vit-w128-8-32"
    network = clip_network(clip)
    images = [read_image(p, tiny.SR, "exact") for p in list_images(tmp_path / "out")]
    cosines = clip_scores(
        network(np.stack(images)), text_features(clip, 2 * [prompt.text for prompt in prompts])
    )
    assert scores["clip"]["all"]["mean"] == pytest.approx(cosines.mean(), rel=1e-4)
    assert scores["clip"]["Colors"]["mean"] == pytest.approx(cosines[[0, 3]].mean(), rel=1e-4)
    assert (tmp_path / "out" / "report.html").read_text().count("<figure") == 6
    assert summary(scores).count("clip-vit-w128-8-32") == 1


def test_prompts_that_are_too_long_are_named_before_sampling(
    cascade: Cascade, tmp_path: Path
) -> None:
    store = ImageStore(tmp_path / "none", ["a cat", "dog " * 60], [0, 1], tiny.SR)
    with pytest.raises(ValueError, match="dog dog"):
        store.sample(cascade)
    assert not (tmp_path / "none").exists()


def test_a_stage_that_enlarges_cannot_be_evaluated_alone(cascade: Cascade, tmp_path: Path) -> None:
    sr = Cascade(cascade._pretrained, cascade._load_text_encoder, stages=["sr"])
    with pytest.raises(UserError, match="'sr' enlarges images, and an evaluation begins with none"):
        ImageStore(tmp_path / "none", ["a cat"], [0], tiny.SR).sample(sr)
    assert not (tmp_path / "none").exists()


def test_too_few_images_for_distances_are_named_before_sampling(
    cascade: Cascade, tmp_path: Path
) -> None:
    message = "more than 5 images, and these are 5; raise --count or --per-category"
    with pytest.raises(UserError, match=message):
        protocols.run(cascade, scene_work(5), Instruments(small_network()), tmp_path / "none")
    assert not (tmp_path / "none").exists()


# captions of a validation set


def coco_files(folder: Path, count: int) -> Path:
    """Annotations in COCO's form with images of several sizes."""
    (folder / "val").mkdir(parents=True)
    images, annotations = [], []
    for i in range(count):
        scene = sample_scene(QUICKSTART, "train", 7, i)
        image = Image.fromarray(render(scene, 48))
        image.crop((0, 0, 48, 40 + i % 8)).save(folder / "val" / f"{i}.png")
        images.append({"id": 100 + i, "file_name": f"{i}.png"})
        annotations += [
            {"image_id": 100 + i, "id": 2 * i + 1, "caption": "the second\ncaption"},
            {"image_id": 100 + i, "id": 2 * i, "caption": f" {caption(scene)}\n"},
        ]
    path = folder / "captions.json"
    path.write_text(json.dumps({"images": images, "annotations": annotations}))
    return path


def test_coco(cascade: Cascade, tmp_path: Path) -> None:
    path = coco_files(tmp_path, 40)
    captions = coco.read_annotations(path, tmp_path / "val", 24, 0)
    again = coco.read_annotations(path, tmp_path / "val", 24, 0)
    assert captions == again != coco.read_annotations(path, tmp_path / "val", 24, 1)
    assert len({c.image for c in captions.chosen}) == 24
    assert not {c.image for c in captions.chosen} & set(captions.rest)
    for chosen in captions.chosen:
        index = int(Path(str(chosen.image)).stem)
        assert chosen.caption == caption(sample_scene(QUICKSTART, "train", 7, index))
    work = protocols.coco_work(captions, tiny.SR)
    record = protocols.run(cascade, work, Instruments(small_network()), tmp_path / "out")
    distance = record["scores"]["distance"]
    assert (distance["count"], distance["floor_count"]) == (24, 16)
    assert "(of 16 images only)" in (tmp_path / "out" / "report.html").read_text()
    with pytest.raises(ValueError, match="41 captions of 40"):
        coco.read_annotations(path, tmp_path / "val", 41, 0)
    (tmp_path / "val" / "3.png").unlink()
    with pytest.raises(UserError, match=r"1 images .* missing.*3\.png"):
        coco.read_annotations(path, tmp_path / "val", 24, 0)


# what the numbers tell


def damaged(strength: float, how: str, images: np.ndarray) -> np.ndarray:
    rng = np.random.default_rng(0)
    x = images.astype(np.float32)
    if how == "blur":
        x = ndimage.gaussian_filter(x, (0, strength, strength, 0))
    elif how == "noise":
        x = x + rng.normal(0, 25 * strength, x.shape)
    else:
        x = x + np.float32([32, -16, -32]) * strength
    return x.clip(0, 255).astype(np.uint8)


def real(seed: int, count: int = 60) -> np.ndarray:
    scenes = [sample_scene(QUICKSTART, "train", seed, i) for i in range(count)]
    return np.stack([render(scene, 64) for scene in scenes])


@pytest.fixture(scope="module")
def mobilenet() -> FeatureNetwork:
    return load_network("mobilenet-v2")


@pytest.fixture(scope="module")
def real_sets(mobilenet: FeatureNetwork) -> list[FeatureSet]:
    return [compute_features(mobilenet, Arrays(f"real {i}", real(i))) for i in (1, 2, 3)]


@pytest.mark.slow
def test_frechet_distance_of_real_images_is_the_floor(real_sets: list[FeatureSet]) -> None:
    one, other, third = real_sets
    frechet = compare(third, one, other, resamples=20)["frechet"]
    assert frechet["low"] < frechet["floor"] < frechet["high"]


@pytest.mark.slow
@pytest.mark.parametrize("how", ["blur", "noise", "colour"])
def test_distances_rise_with_damage(
    how: str, mobilenet: FeatureNetwork, real_sets: list[FeatureSet]
) -> None:
    one, other, third = real_sets
    sets = [third]
    for strength in (1.0, 2.0, 4.0):
        images = Arrays(f"{how} {strength}", damaged(strength, how, real(3)))
        sets.append(compute_features(mobilenet, images))
    rows = [compare(found, one, other, resamples=2) for found in sets]
    for metric in ("frechet", "kernel"):
        values = [row[metric]["value"] for row in rows]
        assert values == sorted(values), (metric, values)
        assert values[-1] > 1.3 * rows[0][metric]["floor"]


def test_alignment_falls_with_swapped_captions() -> None:
    scenes = [sample_scene(DEMO, "train", 3, i) for i in range(40)]
    images = [render(scene, 64) for scene in scenes]
    shares = []
    for swapped in (0, 10, 20, 40):
        order = np.arange(40)
        order[:swapped] = np.roll(order[:swapped], 1)
        report = alignment_report([scenes[i] for i in order], images, DEMO)
        shares.append(report["images"]["all_correct"]["accuracy"])
    assert shares == sorted(shares, reverse=True)
    assert shares[0] > 0.97
    assert shares[-1] < 0.1
    assert shares[1] == pytest.approx(0.75, abs=0.05)


# comparisons


def test_feature_sets_that_cannot_be_compared(tmp_path: Path) -> None:
    network = small_network()
    a = compute_features(network, Arrays("a", real(1, 12)))
    b = compute_features(network, Arrays("b", real(2, 12)))
    check_comparable(a, b)
    a.save(tmp_path / "a.npz")
    loaded = FeatureSet.load(tmp_path / "a.npz")
    assert (loaded.identity, loaded.data) == (a.identity, a.data)
    np.testing.assert_array_equal(loaded.moments.scatter, a.moments.scatter)
    with pytest.raises(ValueError, match=r"12 and 11 images.*first 11"):
        check_comparable(a, b.first(11))
    with pytest.raises(ValueError, match="weights: 'seed 0' != 'seed 1'"):
        check_comparable(a, compute_features(small_network(1), Arrays("b", real(2, 12))))
    half = real(2, 12)[:, ::2, ::2]
    with pytest.raises(ValueError, match="side: 64 != 32"):
        check_comparable(a, compute_features(network, Arrays("b", half)))
    with pytest.raises(ValueError, match="are the same images"):
        check_comparable(a, loaded)
    (tmp_path / "b.npz").write_text("no features")
    with pytest.raises(ValueError, match=r"b\.npz is no file of"):
        FeatureSet.load(tmp_path / "b.npz")


def test_inception_scores_stand_beside_distances(tmp_path: Path) -> None:
    small = small_network()

    def forward(params: jax.Array, x: jax.Array) -> dict[str, jax.Array]:
        features = small.forward(params, x)["features"]
        return {"features": features, "logits_unbiased": 3 * features}

    network = dataclasses.replace(small, name="inception-v3", forward=forward)
    sets = [compute_features(network, Arrays(f"real {i}", real(i, 24))) for i in (1, 2)]
    sets[1].save(tmp_path / "real.npz")
    sampled, reference = sets[0].first(20), FeatureSet.load(tmp_path / "real.npz").first(20)
    result = compare(sampled, reference, None, resamples=2)
    mean, deviation = inception_score(3 * sets[0].features[:20])
    of_real, _ = inception_score(3 * sets[1].features[:20])
    found = result["inception_score"]
    assert (found["value"], found["deviation"]) == pytest.approx((mean, deviation), rel=1e-5)
    assert found["real"] == pytest.approx(of_real, rel=1e-5)
    assert f"{mean:.4g} ± {deviation:.2g}" in summary({"distance": result})
    assert "inception_score" not in compare(sampled.first(9), reference.first(9), None, resamples=2)


@pytest.mark.slow
def test_folders_are_compared(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for seed, name in enumerate(("sampled", "real", "more")):
        (tmp_path / name).mkdir()
        for i, image in enumerate(real(seed, 8)):
            Image.fromarray(image).save(tmp_path / name / f"{i}.png")
    folders = [str(tmp_path / name) for name in ("sampled", "real", "more")]
    file = str(tmp_path / "real.npz")
    assert main(["evaluate", "features", folders[1], "--output", file]) == 0
    capsys.readouterr()
    assert main(["evaluate", "compare", folders[0], file, "--floor", folders[2]]) == 0
    printed = capsys.readouterr().out
    assert "8 images" in printed
    assert "Fréchet distance, mobilenet-v2" in printed
    assert "FID" not in printed
    assert main(["evaluate", "compare", *folders[:2], "--floor", folders[2]]) == 0
    assert capsys.readouterr().out == printed, "from the file as from the folder"
    assert main(["evaluate", "compare", folders[0], file, "--size", "32", "--fit", "crop"]) == 64
    assert "side: 32 != 64" in capsys.readouterr().err


def test_images_of_files(tmp_path: Path) -> None:
    wide = np.zeros((20, 40, 3), np.uint8)
    wide[:, 10:30] = (10, 200, 30)
    Image.fromarray(wide).save(tmp_path / "wide.png")
    middle = read_image(tmp_path / "wide.png", 10, "crop")
    assert (middle == (10, 200, 30)).all()
    with pytest.raises(ValueError, match="has 40 x 20 pixels, not 10 x 10"):
        Files("wide", [tmp_path / "wide.png"], 10).read(0, 1)
    clear = Image.new("RGBA", (4, 4), (255, 0, 0, 0))
    clear.save(tmp_path / "clear.png")
    assert (read_image(tmp_path / "clear.png", 4, "exact") == 255).all()
    (tmp_path / "broken.png").write_bytes(b"\x89PNG nothing")
    with pytest.raises(ValueError, match=r"broken\.png cannot be read"):
        read_image(tmp_path / "broken.png", 4, "exact")
    with pytest.raises(UserError, match=r"no images \(\.png, .*\) in .*nowhere"):
        list_images(tmp_path / "nowhere")


# prompts


def test_suite_for_scenes_asks_for_what_it_checks() -> None:
    suite = scene_suite(DEMO, 12, 0)
    assert tuple(suite.categories()) == DRAWBENCH_CATEGORIES
    assert suite == scene_suite(DEMO, 12, 0) != scene_suite(DEMO, 12, 1)
    by_category = {name: [suite.prompts[i] for i in rows] for name, rows in
                   suite.categories().items()}  # fmt: skip
    for name, prompts in by_category.items():
        assert len({p.text for p in prompts}) == len(prompts) == 12, name
    images = [render(p.scene, 64) for p in suite.prompts if p.scene is not None]
    scenes = [p.scene for p in suite.prompts if p.scene is not None]
    report = alignment_report(scenes, images, DEMO)
    assert report["images"]["all_correct"]["accuracy"] > 0.97
    for prompt in by_category["Misspellings"] + by_category["Descriptions"]:
        assert not re.search(rf"\b{prompt.scene.groups[0].noun}\b(?! background)", prompt.text)
    for prompt in by_category["Text"]:
        assert f'"{prompt.scene.groups[0].noun.upper()}"' in prompt.text
    pairs = by_category["Gary Marcus et al."]
    for one, other in zip(pairs[::2], pairs[1::2], strict=True):
        assert one.scene.groups == other.scene.groups[::-1]
        assert sorted(one.text.split()) == sorted(other.text.split()) or one.text != other.text
    assert {p.scene.groups[0].count for p in by_category["Counting"]} == {2, 3}
    assert set(DEMO.nouns) <= set(DESCRIPTIONS)


def test_drawbench_and_partiprompts_are_read(tmp_path: Path) -> None:
    path = tmp_path / "drawbench.csv"
    path.write_text(
        'Prompts,Category\nA red colored car.,Colors\n"A sign, ""Hi"".",Text\n'
        "A pear cut into seven pieces,Gary Marcus et al. \n",
        encoding="utf-8-sig",
    )
    suite = read_drawbench(path)
    assert [p.text for p in suite.prompts] == [
        "A red colored car.", 'A sign, "Hi".', "A pear cut into seven pieces"
    ]  # fmt: skip
    assert list(suite.categories()) == ["Colors", "Text", "Gary Marcus et al."]
    parti = tmp_path / "parti.tsv"
    parti.write_text(
        "Prompt\tCategory\tChallenge\tNote\nbond\tAbstract\tBasic\t\n"
        'a club called "The Wanderers"\tWorld Knowledge\tImagination\t"\n'
    )
    assert [p.text for p in read_parti(parti).prompts] == ["bond", 'a club called "The Wanderers"']
    path.write_text("Prompts,Category\nA car,Cars\n")
    with pytest.raises(ValueError, match=r"\['Cars'\]; its own are Colors"):
        read_drawbench(path)
    with pytest.raises(ValueError, match=r"columns \['Prompts,Category'\]"):
        read_parti(path)
    parti.write_text("Prompt\tCategory\n\tAbstract\n")
    with pytest.raises(ValueError, match="row 1 has an empty prompt"):
        read_parti(parti)
    parti.write_text("Prompt\tCategory\n")
    with pytest.raises(UserError, match=r"parti\.tsv has no prompts"):
        read_parti(parti)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda d: small_network().outputs(np.zeros((0, 8, 8, 3), np.uint8)),
         "no images were given to small"),
        (lambda d: small_network().outputs(np.zeros((2, 8, 8, 3))),
         "images must be uint8 [n, h, w, 3]; got float64 [2, 8, 8, 3]"),
        (lambda d: compute_features(small_network(), Arrays("a", real(1, 3))).first(4),
         "'a' has 3 images; cannot take 4"),
        (lambda d: Files("a", [], 8, "stretch"), "unknown fit 'stretch'; choices: exact, crop"),
        (lambda d: scene_suite(DEMO, 0, 0), "per_category must be at least 1, got 0"),
        (lambda d: evaluate_scenes(None, 1, ["odd"], 0, d), "unknown splits ['odd']; choices: "),
        (lambda d: evaluate_scenes(None, 0, ["train"], 0, d), "count must be at least 1, got 0"),
        (lambda d: coco.read_annotations(written(d, "[]"), d, 2, 0),
         "captions.json is not of the form of COCO's captions_val2014.json: TypeError("),
        (lambda d: coco.choose([coco.Captioned("", d)] * 3, 2, 0),
         "2 of the chosen captions are empty"),
        (lambda d: sweep(None, scene_work(8)._replace(real=None), None, d, []),
         "has no real images to measure a distance from"),
        (lambda d: sweep(None, scene_work(8)._replace(level=None), Instruments(None),
                         d, []), "alignment of prompts that are no scenes needs CLIP"),
    ],
)  # fmt: skip
def test_what_cannot_be_measured_is_said(
    call: Callable[[Path], Any], message: str, tmp_path: Path
) -> None:
    with pytest.raises(UserError) as error:
        call(tmp_path)
    assert message in str(error.value)


def written(directory: Path, content: str) -> Path:
    (directory / "captions.json").write_text(content)
    return directory / "captions.json"


def test_charts_need_matplotlib(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    plan = ["plan", "--config", "quickstart", "--stage", "base", "--chart", f"{tmp_path}/x.png"]
    sweep = ["evaluate", "sweep", "--sweep", "guidance=1,2", "--output", str(tmp_path / "out")]
    for command, purpose in ((plan, "imagen plan --chart"), (sweep, "imagen evaluate sweep")):
        assert main(command) == 64
        said = capsys.readouterr().err
        assert f"{purpose} needs packages that are not installed (matplotlib): " in said


# sweeps


@pytest.mark.slow
def test_sweep(cascade: Cascade, tmp_path: Path) -> None:
    guidance = Axis("guidance", [2.0, 3.0], "base")
    axes = [guidance, Axis("threshold", ["none", "dynamic"])]
    instruments = Instruments(small_network())
    work = scene_work(8)
    sweep(cascade, work, instruments, tmp_path, [guidance, Axis("threshold", ["none"])])
    first = images_of(tmp_path / "base.guidance=3,threshold=none")
    rows = sweep(cascade, work, instruments, tmp_path, axes)
    assert images_of(tmp_path / "base.guidance=3,threshold=none") == first
    assert first != images_of(tmp_path / "base.guidance=2,threshold=none")
    assert [(row["base.guidance"], row["threshold"]) for row in rows] == [
        (2.0, "none"), (2.0, "dynamic"), (3.0, "none"), (3.0, "dynamic")
    ]  # fmt: skip
    with open(tmp_path / "sweep.csv", newline="") as file:
        written = list(csv.DictReader(file))
    assert [float(row["distance"]) for row in written] == [row["distance"] for row in rows]
    assert 1 <= sum(row["pareto"] for row in rows) <= 4
    job = json.loads((tmp_path / "base.guidance=3,threshold=none" / "job.json").read_text())
    assert job["settings"]["base"]["guidance"] == 3
    assert job["settings"]["sr"]["guidance"] != 3, "guidance is of the base stage"
    from imagen_jax.eval.sweep_chart import draw

    draw(rows, "base.guidance", ["base.guidance", "threshold"], tmp_path / "sweep.png")
    with Image.open(tmp_path / "sweep.png") as chart:
        assert chart.width > 800
    sweep(cascade, work, instruments, tmp_path / "sr", [Axis("steps", [3], "sr")])
    job = json.loads((tmp_path / "sr" / "sr.steps=3" / "job.json").read_text())
    assert job["settings"]["sr"]["steps"] == 3 != job["settings"]["base"]["steps"]
    with pytest.raises(ValueError, match="'top'"):
        sweep(cascade, work, instruments, tmp_path, [Axis("steps", [3], "top")])
    with pytest.raises(ValueError, match="lanczos"):
        sweep(cascade, work, instruments, tmp_path, [Axis("sampler", ["ddim", "lanczos"])])


def test_pareto_and_combinations() -> None:
    points = [(1.0, 0.5), (2.0, 0.9), (2.0, 0.8), (3.0, 0.9), (1.0, 0.5), (0.5, 0.1)]
    assert pareto(points) == {0, 1, 4, 5}
    assert pareto([]) == set()
    axes = [Axis("guidance", [1.0, 2.5], "base"), Axis("guidance", [1.0], "sr"), Axis("steps", [4])]
    found = combinations(axes)
    assert [name_of(each.values) for each in found] == [
        "base.guidance=1,sr.guidance=1,steps=4",
        "base.guidance=2.5,sr.guidance=1,steps=4",
    ]
    assert found[1].settings == {"guidance": {"base": 2.5, "sr": 1.0}, "steps": 4}
    with pytest.raises(ValueError, match="nothing to sweep"):
        combinations([])
    with pytest.raises(ValueError, match="two axes of the sweep are over 'steps'"):
        combinations([Axis("steps", [4], "base"), Axis("steps", [5])])
    with pytest.raises(ValueError, match="steps has a value twice"):
        Axis("steps", [4, 4])


def test_fingerprints_of_the_reference_set() -> None:
    scenes = [sample_scene(QUICKSTART, "train", 1, i) for i in range(3)]
    found = RenderedScenes("a", scenes, 8).fingerprint()
    assert found == RenderedScenes("b", scenes, 8).fingerprint()
    assert found != RenderedScenes("a", scenes, 9).fingerprint()
    assert found != RenderedScenes("a", scenes[::-1], 8).fingerprint()


def test_prompts_without_a_scene_have_no_alignment() -> None:
    suite = Suite("mine", [Prompt("a cat", "Animals", None)])
    with pytest.raises(UserError, match="3 prompts have no scene to be compared with"):
        measure._alignment([None] * 3, suite, QUICKSTART)
