"""Files of somebody else are never replaced, and two at once never mix what they write."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import shutil
import stat
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import safetensors
import tensorflow as tf
import tiny
from PIL import Image

from imagen_jax import files
from imagen_jax.cascade import Cascade, compiled
from imagen_jax.cascade.compiled import export_stages
from imagen_jax.checkpoints import exported
from imagen_jax.checkpoints.cascades import export_cascade, open_cascade
from imagen_jax.checkpoints.exported import EXPORTED
from imagen_jax.data.manifest import load_manifest
from imagen_jax.embed import embed
from imagen_jax.embed import job as job_lib
from imagen_jax.errors import MachineError, UserError
from imagen_jax.eval.job import ImageStore, keep_earlier
from imagen_jax.files import atomic_path, only_writer, output_folder, unused_name
from imagen_jax.main import main


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    parent = tmp_path_factory.mktemp("writers")
    return tiny.write_cascade(parent / "cascade", tiny.encoder(), scale=0.2)


def names(of: Path) -> list[str]:
    return sorted(path.name for path in of.iterdir())


def test_two_exports_into_one_place(directory: Path, tmp_path: Path) -> None:
    output = tmp_path / "out"
    cascade = open_cascade(directory)
    with only_writer(output, "imagen export"):
        for write in (export_cascade, lambda _, where: export_stages(cascade, where)):
            with pytest.raises(
                UserError, match=rf"out is being written by imagen export.*{os.getpid()}"
            ):
                write(directory, output)
    assert names(output) == [".lock"]
    export_cascade(directory, output)
    assert names(output) == ["base.safetensors", "cascade.json", "sr.safetensors"]
    with pytest.raises(UserError, match=r"out has base\.safetensors, sr\.safetensors already"):
        export_stages(cascade, output)


def leave(write: Callable[[], object], at: str, left: Path) -> None:
    """Copies what is there when the file `at` is half written: what a kill leaves then."""
    begin = files.atomic_path

    @contextlib.contextmanager
    def path(of: Path, new: bool = False) -> Iterator[Path]:
        with begin(of, new) as temporary:
            if of.name == at:
                temporary.write_bytes(b"half")
                shutil.copytree(of.parent, left)
                raise KeyboardInterrupt
            yield temporary

    with pytest.MonkeyPatch.context() as patch:
        for module in (files, exported, compiled):
            patch.setattr(module, "atomic_path", path)
        with pytest.raises(KeyboardInterrupt):
            write()


@pytest.mark.parametrize("at", [".unfinished", "base.safetensors", "sr.safetensors", EXPORTED])
def test_an_export_that_was_killed_is_written_anew(
    directory: Path, tmp_path: Path, at: str, capsys: pytest.CaptureFixture[str]
) -> None:
    output, whole = tmp_path / "out", tmp_path / "whole"
    leave(lambda: export_cascade(directory, tmp_path / "first"), at, output)
    (output / "base.safetensors.txt").write_text("mine")
    assert not (output / EXPORTED).exists()
    half = len(list(output.glob("*.safetensors")))
    assert half == {".unfinished": 0, "base.safetensors": 0, "sr.safetensors": 1}.get(at, 2)
    capsys.readouterr()
    export_cascade(directory, output)
    said = capsys.readouterr().err
    if at != ".unfinished":
        assert f"{output} has what an export or import left that was killed; removed: " in said
        assert said.count("base.safetensors") == (1 if half or at == "base.safetensors" else 0)
    (output / "base.safetensors.txt").unlink()
    export_cascade(directory, whole)
    found = {path.name: path.read_bytes() for path in output.iterdir() if ".tmp" not in path.name}
    assert found == {path.name: path.read_bytes() for path in whole.iterdir()}
    with pytest.raises(UserError, match=r"out has cascade\.json, base\.safetensors, sr\.safetens"):
        export_cascade(directory, output)


@pytest.mark.slow
def test_a_kill_of_a_compiled_export_and_after_the_last_file(
    directory: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    cascade = open_cascade(directory)
    output = tmp_path / "out"
    base = cascade.stages[:1]
    leave(lambda: export_stages(cascade, tmp_path / "first", stages=base), "base.json", output)
    export_stages(cascade, output, stages=base)
    assert "removed: base.jax, base.json." in capsys.readouterr().err
    assert names(output) == ["base.jax", "base.json", "base.safetensors", "run_exported.py"]
    # All is there: it is a finished export.
    files.write_json(output / exported.UNFINISHED, {"files": names(output)})
    with pytest.raises(UserError, match=r"out has base\.jax, base\.safetensors, base\.json"):
        export_stages(cascade, output, stages=base)


def test_an_export_that_fails_leaves_nothing(
    directory: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(path: Path, value: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("imagen_jax.checkpoints.exported.write_json", full)
    with pytest.raises(OSError, match="No space left"):
        export_cascade(directory, tmp_path / "new")
    assert not (tmp_path / "new").exists()
    (tmp_path / "old").mkdir()
    (tmp_path / "old" / "notes.txt").write_text("mine")
    with pytest.raises(OSError, match="No space left"):
        export_cascade(directory, tmp_path / "old")
    assert names(tmp_path / "old") == [".lock", "notes.txt"]


def test_a_compiled_export_is_whole_and_others_can_read_it(directory: Path, tmp_path: Path) -> None:
    cascade = open_cascade(directory)
    paths = export_stages(cascade, tmp_path / "out", stages=cascade.stages[:1])
    assert names(tmp_path / "out") == sorted(path.name for path in paths)
    mask = os.umask(0o022)
    os.umask(mask)
    assert {stat.S_IMODE(path.stat().st_mode) for path in paths} == {0o666 & ~mask}
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "run_exported.py").write_text("changed")
    with pytest.raises(UserError, match=r"mine has run_exported\.py already"):
        export_stages(cascade, tmp_path / "mine")
    assert (tmp_path / "mine" / "run_exported.py").read_text() == "changed"


def test_scores_of_an_earlier_call_are_kept(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    scores, report = tmp_path / "scores.json", tmp_path / "report.html"
    for number in (1, 1, 2, 3):
        keep_earlier([scores, report], b"%d" % number)
        scores.write_text(str(number))
        report.write_text(f"report {number}")
    said = {path.name: path.read_text() for path in tmp_path.iterdir()}
    assert said == {
        "scores.json": "3", "scores-2.json": "1", "scores-3.json": "2",
        "report.html": "report 3", "report-2.html": "report 1", "report-3.html": "report 2",
    }  # fmt: skip
    assert capsys.readouterr().out.count("scores.json of an earlier call is now scores-") == 2


def test_two_evaluations_that_start_at_once(directory: Path, tmp_path: Path) -> None:
    """The second one writes no claim that the first one's images would be taken for."""
    cascade = Cascade.load(directory)
    with only_writer(tmp_path / "processes" / "00000", "imagen evaluate"):
        store = ImageStore(tmp_path, ["a red image"], [0], tiny.SR)
        with pytest.raises(UserError, match="is being written by imagen evaluate"):
            store.sample(cascade)
    assert not (tmp_path / "job.json").exists()


