"""Samples to look at, streams, and folders that no run overwrites, of a tiny cascade."""

from __future__ import annotations

import inspect
import io
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
from PIL import Image

import imagen_jax.main as main_lib
from imagen_jax.cascade import Cascade, Folder, Request, Samples, Settings, read_image, read_record
from imagen_jax.cascade import cascade as cascade_lib
from imagen_jax.diffusion import DDIM

PROMPTS = ["a red image", "one blue image"]


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    parent = tmp_path_factory.mktemp("samples")
    return tiny.write_cascade(parent / "cascade", tiny.encoder(), scale=0.2)


@pytest.fixture(scope="module")
def cascade(directory: Path) -> Cascade:
    return Cascade.load(directory)


@pytest.fixture(scope="module")
def samples(cascade: Cascade) -> Samples:
    return cascade.sample(PROMPTS, per_prompt=2, show_progress=False)


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir() if path.name[0] != ".")


def content(folder: Path) -> dict[str, bytes]:
    return {name: (folder / name).read_bytes() for name in names(folder)}


# samples


def test_samples_are_a_sequence_of_images(samples: Samples) -> None:
    assert len(samples) == len(list(samples)) == 4
    assert isinstance(samples[0], Image.Image)
    np.testing.assert_array_equal(
        np.stack([np.asarray(image) for image in samples]), samples.images
    )
    np.testing.assert_array_equal(np.asarray(samples[-1]), samples.images[3])
    some = samples[1:3]
    assert some.request.prompts == PROMPTS
    assert some.request.seeds == [1, 0]
    np.testing.assert_array_equal(some.images, samples.images[1:3])
    np.testing.assert_array_equal(some.stages["base"], samples.stages["base"][1:3])
    assert some.request.record(1) == samples.request.record(2)
    with pytest.raises(IndexError):
        samples[4]
    with pytest.raises(IndexError, match="samples are sliced in steps of 1, got 2"):
        samples[::2]


def test_samples_have_png_and_html_of_their_own(samples: Samples) -> None:
    grid = samples.grid()
    assert grid.width > 4 * 192
    assert samples.grid(columns=2).height > grid.height
    with Image.open(io.BytesIO(samples._repr_png_())) as shown:
        assert shown.size == grid.size
    html = samples._repr_html_()
    assert html.count("<img") == 4
    assert "a red image, seed 1" in html


def test_prompts_are_escaped_in_html(cascade: Cascade) -> None:
    html = cascade.sample("<b> red", show_progress=False)._repr_html_()
    assert "&lt;b&gt; red" in html


def test_samples_can_be_edited_again(cascade: Cascade, samples: Samples) -> None:
    """An image of Pillow is as good as its array."""
    made = [
        cascade.sample(PROMPTS[0], image=image, strength=0.5, show_progress=False).images
        for image in (samples[0], samples.images[0])
    ]
    np.testing.assert_array_equal(*made)


# requests


def test_sample_names_all_that_a_request_takes() -> None:
    asked = inspect.signature(Cascade.request).parameters
    taken = inspect.signature(Cascade.sample).parameters
    assert [taken[name] for name in asked] == list(asked.values())
    run = inspect.signature(Cascade.run).parameters
    assert set(taken) == set(asked) | set(run) - {"request"}
    assert set(cascade_lib.SETTINGS) < set(asked)
    assert set(Settings.__annotations__) == set(cascade_lib.SETTINGS)


def test_a_sampler_is_given_as_text_or_as_it_is(cascade: Cascade) -> None:
    first, second = (
        cascade.request(PROMPTS, sampler=given).stages[0].settings.sampler
        for given in (DDIM(eta=0.5), "ddim(eta=0.5)")
    )
    assert first == second == "ddim(eta=0.5)"
    by_stage = cascade.request(PROMPTS, sampler={"sr": DDIM()})
    assert [asked.settings.sampler for asked in by_stage.stages] == ["dpmpp_2m", "ddim"]


