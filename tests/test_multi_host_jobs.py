"""Hosts that each do their share of one job: `imagen embed`, `sample` and `evaluate prompts`."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import tiny
from gcs_server import Bucket
from PIL import Image
from ports import free_port

from imagen_jax.cli import embed as embed_command
from imagen_jax.data.manifest import load_manifest
from imagen_jax.main import main

TESTS = Path(__file__).resolve().parent
HOST = """
import itertools, os, sys, time
import tiny
import imagen_jax.cascade.folder as folder
import imagen_jax.cli.embed as command
import imagen_jax.embed.job
import imagen_jax.eval.job
from imagen_jax.main import main

job = sys.modules["imagen_jax.embed.job"]  # imagen_jax.embed is a function, too
command.ENCODERS = ("tiny",)
folder.CHUNK = 2
imagen_jax.eval.job.CHUNK = imagen_jax.eval.job.PART = 2

def held(function):
    calls = itertools.count()
    def hold(*arguments, **options):
        if next(calls) == 1:
            time.sleep(float(os.environ["HELD"]))
        return function(*arguments, **options)
    return hold

job._log = held(job._log)
folder.save_image = held(folder.save_image)
sys.exit(main(sys.argv[1:]))
"""
"""A host with the tiny text encoder; it waits for $HELD seconds for its second shard or image."""


def start(count: int, *argv: str, held: float = 0) -> list[subprocess.Popen[str]]:
    """Hosts that run a command of imagen together."""
    port = free_port()
    paths = [str(TESTS), str(TESTS.parent), os.environ.get("PYTHONPATH", "")]
    environment = os.environ | {"HELD": str(held), "PYTHONPATH": os.pathsep.join(paths)}
    return [
        subprocess.Popen(
            [sys.executable, "-c", HOST, *argv, "--multi-host", f"{host}/{count}@localhost:{port}"],
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment,
        )
        for host in range(count)
    ]  # fmt: skip


def finish(hosts: list[subprocess.Popen[str]]) -> list[str]:
    """Output of hosts that end well."""
    printed = [host.communicate(timeout=1800)[0] for host in hosts]
    assert [host.returncode for host in hosts] == [0] * len(hosts), "\n".join(printed)
    return printed


def kill_one_when(condition: Callable[[], bool], hosts: list[subprocess.Popen[str]]) -> None:
    """Kills the last host, and then ends the first as whoever started them would."""
    try:
        until = time.monotonic() + 1200
        while not condition():
            assert time.monotonic() < until
            assert hosts[-1].poll() is None, hosts[-1].communicate()[0]
            time.sleep(0.01)
        hosts[-1].kill()
        time.sleep(0.3)
        hosts[0].send_signal(signal.SIGTERM)
        printed = hosts[0].communicate(timeout=600)[0]
        assert hosts[0].returncode == 130, printed
        assert "the same command resumes" in printed
    finally:
        for host in hosts:
            host.kill()
            host.wait()


@pytest.mark.slow
@pytest.mark.parametrize("count", [2, 4])
def test_hosts_embed_one_corpus_though_one_was_killed(
    count: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(embed_command, "ENCODERS", ("tiny",))
    argv = ["embed", "--scenes", "quickstart", "--count", "48", "--shards", "12", "--image-size",
            "8", "--encoder", "tiny", "--long-captions", "truncate", "--output"]  # fmt: skip
    assert main([*argv, str(tmp_path / "one")]) == 0
    together = tmp_path / "together"

    def both_have_begun() -> bool:
        done = {path.name.split("-")[1] for path in together.glob("progress/*-of-*.json")}
        return {f"{0:05d}", f"{count - 1:05d}"} <= done

    kill_one_when(both_have_begun, start(count, *argv, str(together), held=3600))
    kept = {path: path.stat().st_mtime_ns for path in together.glob("*.tfrecord")}
    assert not (together / "manifest.json").exists()
    printed = finish(start(count, *argv, str(together)))
    assert sum("48 examples" in text for text in printed) == 1
    assert load_manifest(together) == load_manifest(tmp_path / "one")
    for path in sorted((tmp_path / "one").glob("*.tfrecord")):
        assert (together / path.name).read_bytes() == path.read_bytes()
    finished = [path for path, at in kept.items() if path.stat().st_mtime_ns == at]
    assert finished


@pytest.mark.slow
def test_hosts_embed_into_a_bucket_and_keep_their_programs_there(
    bucket: Bucket, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", "gs://bucket/jobs/compiled")
    argv = ["embed", "--scenes", "quickstart", "--count", "16", "--shards", "1", "--image-size",
            "8", "--encoder", "tiny", "--long-captions", "truncate"]  # fmt: skip
    printed = finish(start(2, *argv, "--output", "gs://bucket/embeddings"))
    assert "16 examples" in printed[0]
    manifest = json.loads(bucket.objects["embeddings/manifest.json"][0])
    assert manifest["splits"]["train"]["examples"] == 16
    shards = [name for name in bucket.names("embeddings/") if name.endswith(".tfrecord")]
    assert len(shards) == 1, "and nothing for the second host"
    assert bucket.names("jobs/compiled/")


@pytest.mark.slow
@pytest.mark.parametrize("count", [2, 4])
def test_hosts_sample_one_list_of_prompts_though_one_was_killed(count: int, tmp_path: Path) -> None:
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("".join(f"a {colour} image\n" for colour in [*tiny.COLOURS] * 3))
    argv = ["sample", "--prompts", str(prompts), "--workdir", str(tiny.workdir()), "--output"]
    assert main([*argv, str(tmp_path / "one")]) == 0
    together = tmp_path / "together"

    def both_have_begun() -> bool:
        return {"0000.png", f"{2 * (count - 1):04d}.png"} <= {
            path.name for path in together.glob("*.png")
        }

    kill_one_when(both_have_begun, start(count, *argv, str(together), held=3600))
    before = {path.name for path in together.glob("[0-9]*.png")}
    assert 2 <= len(before) < 12
    assert not (together / "metadata.csv").exists()
    printed = finish(start(count, *argv, str(together)))
    assert "12 images in" in printed[0]
    assert "images of this host are done" in printed[1]
    names = sorted(path.name for path in (tmp_path / "one").iterdir() if path.name != ".lock")
    assert len(names) == 14  # with metadata.csv and grid.png
    for name in names:
        assert (together / name).read_bytes() == (tmp_path / "one" / name).read_bytes(), name
    assert not list(together.glob("*.tmp"))


@pytest.mark.slow
def test_hosts_evaluate_one_set_of_captions(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("CHUNK", "PART"):
        monkeypatch.setattr(f"imagen_jax.eval.job.{name}", 2)
    captions, images = [], []
    for i, (name, colour) in enumerate([*tiny.COLOURS.items()] * 2):
        Image.new("RGB", (16, 16), colour).save(tmp_path / f"{i}.png")
        captions.append({"image_id": i, "id": i, "caption": f"a {name} image"})
        images.append({"id": i, "file_name": f"{i}.png"})
    annotations = tmp_path / "captions.json"
    annotations.write_text(json.dumps({"images": images, "annotations": captions}))
    argv = ["evaluate", "coco", "--annotations", str(annotations), "--images", str(tmp_path),
            "--count", "8", "--workdir", str(tiny.workdir()), "--output"]  # fmt: skip
    assert main([*argv, str(tmp_path / "one")]) == 0
    printed = finish(start(2, *argv, str(tmp_path / "two")))
    assert "report: " in printed[0]
    assert "report: " not in printed[1]
    one, two = (json.loads((tmp_path / n / "scores.json").read_bytes()) for n in ("one", "two"))
    assert one == two


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["sample", "a", "--multi-host"], "--multi-host needs --output"),
        (["embed", "--scenes", "quickstart", "--count", "4", "--output", "o", "--process", "0/2",
          "--multi-host"], "--process is found by --multi-host itself"),
    ],
)  # fmt: skip
def test_options_that_exclude_each_other(
    argv: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(argv) == 64
    assert message in capsys.readouterr().err
