"""`imagen sample` from the command line to files: edits, sweeps, blends and what it refuses."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import tiny
from PIL import Image

import imagen_jax.main as main_lib
from imagen_jax import open_corpus
from imagen_jax.cascade import Cascade, crop_to, read_image, read_record
from imagen_jax.cascade.images import resize

PROMPT = "a red image"


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    parent = tmp_path_factory.mktemp("cli_sample")
    return tiny.write_cascade(parent / "cascade", tiny.encoder(), scale=0.2)


def imagen_sample(directory: Path, output: Path, *argv: str) -> list[str]:
    """Runs the command, and returns the names of the files that it has written."""
    there = ["--workdir", str(directory), "--output", str(output)]
    assert main_lib.main(["sample", *argv, *there]) == 0
    return sorted(path.name for path in output.iterdir() if path.name[0] != ".")


def test_a_photo_is_cropped_and_inpainted(directory: Path, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    photo = rng.integers(0, 256, (24, 36, 3), np.uint8)
    mask = np.zeros((24, 36), np.uint8)
    mask[:, 18:] = 255
    Image.fromarray(photo).save(tmp_path / "photo.png")
    Image.fromarray(mask).save(tmp_path / "mask.png")
    given = ["--image", str(tmp_path / "photo.png"), "--mask", str(tmp_path / "mask.png"), "--crop"]
    output = tmp_path / "out"
    files = imagen_sample(directory, output, PROMPT, *given, "--format", "webp", "--resamples", "2")
    assert files == ["0000.webp", "grid.png", "metadata.csv"]
    made = read_image(output / "0000.webp")
    small = resize(crop_to(photo, (1, 1))[None], (tiny.SR, tiny.SR))[0]
    np.testing.assert_array_equal(made[:, : tiny.SR // 2], small[:, : tiny.SR // 2])
    assert (made[:, tiny.SR // 2 :] != small[:, tiny.SR // 2 :]).any()

    again = tmp_path / "again"
    repeated = ["--from", str(output / "0000.webp"), *given, "--low-memory"]
    assert imagen_sample(directory, again, *repeated) == ["0000.png", "grid.png", "metadata.csv"]
    np.testing.assert_array_equal(read_image(again / "0000.png"), made)


@pytest.mark.slow
def test_settings_reach_the_record_and_are_repeated(directory: Path, tmp_path: Path) -> None:
    asked = [
        "--sampler", "base=ddim(eta=0.5),sr=heun(churn=2)", "--time-grid", "sr=karras",
        "--end-logsnr", "-2", "--pad", "2", "--threshold-cap", "sr=1.5", "--guidance", "base=2",
        "--guidance-max-logsnr", "base=-1", "--threshold", "dynamic",
    ]  # fmt: skip
    imagen_sample(directory, tmp_path / "made", PROMPT, *asked)
    stages = read_record(tmp_path / "made" / "0000.png")["stages"]
    base, sr = (stages[name]["settings"] for name in ("base", "sr"))
    assert (base["sampler"], sr["sampler"]) == ("ddim(eta=0.5)", "heun(churn=2)")
    assert (base["end_logsnr"], sr["end_logsnr"], sr["pad"]) == (-2, -2, 2)
    assert (base["guidance_max_logsnr"], sr["guidance_max_logsnr"]) == (-1, None)
    assert (base["threshold_cap"], sr["threshold_cap"]) == (None, 1.5)
    again = tmp_path / "again"
    imagen_sample(directory, again, "--from", str(tmp_path / "made" / "0000.png"))
    np.testing.assert_array_equal(
        read_image(again / "0000.png"), read_image(tmp_path / "made" / "0000.png")
    )


def test_a_sweep_over_samplers_with_options(directory: Path, tmp_path: Path) -> None:
    sweep = ["--sweep", "base.sampler=ddim,ddim(eta=0.5),heun(churn=1, churn_max=2)"]
    files = imagen_sample(directory, tmp_path / "out", PROMPT, *sweep, "--time-grid", "karras")
    assert files == ["0000.png", "0001.png", "0002.png", "grid.png", "metadata.csv"]
    record = read_record(tmp_path / "out" / "0002.png")
    assert record["stages"]["base"]["settings"]["sampler"] == "heun(churn=1, churn_max=2)"


def test_a_byte_order_mark_is_no_part_of_a_prompt(directory: Path, tmp_path: Path) -> None:
    prompts = tmp_path / "prompts.txt"
    prompts.write_bytes(b"\xef\xbb\xbfa red image\r\ngreen\r\n")
    imagen_sample(directory, tmp_path / "out", "--prompts", str(prompts))
    said = [read_record(tmp_path / "out" / f"000{i}.png")["prompt"] for i in range(2)]
    assert said == ["a red image", "green"]


def test_blends_and_sweeps_are_grids(directory: Path, tmp_path: Path) -> None:
    blend = [PROMPT, "--blend-with", "a green image", "--blends", "3", "--seed", "4"]
    files = imagen_sample(directory, tmp_path / "blend", *blend)
    assert files == ["0000.png", "0001.png", "0002.png", "grid.png", "metadata.csv"]
    weights = [
        read_record(tmp_path / "blend" / f"{i:04d}.png")["prompt"]["weight"] for i in range(3)
    ]
    assert weights == [0.0, 0.5, 1.0]

    prompts = tmp_path / "prompts.txt"
    prompts.write_text("green\n\nblue\n")
    sweep = ["--prompts", str(prompts), "--sweep", "base.guidance=1.5,3", "--sweep", "seed=1,2"]
    files = imagen_sample(directory, tmp_path / "sweep", *sweep)
    assert files == [
        *(f"{i:04d}.png" for i in range(8)),
        "grid_0000.png",
        "grid_0001.png",
        "metadata.csv",
    ]
    record = read_record(tmp_path / "sweep" / "0006.png")
    assert (record["prompt"], record["seed"]) == ("blue", 1)
    assert record["stages"]["base"]["settings"]["guidance"] == 3
    assert record["stages"]["sr"]["settings"]["guidance"] == 1


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        ([PROMPT, "--mask", "m.png"], "there is no --image"),
        ([PROMPT, "--crop"], "there is no --image"),
        ([PROMPT, "--image", "absent.png"], "no image absent.png: there is no such file"),
        ([PROMPT, "--image", "prompts.txt"], "prompts.txt: image is text"),
        ([PROMPT, "--blends", "3"], "--blends needs --blend-with"),
        ([PROMPT, "--blend-with", "a", "--blends", "1"], "--blends must be at least 2"),
        ([PROMPT, "--sweep", "steps=1", "--per-prompt", "2"], "one image of each prompt"),
        ([PROMPT, "--sweep", "top.steps=1,2"], "unknown stage 'top'"),
        ([PROMPT, "--start-stage", "sr"], "give it as image"),
        ([PROMPT, "--negative", "x", "--guidance", "1"], "guidance is 1 everywhere"),
        ([PROMPT, "--sampler", "nonsense"], "base: sampler is 'nonsense'; choices: ddpm("),
        ([PROMPT, "--size", "9"], "cannot make images of 9 x 9"),
        ([PROMPT, "--output", "binary.txt"], "binary.txt is a file; give the path of a folder"),
        (["--from", "prompts.txt"], "prompts.txt is no image"),
        (["--from", "a.png", PROMPT, "--steps", "2"], "leave out prompts, --steps"),
        (["--prompts", "binary.txt"], "binary.txt is no text in UTF-8"),
    ],
)
def test_mistakes(
    directory: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str], argv: list[str], message: str,
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    Path("prompts.txt").write_text("a cat")
    Path("binary.txt").write_bytes(b"\x80\xff")
    monkeypatch.setattr(Cascade, "load_rest", lambda _: pytest.fail("waited for weights"))
    assert main_lib.main(["sample", *argv, "--workdir", str(directory)]) == 64
    error = capsys.readouterr().err.splitlines()
    assert message in error[-1]
    assert sum(line.startswith("imagen: error: ") for line in error) == 1
    assert not Path("samples").exists()


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--size", "64by64"], "must be SIDE or HEIGHTxWIDTH"),
        (["--sweep", "colour=1,2"], "with NAME one of guidance"),
        (["--sweep", "steps=1,x"], "steps=1,x"),
        (["--guidance", "base=1,=2"], "must be one value, or STAGE=VALUE"),
    ],
)
def test_malformed_arguments(
    argv: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stop:
        main_lib.main(["sample", PROMPT, *argv])
    assert stop.value.code == 64
    assert message in capsys.readouterr().err


def test_what_was_sampled_is_a_corpus(directory: Path, tmp_path: Path) -> None:
    prompts = ["a red apple", 'a "blue" star, small']
    imagen_sample(directory, tmp_path / "made", *prompts, "--per-prompt", "2")
    corpus = open_corpus(tmp_path / "made")
    found = [example.caption for example in corpus.examples_of_shard(0, 1)]
    assert found == [prompts[0], prompts[0], prompts[1], prompts[1]]