def test_a_seed_for_each_prompt(cascade: Cascade, samples: Samples) -> None:
    assert cascade.request(PROMPTS, seed=[7, 3], per_prompt=2).seeds == [7, 8, 3, 4]
    four = cascade.sample([p for p in PROMPTS for _ in range(2)], seed=[0, 1, 0, 1],
                          show_progress=False)  # fmt: skip
    np.testing.assert_array_equal(four.images, samples.images)


def test_a_stream_makes_the_same_chunk_by_chunk(cascade: Cascade, samples: Samples) -> None:
    request = cascade.request(PROMPTS, per_prompt=2)
    chunks = list(cascade.stream(request, chunk=3))
    assert [len(chunk) for chunk in chunks] == [3, 1]
    made = np.concatenate([chunk.images for chunk in chunks])
    assert np.abs(made.astype(int) - samples.images).max() <= 1  # of batches of 4 and of 1
    records = [chunk.request.record(i) for chunk in chunks for i in range(len(chunk))]
    assert records == [samples.request.record(i) for i in range(4)]
    image = np.random.default_rng(0).integers(0, 256, (2, tiny.SR, tiny.SR, 3), np.uint8)
    edited = cascade.request(PROMPTS, image=image, strength=0.5)
    for i, chunk in enumerate(cascade.stream(edited, chunk=1)):
        assert chunk.request.record(0) == edited.record(i)


def test_batches_follow_pixels() -> None:
    from imagen_jax.cascade.run import _batches

    def most(size: int, devices: int = 1, batch_size: int | None = None) -> int:
        return max(len(padded) for _, padded in _batches(99, devices, batch_size, (size, size)))

    assert [most(size) for size in (64, 256, 512, 1024, 2048)] == [16, 16, 4, 1, 1]
    assert most(1024, devices=8) == 8
    assert most(64, batch_size=5) == 4


# folders


