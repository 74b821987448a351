"""The cascade from end to end: a trained work directory, its export, images, files and scores.

pytestmark = pytest.mark.slow  # all need a cascade that was trained or made first

Weights are random where images are compared: two steps of training leave them all but grey.
"""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path
from typing import Any

import flax.traverse_util
import jax
import numpy as np
import pytest
import safetensors.numpy
import tiny
from PIL import Image

from imagen_jax.cascade import Cascade, Samples, Settings, read_record, run
from imagen_jax.checkpoints.cascades import export_cascade, open_cascade
from imagen_jax.data.scenes.levels import get_level
from imagen_jax.eval.scenes import evaluate_scenes
from imagen_jax.sampling import from_uint8, image_keys, sample_stage, to_uint8
from imagen_jax.stage_programs import StageInputs

PROMPTS = ["a red image", "one blue image"]
SEED = 5


def sample(cascade: Cascade, prompts: list[str], seeds: list[int], **kwargs: Any) -> Samples:
    return cascade.sample(prompts, seed=seeds, show_progress=False, **kwargs)


def settings_of(samples: Samples) -> dict[str, Any]:
    return {asked.name: asked.settings for asked in samples.request.stages}


def assert_close(a: np.ndarray, b: np.ndarray, levels: int = 1) -> None:
    """Of two uint8 images, that they differ by rounding alone."""
    assert np.abs(a.astype(int) - b).max() <= levels


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("exported")
    export_cascade(tiny.workdir(), directory)
    return directory


