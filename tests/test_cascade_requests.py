"""Negative prompts, blends, sizes, edits, sweeps and repetitions of a tiny cascade, and what they
cost. `python tests/test_cascade_requests.py FILE` samples on as many devices as there are.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import jax
import jax.monitoring
import numpy as np
import pytest
import tiny

import imagen_jax.main as main_lib
from imagen_jax.cascade import (
    Axis,
    Blend,
    Cascade,
    Samples,
    Step,
    read_image,
    read_record,
    repeat,
    run,
    sweep,
)
from imagen_jax.cascade.files import save_image
from imagen_jax.cascade.images import resize
from imagen_jax.errors import UserError

PROMPT, OTHER = "a red image", "one blue image"
COLOURFUL = np.random.default_rng(3).integers(0, 256, (tiny.SR, tiny.SR, 3), np.uint8)
HALF = np.arange(tiny.SR)[None, :].repeat(tiny.SR, 0) >= tiny.SR // 2


def sample(cascade: Cascade, what: Any = PROMPT, **options: Any) -> Samples:
    return cascade.sample(what, show_progress=False, **options)


def assert_close(a: np.ndarray, b: np.ndarray, levels: int = 1) -> None:
    """Of two uint8 images, that they differ by rounding alone."""
    assert np.abs(a.astype(int) - b).max() <= levels


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    parent = tmp_path_factory.mktemp("requests")
    return tiny.write_cascade(parent / "cascade", tiny.encoder(), scale=0.2)


@pytest.fixture(scope="module")
def cascade(directory: Path) -> Cascade:
    return Cascade.load(directory)


@pytest.fixture(scope="module")
def plain(cascade: Cascade) -> Samples:
    """A guided image; the other tests sample with its settings, so that few are compiled."""
    return sample(cascade)


# what is said


@pytest.mark.slow
def test_a_negative_prompt_takes_the_place_of_no_text(cascade: Cascade, plain: Samples) -> None:
    np.testing.assert_array_equal(sample(cascade, negative_prompts=" ").images, plain.images)
    negative = sample(cascade, negative_prompts=OTHER)
    assert (negative.stages["base"] != plain.stages["base"]).any()
    # w a + (1 - w) b of these prompts is w' b + (1 - w') a with w' = 1 - w of the two exchanged.
    low = sample(cascade, guidance=0.25, negative_prompts=OTHER)
    exchanged = sample(cascade, OTHER, guidance=0.75, negative_prompts=PROMPT)
    for name, images in low.stages.items():
        assert_close(images, exchanged.stages[name])
    # Guided towards and away from the same, only the text is left.
    same = sample(cascade, guidance=7.0, negative_prompts=PROMPT)
    alone = sample(cascade, guidance=1.0)
    assert_close(same.stages["base"], alone.stages["base"], levels=2)


def test_each_prompt_has_its_own_negative_one(cascade: Cascade) -> None:
    both = sample(cascade, [PROMPT, OTHER], negative_prompts=["", PROMPT], per_prompt=2)
    assert both.request.negative_prompts == ["", "", PROMPT, PROMPT]
    one = sample(cascade, [PROMPT, OTHER], per_prompt=2)
    np.testing.assert_array_equal(both.images[:2], one.images[:2])
    assert (both.images[2:] != one.images[2:]).any()


@pytest.mark.parametrize("how", ["lerp", "slerp"])
def test_blends(cascade: Cascade, how: str) -> None:
    ends = cascade.encode([PROMPT, "a green image"])
    blends = [Blend(PROMPT, "a green image", w, how) for w in (0.0, 0.25, 0.5, 1.0)]
    states, mask = cascade.encode(blends)
    np.testing.assert_allclose(states[[0, 3]], ends.states, atol=1e-6)
    assert (mask == mask[0]).all()
    assert mask[0].sum() == 3
    np.testing.assert_array_equal(states[:, 3:], 0)
    a, b = ends.states[:, 1]  # the words that differ
    if how == "lerp":
        np.testing.assert_allclose(states[1, 1], 0.75 * a + 0.25 * b, atol=1e-6)
        return
    length = np.linalg.norm
    assert length(states[2, 1]) == pytest.approx((length(a) + length(b)) / 2, rel=1e-5)

    def angle(x: np.ndarray, y: np.ndarray) -> float:
        return np.arccos(x @ y / length(x) / length(y))

    assert angle(states[1, 1], a) == pytest.approx(angle(a, b) / 4, rel=1e-4)
    assert angle(states[2, 1], b) == pytest.approx(angle(a, b) / 2, rel=1e-4)
    np.testing.assert_allclose(states[1, 0], ends.states[0, 0], atol=1e-6)  # the word that does not


def test_blends_need_equally_many_tokens(cascade: Cascade) -> None:
    with pytest.raises(ValueError, match=r"'a red image' has 3 and 'green' has 1"):
        cascade.encode([Blend(PROMPT, "green", 0.5)])


def test_precomputed_text_is_as_good_as_prompts(cascade: Cascade, plain: Samples) -> None:
    text = cascade.encode([PROMPT])
    short = type(text)(text.states[:, :3], text.mask[:, :3])
    made = cascade.sample(["anything"], text=short, show_progress=False)
    np.testing.assert_array_equal(made.images, plain.images)
    with pytest.raises(ValueError, match="its record does not hold them"):
        repeat(cascade, made.request.record(0))


# sizes


@pytest.mark.slow
def test_images_of_another_shape(cascade: Cascade) -> None:
    wide = sample(cascade, size=(tiny.SR, 2 * tiny.SR))
    assert wide.images.shape == (1, tiny.SR, 2 * tiny.SR, 3)
    assert wide.stages["base"].shape == (1, tiny.BASE, 2 * tiny.BASE, 3)
    sizes = {asked.name: asked.size for asked in wide.request.stages}
    assert sizes == {"base": (tiny.BASE, 2 * tiny.BASE), "sr": (tiny.SR, 2 * tiny.SR)}


# edits


def test_a_kept_small_image_is_enlarged_to_the_same(cascade: Cascade, plain: Samples) -> None:
    larger = sample(cascade, image=plain.stages["base"])
    assert larger.stages.keys() == {"sr"}
    np.testing.assert_array_equal(larger.images, plain.images)
    sr = Cascade(cascade._pretrained, cascade._load_text_encoder, stages=["sr"])
    np.testing.assert_array_equal(sample(sr, image=plain.stages["base"]).images, plain.images)
    tall = np.zeros((2 * tiny.BASE, tiny.BASE, 3), np.uint8)
    assert sample(cascade, image=tall).images.shape == (1, 2 * tiny.SR, tiny.SR, 3)


def test_img2img_keeps_less_with_more_strength(cascade: Cascade) -> None:
    small = resize(COLOURFUL[None], (tiny.BASE, tiny.BASE))

    def distance(strength: float) -> float:
        made = sample(cascade, image=COLOURFUL, strength=strength, threshold="static")
        assert [asked.name for asked in made.request.stages if asked.edit] == ["base"]
        return np.abs(made.stages["base"].astype(int) - small).mean()

    distances = [distance(strength) for strength in (0.005, 0.1, 0.4)]
    assert distances[0] < 5
    assert distances == sorted(distances)
    by_stage = sample(cascade, image=COLOURFUL, strength={"sr": 0.005}, threshold="static")
    assert_close(by_stage.images[0], COLOURFUL, levels=8)
    started = sample(cascade, image=COLOURFUL, strength=0.005, start_stage="sr")
    assert started.stages.keys() == {"sr"}
    assert_close(started.images[0], COLOURFUL, levels=8)


@pytest.mark.slow
def test_inpainting_keeps_the_rest_bit_for_bit(cascade: Cascade) -> None:
    steps: list[Step] = []
    made = sample(
        cascade, image=COLOURFUL, mask=HALF, resamples=2, per_prompt=2, on_step=steps.append
    )
    for name, size in (("base", tiny.BASE), ("sr", tiny.SR)):
        image = resize(COLOURFUL[None], (size, size))[0]
        kept, new = np.split(made.stages[name], 2, axis=2)
        expected, there = np.split(image, 2, axis=1)
        np.testing.assert_array_equal(kept, np.stack([expected] * 2))
        assert (new != there).any()
        assert (new[0] != new[1]).any(), "the new part has its own noise"
    assert [step.step for step in steps] == [1, 2, 3, 4, 5, 6] * 2, "each of two, back, again"


# repeating


@pytest.mark.slow
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"negative_prompts": OTHER, "guidance": {"base": 3.0}, "steps": {"sr": 3}, "seed": 7},
        {"size": (tiny.SR, 2 * tiny.SR), "aug_level": 0.3},
        {"image": COLOURFUL[: tiny.BASE, : tiny.BASE]},
        {"image": COLOURFUL, "strength": {"base": 0.7, "sr": 0.4}},
        {"image": COLOURFUL, "mask": HALF, "resamples": 2, "start_stage": "base"},
    ],
    ids=["plain", "settings", "size", "enlarged", "img2img", "inpainted"],
)
def test_an_image_is_repeated_from_its_record(
    cascade: Cascade, tmp_path: Path, options: dict[str, Any]
) -> None:
    made = sample(cascade, Blend(PROMPT, "a green image", 0.3), **options)
    _, path = made.save(tmp_path)
    given = {name: options[name] for name in ("image", "mask") if name in options}
    again = cascade.run(repeat(cascade, read_record(path), **given), show_progress=False)
    np.testing.assert_array_equal(again.images, made.images)
    assert (
        again.request.record(0)
        == made.request.record(0)
        == json.loads(json.dumps(made.request.record(0)))
    )


def test_records_that_cannot_be_repeated(cascade: Cascade, directory: Path, tmp_path: Path) -> None:
    record = sample(cascade, image=COLOURFUL, strength=0.5).request.record(0)
    with pytest.raises(ValueError, match="made with image; give the same image again"):
        repeat(cascade, record)
    with pytest.raises(ValueError, match="the image is not the one that"):
        repeat(cascade, record, image=255 - COLOURFUL)
    with pytest.raises(ValueError, match="made without mask; give none"):
        repeat(cascade, record, image=COLOURFUL, mask=HALF)
    other = tiny.write_cascade(tmp_path / "other", tiny.encoder(), scale=0.1)
    with pytest.raises(ValueError, match="made by another cascade: its stage 'base' has"):
        repeat(Cascade.load(other), record, image=COLOURFUL)
    half = Cascade.load(directory, dtype="bfloat16", low_memory=True)
    with pytest.raises(ValueError, match="made with dtype None, not with bfloat16"):
        repeat(half, record, image=COLOURFUL)
    with pytest.raises(ValueError, match="the record is damaged"):
        repeat(cascade, {key: value for key, value in record.items() if key != "seed"})
    with pytest.raises(UserError, match="the record is damaged: TypeError: what was given, or the"):
        repeat(cascade, record | {"given": ["image"]})
    with pytest.raises(UserError, match="made by stages base, but the cascade has base, sr"):
        repeat(cascade, record | {"stages": {"base": record["stages"]["base"]}})
    save_image(COLOURFUL, {"version": 99}, tmp_path / "new.png")
    with pytest.raises(UserError, match=r"new\.png has a record of version 99; this code reads \d"):
        read_record(tmp_path / "new.png")
    (tmp_path / "new.png").write_bytes((tmp_path / "new.png").read_bytes()[:60])
    with pytest.raises(UserError, match=r"new\.png is damaged: OSError: Truncated File Read"):
        read_record(tmp_path / "new.png")
    (tmp_path / "text.png").write_text("no image")
    with pytest.raises(ValueError, match="no image of a kind"):
        read_record(tmp_path / "text.png")


# sweeps


def test_a_sweep_is_all_combinations(cascade: Cascade) -> None:
    axes = [Axis("guidance", [1.5, 3.0], "base"), Axis("aug_level", [0.0, 0.2, 0.4])]
    swept = sweep(cascade, PROMPT, axes, show_progress=False, seed=2)
    assert swept.columns == 3
    assert swept.labels[4] == "base.guidance 3, aug_level 0.2"
    for i, (guidance, level) in ((0, (1.5, 0.0)), (4, (3.0, 0.2))):
        one = sample(cascade, seed=2, guidance={"base": guidance}, aug_level=level)
        np.testing.assert_array_equal(swept.images[i], one.images[0])
    grid = swept.grid()
    assert grid.width > 3 * 128
    assert grid.height > 2 * 128
    by_seed = sweep(cascade, PROMPT, [Axis("seed", [0, 5])], show_progress=False)
    np.testing.assert_array_equal(by_seed.images[1], sample(cascade, seed=5).images[0])


# cost


def test_settings_that_are_data_compile_nothing(cascade: Cascade, plain: Samples) -> None:
    compiled: list[str] = []

    def listen(event: str, seconds: float, **of: Any) -> None:
        del seconds
        if event.endswith("backend_compile_duration"):
            compiled.append(str(of.get("fun_name")))

    jax.monitoring.register_event_duration_secs_listener(listen)
    try:
        for options in (
            {"guidance": {"base": 2.5}}, {"steps": 5}, {"aug_level": 0.4}, {"seed": 9},
            {"negative_prompts": OTHER}, {"time_grid": "uniform_logsnr"},
        ):  # fmt: skip
            made = sample(cascade, "a much longer one than that", **options)
            assert (made.images != plain.images).any()
        named = set(compiled)
        sample(cascade, sampler="ddim(eta=0.37)")  # another program, and of no other test
    finally:
        jax.monitoring.unregister_event_duration_listener(listen)
    assert not any("step" in name or "prepare" in name for name in named), named
    assert any("step" in name for name in compiled)


def test_one_stage_in_memory_at_a_time(
    directory: Path, plain: Samples, monkeypatch: pytest.MonkeyPatch
) -> None:
    cascade = Cascade.load(directory, low_memory=True)
    loaded: list[set[str]] = []
    original = run.sample_steps

    def spy(*args: Any, **kwargs: Any) -> Any:
        loaded.append(set(cascade._weights))
        return original(*args, **kwargs)

    monkeypatch.setattr("imagen_jax.cascade.run.sample_steps", spy)
    np.testing.assert_array_equal(sample(cascade).images, plain.images)
    assert loaded == [{"base"}, {"sr"}]
    assert cascade._weights == {}
    assert cascade._encoder is None


def test_ctrl_c_keeps_finished_images(
    directory: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.setattr(run, "BATCH_SIZES", (1,))
    original, calls = run.sample_steps, []

    def interrupted(*args: Any, **kwargs: Any) -> Any:
        calls.append(args)
        if len(calls) == 6:  # three of the base stage, two of the next
            raise KeyboardInterrupt
        return original(*args, **kwargs)

    monkeypatch.setattr("imagen_jax.cascade.run.sample_steps", interrupted)
    argv = ["sample", PROMPT, "--workdir", str(directory), "--output", str(tmp_path / "out")]
    assert main_lib.main([*argv, "--per-prompt", "3"]) == 130
    said = capsys.readouterr().err.splitlines()[-1]
    assert said.startswith(
        f"imagen: interrupted; 2 of 3 images are done, in {tmp_path / 'out'}, and the same command "
        "resumes; 1 of earlier stages are kept, such as "
    )
    names = ["0000.png", "0001.png", "0002.base.png"]
    assert [path.name for path in sorted((tmp_path / "out").glob("[!.]*"))] == names

    monkeypatch.setattr("imagen_jax.cascade.run.sample_steps", original)
    again = ["sample", "--from", str(tmp_path / "out" / "0001.png"), "--workdir", str(directory)]
    assert main_lib.main([*again, "--output", str(tmp_path / "again")]) == 0
    repeated = read_image(tmp_path / "again" / "0000.png")
    np.testing.assert_array_equal(repeated, read_image(tmp_path / "out" / "0001.png"))
    small = ["--image", str(tmp_path / "out" / "0002.base.png"), "--seed", "2"]
    assert main_lib.main([*argv[:-1], str(tmp_path / "went_on"), *small]) == 0
    assert (tmp_path / "went_on" / "0000.png").is_file()


# devices


def on_all_devices(directory: str, file: str) -> None:
    cascade = Cascade.load(directory)
    made = sample(cascade, [PROMPT, OTHER], per_prompt=4)
    few = sample(cascade, [PROMPT])
    np.savez(file, few=few.images, **made.stages)


@pytest.mark.slow
def test_images_do_not_depend_on_the_number_of_devices(
    cascade: Cascade, directory: Path, plain: Samples, tmp_path: Path
) -> None:
    done = subprocess.run(
        [sys.executable, __file__, directory, tmp_path / "made.npz"],
        env=os.environ | {"JAX_NUM_CPU_DEVICES": "8"},
        capture_output=True, text=True, check=False, timeout=600,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-4000:]
    made = np.load(tmp_path / "made.npz")
    here = sample(cascade, [PROMPT, OTHER], per_prompt=4)
    for name, images in here.stages.items():
        assert_close(made[name], images)
    assert_close(made["few"], plain.images)


if __name__ == "__main__":
    assert jax.device_count() == 8
    on_all_devices(*sys.argv[1:])