def test_two_embeddings_of_different_settings_at_once(tmp_path: Path) -> None:
    """A claim of which no shard is finished yet is not taken from who is at work."""

    def start(split: str, states: str, shards: int = 2) -> None:
        embed(tiny.Colours(), tmp_path, encoder=tiny.encoder(), image_size=tiny.SR, split=split,
              num_shards=shards, states=states)  # fmt: skip

    class Working(tiny.Colours):
        """Looks at what others may do before it gives an example."""

        def examples_of_shard(self, shard: int, num_shards: int):  # type: ignore[no-untyped-def]
            for example in super().examples_of_shard(shard, num_shards):
                if not seen:
                    seen.append(1)
                    for split in ("validation", "train"):
                        with pytest.raises(UserError, match="is being written by imagen embed"):
                            start(split, "int8", 1)
                yield example

    seen: list[int] = []
    embed(Working(), tmp_path, encoder=tiny.encoder(), image_size=tiny.SR, num_shards=2)
    assert seen == [1]
    assert load_manifest(tmp_path)["splits"]["train"]["examples"] == 16
    with pytest.raises(UserError, match="holds other embeddings"):
        start("validation", "int8")
    start("validation", "bfloat16")


def test_splits_that_are_finished_at_the_same_moment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither of two processes loses the other's split from the manifest."""

    def start(split: str) -> None:
        embed(tiny.Colours(), tmp_path, encoder=tiny.encoder(), image_size=tiny.SR, split=split,
              num_shards=1)  # fmt: skip

    other = threading.Thread(target=start, args=("validation",))
    written = files.write_json

    def write(path: Path, value: object) -> None:
        if Path(path).name == "manifest.json" and not other.ident:
            other.start()
            other.join(1)  # it waits for its turn, or would read what this one has not written
        written(path, value)

    monkeypatch.setattr(job_lib, "write_json", write)
    start("train")
    other.join()
    assert set(load_manifest(tmp_path)["splits"]) == {"train", "validation"}