@pytest.fixture(scope="module")
def lively(exported: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The exported cascade with random weights."""
    directory = shutil.copytree(exported, tmp_path_factory.mktemp("lively") / "cascade")
    for stage in open_cascade(exported).stages:
        flat = flax.traverse_util.flatten_dict(tiny.random_params(stage), sep="/")
        half = {name: np.asarray(value, np.float16) for name, value in flat.items()}
        safetensors.numpy.save_file(half, directory / f"{stage.name}.safetensors")
    return directory


@pytest.fixture(scope="module")
def cascade(lively: Path) -> Cascade:
    return Cascade.load(lively)


@pytest.fixture(scope="module")
def four(cascade: Cascade) -> Samples:
    """Two images of each prompt; the other tests ask for four too, which compiles once."""
    return cascade.sample(PROMPTS, seed=SEED, per_prompt=2, show_progress=False)


# weights


def test_export_is_the_ema_in_float16(exported: Path) -> None:
    assert sorted(path.name for path in exported.iterdir()) == [
        "base.safetensors", "cascade.json", "sr.safetensors"
    ]  # fmt: skip
    trained, loaded = open_cascade(tiny.workdir()), open_cascade(exported)
    assert (loaded.encoder, loaded.source) == (trained.encoder, trained.source)
    assert trained.encoder["fingerprint"] == tiny.encoder().fingerprint
    assert [stage.name for stage in trained.stages] == ["base", "sr"]
    assert trained.stages == loaded.stages
    for stage in trained.stages:
        assert stage == tiny.stage(stage.name, *tiny.WITHOUT_SAMPLES)
        jax.tree.map(
            lambda e, h: np.testing.assert_array_equal(
                h, np.float32(np.float16(e)), strict=True
            ),
            *jax.device_get((trained.weights(stage), loaded.weights(stage))),
        )  # fmt: skip


def test_work_directory_and_export_make_the_same_images(exported: Path) -> None:
    made = []
    for directory in (tiny.workdir(), exported):
        cascade = Cascade.load(directory)
        assert cascade.size == tiny.SR
        assert cascade.encoder.name == "tiny"
        assert cascade.source == {"train": {"name": "colours"}}
        made.append(sample(cascade, PROMPTS * 2, [0, 1, 2, 3]))
    for name in ("base", "sr"):
        assert_close(*(samples.stages[name] for samples in made), levels=2)


# images


def test_samples_have_prompts_seeds_settings_and_sizes(cascade: Cascade, four: Samples) -> None:
    assert four.request.prompts == [PROMPTS[0]] * 2 + [PROMPTS[1]] * 2
    assert four.request.seeds == [SEED, SEED + 1] * 2
    assert settings_of(four) == {stage.name: stage.sample for stage in cascade.stages}
    assert four.intermediates == {}
    assert four.stages.keys() == {"base", "sr"}
    for name, size in (("base", tiny.BASE), ("sr", tiny.SR)):
        assert four.stages[name].shape == (4, size, size, 3)
        assert four.stages[name].dtype == np.uint8
        images = four.stages[name].reshape(4, -1)
        assert len(np.unique(images, axis=0)) == 4, "seeds and prompts must make a difference"
        assert np.ptp(images) > 100
    np.testing.assert_array_equal(four.images, four.stages["sr"])


def test_same_seed_same_images(cascade: Cascade, four: Samples) -> None:
    spaced = [f" {prompt}\n" for prompt in PROMPTS]
    again = cascade.sample(spaced, seed=SEED, per_prompt=2, size=tiny.SR, show_progress=False)
    assert (again.request.prompts, again.request.seeds) == (
        four.request.prompts,
        four.request.seeds,
    )
    np.testing.assert_array_equal(again.images, four.images)


def test_an_image_does_not_depend_on_its_batch(
    cascade: Cascade, four: Samples, monkeypatch: pytest.MonkeyPatch
) -> None:
    company = ["green", PROMPTS[1], "a black one with stripes", PROMPTS[0]]
    other = sample(cascade, company, [0, SEED + 1, 9, SEED])
    np.testing.assert_array_equal(other.images[1], four.images[3])
    np.testing.assert_array_equal(other.images[3], four.images[0])
    # Alone, it is computed by a program for one image, which may round otherwise.
    alone = cascade.sample(PROMPTS[1], seed=SEED, show_progress=False)
    assert alone.images.shape == (1, tiny.SR, tiny.SR, 3)
    assert_close(alone.images[0], four.images[2])
    # More than fit into a batch, the last of which is padded.
    monkeypatch.setattr(run, "BATCH_SIZES", (2, 4))
    six = sample(cascade, company + PROMPTS, [0, SEED + 1, 9, SEED, SEED, SEED])
    assert six.images.shape == (6, tiny.SR, tiny.SR, 3)
    np.testing.assert_array_equal(six.images[:4], other.images)
    np.testing.assert_array_equal(six.images[4:], four.images[[0, 2]])


def test_each_stage_starts_from_what_the_one_before_makes(cascade: Cascade, four: Samples) -> None:
    text = cascade.encode(four.request.prompts)
    image = None
    for stage in cascade.stages:
        inputs = StageInputs(text, image_keys(four.request.seeds), image)
        made = sample_stage(stage, cascade.weights(stage.name), inputs, stage.sample)
        assert_close(to_uint8(made), four.stages[stage.name])
        image = from_uint8(four.stages[stage.name])


def test_the_estimate_of_the_last_step_is_the_image(cascade: Cascade, four: Samples) -> None:
    kept = sample(
        cascade, four.request.prompts, four.request.seeds, intermediates=True, steps={"base": 3}
    )
    assert {name: steps.shape for name, steps in kept.intermediates.items()} == {
        "base": (3, 4, tiny.BASE, tiny.BASE, 3), "sr": (2, 4, tiny.SR, tiny.SR, 3)
    }  # fmt: skip
    for name, estimates in kept.intermediates.items():
        assert estimates.dtype == np.uint8
        np.testing.assert_array_equal(estimates[-1], kept.stages[name])
        assert (estimates[0] != estimates[-1]).any()


# settings


def test_settings_hold_for_all_stages_or_for_those_named(cascade: Cascade) -> None:
    with pytest.warns(UserWarning, match=r"aug_level of sr is 1, more noise .* \(0.3 at most\)"):
        settings = cascade.settings(steps=9, sampler={"sr": "ddim"}, guidance=None, aug_level=1)
    defaults = {stage.name: stage.sample for stage in cascade.stages}
    assert settings == {
        "base": dataclasses.replace(defaults["base"], steps=9, aug_level=1.0),
        "sr": dataclasses.replace(defaults["sr"], steps=9, aug_level=1.0, sampler="ddim"),
    }
    with pytest.warns(UserWarning, match="heun on the time grid uniform_t of base"):
        cascade.settings(sampler={"base": "heun"}, time_grid={"sr": "karras"})
    assert cascade.settings() == defaults


def test_settings_of_one_stage_leave_the_one_before(cascade: Cascade, four: Samples) -> None:
    changed = sample(cascade, four.request.prompts, four.request.seeds, guidance={"sr": 9.0})
    before, after = settings_of(four), settings_of(changed)
    assert after["sr"] == dataclasses.replace(before["sr"], guidance=9.0)
    assert after["base"] == before["base"]
    np.testing.assert_array_equal(changed.stages["base"], four.stages["base"])
    assert (changed.stages["sr"] != four.stages["sr"]).any()


def test_guidance(cascade: Cascade, four: Samples) -> None:
    """Weight 0 is no text at all; 1 is the text alone, for which there is a cheaper program."""
    seeds = [SEED] * 2 + [SEED + 1] * 2
    zero = sample(cascade, PROMPTS * 2, seeds, guidance=0.0)
    for images in zero.stages.values():
        assert_close(images[::2], images[1::2], levels=0)
        assert (images[0] != images[2]).any()
    one, nearly = (
        sample(cascade, four.request.prompts, four.request.seeds, guidance=w) for w in (1, 1 + 1e-6)
    )
    for name, images in one.stages.items():
        assert_close(images, nearly.stages[name])
        assert (images != four.stages[name]).any()


# files


@pytest.mark.parametrize("file_format", ["png", "webp"])
def test_saved_images_have_records(
    cascade: Cascade, four: Samples, tmp_path: Path, file_format: str
) -> None:
    prompts = ["a cat, «gemalt» in 東京\0 \u202e", *four.request.prompts[1:]]
    samples = dataclasses.replace(four, request=dataclasses.replace(four.request, prompts=prompts))
    grid, *images = samples.save(tmp_path / "new" / "folder", file_format)
    assert [path.name for path in images] == [f"000{i}.{file_format}" for i in range(4)]
    files = [*images, grid, grid.with_name("metadata.csv")]
    assert sorted(grid.parent.glob("[!.]*")) == files
    for i, path in enumerate(images):
        with Image.open(path) as image:
            np.testing.assert_array_equal(np.asarray(image), four.images[i])
        assert read_record(path) == samples.request.record(i)
    sheet = np.asarray(Image.open(grid))
    scale = 192 // tiny.SR
    assert sheet.shape[1] > 4 * scale * tiny.SR, "all four in one row"
    for image in four.images:
        enlarged = image.repeat(scale, 0).repeat(scale, 1)
        windows = np.lib.stride_tricks.sliding_window_view(sheet, enlarged.shape[:2], (0, 1))
        corner = (windows[..., 0, 0] == enlarged[0, 0]).all(-1)
        found = [
            (y, x)
            for y, x in np.argwhere(corner)
            if (sheet[y : y + len(enlarged), x : x + len(enlarged)] == enlarged).all()
        ]
        assert len(found) == 1
    assert (sheet[-40:] < 100).any(), "labels below"


# scores


def test_evaluation(
    lively: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    with pytest.raises(ValueError, match=r"trained on .*colours.*measured on the built-in scenes"):
        evaluate_scenes(lively, 3, ["heldout"], 0, tmp_path / "none")
    assert not (tmp_path / "none").exists()

    monkeypatch.setattr(tiny, "MAX_TOKENS", 20)  # captions of scenes are longer
    scenes = shutil.copytree(lively, tmp_path / "scenes")
    record = json.loads((scenes / "cascade.json").read_text())
    record["config"]["text"]["max_length"] = 20
    record["source"] = {"train": {"level": "quickstart"}}
    (scenes / "cascade.json").write_text(json.dumps(record))
    output = tmp_path / "scores"

    def evaluate(where: Path, settings: Settings | None = None) -> dict[str, Any]:
        return evaluate_scenes(scenes, 3, ["heldout", "unseen"], 4, where, settings=settings)

    result = evaluate(output, settings={"steps": 2})

    sampled, calls = Cascade.run, 0

    def killed(self: Cascade, *args: Any, **kwargs: Any) -> Samples:
        nonlocal calls
        calls += 1
        if calls == 3:
            raise KeyboardInterrupt
        return sampled(self, *args, **kwargs)

    monkeypatch.setattr(Cascade, "run", killed)
    with pytest.raises(KeyboardInterrupt):
        evaluate(tmp_path / "killed", settings={"steps": 2})
    assert not (tmp_path / "killed" / "scores.json").exists()
    assert evaluate(tmp_path / "killed", settings={"steps": 2}) == result
    assert calls == 4, "the third set alone is sampled again"
    with pytest.raises(ValueError, match=r"another job.*settings\.base\.steps: 2 != 1"):
        evaluate(tmp_path / "killed", settings={"steps": 1})

    assert json.loads((output / "scores.json").read_text()) == result
    assert (result["level"], result["encoder"], result["count"]) == ("quickstart", "tiny", 3)
    assert (result["seed"], result["overrides"]) == (4, {"steps": 2})
    sets = ["heldout-one", "heldout-two", "unseen-words"]
    assert list(result["scores"]) == sets
    printed = capsys.readouterr().out
    for name in sets:
        assert name in printed
        report = result["scores"][name]
        assert report["ceiling"]["all_correct"]["accuracy"] == 1
        assert report["images"]["all_correct"]["n"] == 3
        assert ("relation" in report["images"]) == (name == "heldout-two")
        for part in report.values():
            for score in part.values():
                assert 0 <= score["low"] <= score["accuracy"] <= score["high"] <= 1
                assert score["accuracy"] * score["n"] == pytest.approx(score["correct"])
        with Image.open(output / f"{name}.png") as sheet:
            assert sheet.width > 3 * 2 * tiny.SR
    assert get_level("quickstart").name in (output / "scores.json").read_text()