def test_a_folder_resumes_and_is_never_overwritten(
    cascade: Cascade, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("imagen_jax.cascade.folder.CHUNK", 2)
    request = cascade.request(PROMPTS, per_prompt=2)

    def made(folder: Folder) -> dict[str, bytes]:
        with folder:
            folder.make(cascade, show_progress=False)
            folder.save_grid()
        return content(folder.directory)

    whole = made(Folder(tmp_path / "whole", [request]))
    assert sorted(whole) == [*(f"{i:04d}.png" for i in range(4)), "grid.png"]

    ran: list[int] = []
    run = Cascade.run

    def counted(self: Cascade, request: Request, **options: Any) -> Samples:
        ran.append(len(request))
        return run(self, request, **options)

    monkeypatch.setattr(Cascade, "run", counted)
    killed = tmp_path / "killed"
    killed.mkdir()
    for name in ("0000.png", "0001.png", "0003.png"):
        (killed / name).write_bytes(whole[name])
    (killed / "0002.png.0f.tmp").write_bytes(whole["0002.png"][:9])
    written = (killed / "0003.png").stat().st_mtime_ns
    folder = Folder(killed, [request])
    assert made(folder) == whole
    assert ran == [2], "of two chunks, the one that is not whole"
    assert [path.name for path in folder.written] == ["0002.png"]
    assert (killed / "0003.png").stat().st_mtime_ns == written
    assert made(Folder(killed, [request])) == whole
    assert ran == [2]

    other = cascade.request(PROMPTS, seed=9)
    for requests in ([other], [cascade.request(PROMPTS[:1], per_prompt=2)], [other, request]):
        with pytest.raises(ValueError, match=r"images of another run, such as 000.*choose another"):
            made(Folder(killed, requests))
    assert content(killed) == whole
    with pytest.raises(ValueError, match="another run, such as 0000"):
        made(Folder(killed, [request], "webp"))
    unused = Folder.unused(killed, [other])
    assert unused.directory.name == "killed-2"
    with unused, pytest.raises(ValueError, match="is being written by imagen sample"):
        Folder(unused.directory, [other]).__enter__()
    assert Folder.unused(killed, [other]).directory.name == "killed-2"
    assert Folder.unused(killed, [request]).directory == killed


def test_a_folder_keeps_files_of_others(cascade: Cascade, tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    samples = cascade.sample(PROMPTS[0], show_progress=False)
    samples.save(tmp_path)
    assert names(tmp_path) == ["0000.png", "grid.png", "metadata.csv", "notes.txt"]
    (tmp_path / "0000.png").unlink()
    with pytest.raises(ValueError, match="another run, such as grid"):
        samples.save(tmp_path)


def test_an_output_that_cannot_be_written_is_told_before_sampling(
    directory: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.setattr(Cascade, "run", lambda *_, **__: pytest.fail("sampled"))
    (tmp_path / "file").write_text("")
    argv = ["sample", PROMPTS[0], "--workdir", str(directory)]
    assert main_lib.main([*argv, "--output", str(tmp_path / "file")]) == 64
    assert f"{tmp_path / 'file'}" in capsys.readouterr().err
    assert main_lib.main([*argv, "--output", "/proc/nothing"]) == 64
    assert "/proc/nothing" in capsys.readouterr().err


def test_the_default_folder_is_a_new_one(
    directory: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    argv = ["sample", "--workdir", str(directory)]
    assert main_lib.main([*argv, PROMPTS[0], "--per-prompt", "2"]) == 0
    first = content(Path("samples"))
    assert main_lib.main([*argv, PROMPTS[1]]) == 0
    assert "1 image in samples-2" in capsys.readouterr().out
    assert names(Path("samples-2")) == ["0000.png", "grid.png", "metadata.csv"]
    assert content(Path("samples")) == first
    assert main_lib.main([*argv, PROMPTS[1], "--output", "samples"]) == 64
    assert "nothing is overwritten; choose another folder" in capsys.readouterr().err
    assert main_lib.main([*argv, PROMPTS[0], "--per-prompt", "2"]) == 0
    assert "2 images in samples, 2 of them from before" in capsys.readouterr().out


@pytest.mark.slow
def test_sigterm_keeps_finished_images(directory: Path, tmp_path: Path) -> None:
    """Two stages of two images, one at a time; told to stop in the second one of the last stage,
    and once more by Ctrl-C while what is there is written."""
    script = (
        "import os, signal, sys; sys.path.insert(0, sys.argv.pop(1));"
        "import tiny; from imagen_jax import main;"
        "from imagen_jax.cascade import run, cascade, folder;"
        "run.BATCH_SIZES = (1,); steps, seen = run.sample_steps, [];\n"
        "def stop(*args, **kwargs):\n"
        "    seen.append(args)\n"
        "    if len(seen) == 4: os.kill(os.getpid(), signal.SIGTERM)\n"
        "    yield from steps(*args, **kwargs)\n"
        "run.sample_steps = stop; save = folder.save_image\n"
        "def again(image, record, path):\n"
        "    if len(seen) == 4: os.kill(os.getpid(), signal.SIGINT)\n"
        "    return save(image, record, path)\n"
        "folder.save_image = again\n"
        "sys.exit(main.main(sys.argv[1:]))"
    )
    argv = ["sample", PROMPTS[0], "--per-prompt", "2", "--workdir", str(directory)]
    done = subprocess.run(
        [sys.executable, "-c", script, str(Path(tiny.__file__).parent), *argv,
         "--output", str(tmp_path / "out")],
        capture_output=True, text=True, check=False, timeout=600, env=os.environ,
    )  # fmt: skip
    assert done.returncode == 130, done.stderr[-3000:]
    assert "1 of 2 images are done, in" in done.stderr
    assert names(tmp_path / "out") == ["0000.png", "0001.base.png"]
    assert read_record(tmp_path / "out" / "0000.png")["seed"] == 0
    assert read_image(tmp_path / "out" / "0001.base.png").shape == (tiny.BASE, tiny.BASE, 3)
