"""Buckets of Google Cloud Storage as places to read and write, against a server that speaks it."""

from __future__ import annotations

import contextlib
import json
import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import tiny
from gcs_server import Bucket
from PIL import Image

from imagen_jax import bucket_lock, files
from imagen_jax.checkpoints.cascades import SHIPPED, export_cascade, open_cascade
from imagen_jax.cli.corpus import is_corpus
from imagen_jax.config import load_config
from imagen_jax.data.corpora.storage import common_folder
from imagen_jax.errors import UserError
from imagen_jax.eval.feature_sets import FeatureSet
from imagen_jax.eval.features import mobilenet
from imagen_jax.main import main
from imagen_jax.paths import as_path, local_path, those_there
from imagen_jax.text.t5_checkpoint import load_t5_encoder

RUN = "gs://bucket/run"


def test_paths_of_a_bucket_are_used_as_others(bucket: Bucket) -> None:
    run = as_path(RUN)
    assert isinstance(run, Path)
    assert str(run / "a" / "b.json") == "gs://bucket/run/a/b.json" == os.fspath(run / "a/b.json")
    assert run.absolute() == run
    assert run.parent.name == "bucket"
    assert str((run / "a.png").with_suffix(".webp")) == "gs://bucket/run/a.webp"
    assert as_path(run) is run
    assert not run.exists()
    bucket.put("run/a/stage.json", b"{}")
    bucket.put("run/b.txt", b"text\n")
    bucket.put("run/c/", b"")  # as TensorFlow makes a folder
    bucket.put("runs/d", b"")
    assert run.is_dir()
    assert not run.is_file()
    assert (run / "b.txt").is_file()
    assert [path.name for path in run.iterdir()] == ["a", "b.txt"]
    assert [str(path) for path in run.glob("*/stage.json")] == [f"{RUN}/a/stage.json"]
    assert (run / "b.txt").read_text("utf-8") == "text\n"
    with (run / "b.txt").open(encoding="utf-8") as file:
        assert list(file) == ["text\n"]
    assert those_there([run / "b.txt", run / "x", run / "a" / "stage.json"]) == {
        run / "b.txt", run / "a" / "stage.json"
    }  # fmt: skip
    with pytest.raises(FileNotFoundError, match="gs://bucket/run/x"):
        (run / "x").read_bytes()
    assert [(run / "b.txt").has_size(size) for size in (0, 4, 5, 6, 60)] == [  # type: ignore[attr-defined]
        False, False, True, False, False
    ]  # fmt: skip
    bucket.put("run/a/", b"")
    (run / "a").rename(run / "moved")
    (run / "b.txt").rename(run / "d.txt")
    (run / "d.txt").unlink()
    assert bucket.names("run/") == ["run/c/", "run/moved/stage.json"]
    with pytest.raises(OSError, match=r"files\.atomic_path"):
        (run / "a").open("w")


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("s3://b/run", r"of a kind that is not read or written here, s3://; choices: gs://bucket/"),
        ("gs://", r"gs:// is an address of a kind"),
        ("gs:/bucket/run", r"an address in a bucket begins with gs://"),
    ],
)
def test_other_addresses_are_refused(given: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        as_path(given)
    with pytest.raises(UserError, match="is read and written on this machine only; copy it"):
        local_path(RUN)


def test_a_bucket_that_cannot_be_used(bucket: Bucket, capsys: pytest.CaptureFixture[str]) -> None:
    for argv, told in (
        (["--workdir", "gs://forbidden/run"], "may this account use the bucket? `gcloud auth app"),
        (["--output", "gs://forbidden/run"], "roles/storage.objectUser lets it read and write"),
        (["--output", "gs://absent/run"], "is there a bucket absent?"),
    ):
        assert main(["export", "--output", "gs://bucket/x", *argv]) == 1
        (line,) = capsys.readouterr().err.strip().splitlines()
        assert line.startswith(f"imagen: error: {argv[1]}")
        assert " cannot be reached: " in line
        assert told in line
    assert not bucket.names()


def test_what_stays_on_this_machine_is_told(tmp_path: Path) -> None:
    for read in (
        lambda: load_t5_encoder("gs://bucket/t5/model.safetensors"),
        lambda: load_config("gs://bucket/config.py"),
    ):
        with pytest.raises(UserError, match="is in a bucket, and is read and written on this mach"):
            read()


def test_files_appear_whole_and_replace_nothing_new(bucket: Bucket) -> None:
    path = as_path(f"{RUN}/a.json")
    files.write_json(path, {"a": 1})
    assert files.read_json(f"{RUN}/a.json", "record") == {"a": 1}
    with contextlib.suppress(KeyError), files.atomic_path(path) as part:
        part.write_text("half")
        raise KeyError
    assert bucket.objects["run/a.json"][0] == files.as_json({"a": 1})
    other = r"this one's is gs://bucket/run/a-2\.json"
    with pytest.raises(UserError, match=other), files.atomic_path(path, new=True) as part:
        part.write_text("other")
    assert bucket.objects["run/a-2.json"][0] == b"other"
    with pytest.raises(UserError, match="is there already, and nothing is overwritten"):
        files.new_file(f"{RUN}/a.json")
    with pytest.raises(UserError, match="is a file; give the path of a folder"):
        files.output_folder(f"{RUN}/a.json")
    with pytest.raises(UserError, match="no list of prompts gs://bucket/run/x: there is no such"):
        files.read_text(f"{RUN}/x", "list of prompts")


def test_corpora_and_embeddings_are_told_apart(bucket: Bucket) -> None:
    bucket.put("photos/0.png", b"")
    bucket.put("embeddings/manifest.json", b"{}")
    bucket.put("begun/progress/train.job.json", b"{}")
    for where, corpus in (
        ("gs://bucket/photos", True),
        ("gs://bucket/photos/*.png", True),
        ("gs://bucket/{00..99}.tar", True),
        ("s3://bucket/0.tar", True),
        ("gs://bucket/embeddings", False),
        ("gs://bucket/begun", False),
        ("gs://bucket/embeddings=1,gs://bucket/begun=2", False),
        ("gs://bucket/nothing", False),
    ):
        assert is_corpus([where]) == corpus, where
    places = ["gs://bucket/a/0.png", "gs://bucket/a/b/1.png"]
    assert common_folder(places) == "gs://bucket/a"


def test_one_writer_at_a_time(bucket: Bucket, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bucket_lock, "RENEWED", 0.05)
    monkeypatch.setattr(bucket_lock, "EXPIRED", 600)
    with files.only_writer(RUN, "imagen train"):
        (name,) = bucket.names()
        assert name == "run/.lock"
        held = r"being written by imagen train \(process \d+ on .*\)"
        with pytest.raises(UserError, match=held), files.only_writer(RUN, "imagen sample"):
            pass
    assert not bucket.names()
    holder = {"work": "imagen train", "process": 1, "host": "elsewhere", "since": 0}
    bucket.put("run/.lock", json.dumps(holder).encode())
    monkeypatch.setattr(bucket_lock, "EXPIRED", 0.5)
    with files.only_writer(RUN, "imagen train"):  # of another machine, and not written again
        assert json.loads(bucket.objects["run/.lock"][0])["process"] == os.getpid()


def test_a_lock_of_a_killed_process_is_free_at_once(bucket: Bucket) -> None:
    child = multiprocessing.get_context("spawn").Process(target=str)
    child.start()
    child.join()
    holder = {"work": "x", "process": child.pid, "host": bucket_lock._here(), "since": 0}
    bucket.put("run/.lock", json.dumps(holder).encode())
    with files.only_writer(RUN, "imagen train"):
        assert json.loads(bucket.objects["run/.lock"][0])["process"] == os.getpid()


def test_a_process_that_lost_its_lock_is_ended(
    bucket: Bucket, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bucket_lock, "RENEWED", 0.05)

    def lose() -> None:
        with files.only_writer(RUN, "imagen train"):
            bucket.put("run/.lock", json.dumps({"id": "another"}).encode())
            time.sleep(600)

    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    with pytest.raises(KeyboardInterrupt):
        lose()
    assert bucket.names() == ["run/.lock"]  # the other's
    bucket.clear()
    ended = threading.Event()
    monkeypatch.setattr(bucket_lock.os, "_exit", lambda status: ended.set())
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # as of what a script starts in the background
    with files.only_writer(RUN, "imagen train"):
        bucket.put("run/.lock", json.dumps({"id": "another"}).encode())
        assert ended.wait(600)
    signal.signal(signal.SIGINT, before)
    bucket.clear()
    with files.only_writer(RUN, "imagen train"):
        bucket.clear()  # somebody removed it
        while not bucket.names():
            time.sleep(0.01)


@pytest.mark.slow
def test_a_cascade_is_exported_to_a_bucket_and_loaded(bucket: Bucket, tmp_path: Path) -> None:
    exported = tiny.write_cascade(tmp_path / "exported", tiny.encoder())
    paths = export_cascade(exported, f"{RUN}/mine", dtype="float32")
    assert str(paths[0]) == "gs://bucket/run/mine/cascade.json"
    assert bucket.names() == [
        "run/mine/base.safetensors", "run/mine/cascade.json", "run/mine/sr.safetensors"
    ]  # fmt: skip
    there, here = open_cascade(f"{RUN}/mine"), open_cascade(exported)
    for stage in here.stages:
        assert there.fingerprint(stage) == there.fingerprint(stage)
        np.testing.assert_array_equal(
            *(next(iter(_flat(of.weights(stage)))) for of in (there, here))
        )
    with pytest.raises(UserError, match=r"has cascade\.json, base\.safetensors, sr.* already"):
        export_cascade(exported, f"{RUN}/mine")
    with pytest.raises(UserError, match="no work directory gs://bucket/none"):
        open_cascade("gs://bucket/none")


def _flat(tree: object) -> list[np.ndarray]:
    import jax

    return [np.asarray(leaf) for leaf in jax.tree.leaves(tree)]


@pytest.mark.slow
def test_images_and_weights_of_an_evaluation_are_in_a_bucket(
    bucket: Bucket, tmp_path: Path
) -> None:
    for i in range(3):
        pixels = np.random.default_rng(i).integers(0, 256, (32, 32, 3), np.uint8)
        Image.fromarray(pixels).save(tmp_path / f"{i}.png")
    bucket.put_folder("images", tmp_path)
    (weights,) = mobilenet.PACKAGE.files()
    bucket.put("weights.pth", weights.read_bytes())
    features = ["evaluate", "features"]
    assert main([*features, str(tmp_path), "--output", str(tmp_path / "f.npz")]) == 0
    argv = [*features, "gs://bucket/images", "--output", "gs://bucket/f.npz"]
    assert main([*argv, "--network", "mobilenet-v2", "--weights", "gs://bucket/weights.pth"]) == 0
    in_bucket, here = (FeatureSet.load(of) for of in ("gs://bucket/f.npz", tmp_path / "f.npz"))
    np.testing.assert_array_equal(in_bucket.features, here.features)
    assert in_bucket.identity == here.identity
    read = 'Cascade.load("gs://bucket/demo"); assert not {"tensorflow", "orbax"} & {*sys.modules}'
    bucket.put_folder("demo", SHIPPED)
    line = f"import sys; from imagen_jax import Cascade; {read}"
    subprocess.run([sys.executable, "-c", line], check=True, env=dict(os.environ))