def test_a_file_that_somebody_has_written_meanwhile(tmp_path: Path) -> None:
    path = tmp_path / "features.npz"

    def write() -> None:
        with atomic_path(path, new=True) as temporary:
            temporary.write_text("ours")
            path.write_text("theirs")

    with pytest.raises(UserError, match=r"features\.npz was written by another.*features-2\.npz"):
        write()
    assert (path.read_text(), (tmp_path / "features-2.npz").read_text()) == ("theirs", "ours")
    assert unused_name(path) == tmp_path / "features-3.npz"
    assert names(tmp_path) == ["features-2.npz", "features.npz"]


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.ENOSPC, "No space left on device"),
        tf.errors.ResourceExhaustedError(
            None, None, "x.tmp; No space left on device\n  [Op:Write]"
        ),
        safetensors.SafetensorError("I/O error: No space left on device (os error 28)"),
    ],
)
def test_a_full_disk_is_one_line_whoever_finds_it(
    error: Exception, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """And leaves no half of a file, which would be in the way of the next call."""
    sheet = tmp_path / "sheet.png"

    def save(self: Image.Image, path: Path, **_: Any) -> None:
        Path(path).write_bytes(b"half")
        raise error

    with mock.patch.object(Image.Image, "save", save):
        argv = ["data", "show", "--scenes", "quickstart", "--count", "1", "--output", str(sheet)]
        assert main(argv) == 1
    assert capsys.readouterr().err == (
        f"imagen: error: {sheet} cannot be written: No space left on device\n"
    )
    assert not list(tmp_path.iterdir())


def test_a_full_standard_output_is_not_taken_for_the_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    sheet = tmp_path / "sheet.png"
    full = open("/dev/full", "w")  # noqa: SIM115
    monkeypatch.setattr(sys, "stdout", full)
    argv = ["data", "show", "--scenes", "quickstart", "--count", "1", "--output", str(sheet)]
    assert main(argv) == 1
    said = capsys.readouterr().err
    assert said == "imagen: error: standard output cannot be written: No space left on device\n"
    assert sheet.is_file()
    with contextlib.suppress(OSError):
        full.close()


@pytest.mark.parametrize("name", ["/dev/full", "link"])
def test_a_new_file_is_none_that_is_there_of_whatever_kind(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("link").symlink_to("nowhere")
    with pytest.raises(UserError, match=f"{name} is there already, and nothing is overwritten"):
        files.new_file(name)


def test_a_folder_that_may_not_be_written_to(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "access", lambda path, _: Path(path) != tmp_path)  # root may all
    for where in (tmp_path, tmp_path / "new"):
        with pytest.raises(
            MachineError, match=rf"{where} cannot be written: .* may not be written"
        ):
            output_folder(where)


def test_a_folder_that_is_a_link_to_nothing(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to("/nowhere/else")
    with pytest.raises(UserError, match="link is a link to /nowhere/else, which is not there"):
        output_folder(tmp_path / "link" / "below")


def test_a_lock_that_another_user_left_is_no_obstacle(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In a folder that both may write to; while the other one works, it is."""
    (tmp_path / ".lock").write_text("imagen sample (process 1 on another)\n")
    opened = open

    def not_mine(path: Path, mode: str = "r", **options: str) -> object:
        if "a" in mode:
            raise PermissionError(13, "Permission denied", str(path))
        return opened(path, mode, **options)

    monkeypatch.setattr(files, "open", not_mine, raising=False)
    with (
        only_writer(tmp_path, "imagen sample"),
        pytest.raises(UserError, match=r"being written by imagen sample \(process 1 on another"),
        only_writer(tmp_path, "imagen sample"),
    ):
        pass
    assert (tmp_path / ".lock").read_text() == "imagen sample (process 1 on another)\n"


def test_a_vote_is_not_of_scores_of_another_kind(tmp_path: Path) -> None:
    from imagen_jax.eval.vote_page import write_vote

    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "scores.json").write_text(json.dumps({"level": "quickstart"}))
        (tmp_path / name / "prompts.json").write_text("[]")
    with pytest.raises(UserError, match="a has scores of another kind"):
        write_vote(tmp_path / "a", tmp_path / "b", tmp_path / "out")
