"""Training on a corpus: embedded first, once for all stages, and what is refused."""

from __future__ import annotations

from pathlib import Path

import pytest
import tiny
from corpus_files import write_csv

from imagen_jax.checkpoints.reading import checkpoint_steps
from imagen_jax.data.manifest import MANIFEST, load_manifest
from imagen_jax.files import only_writer
from imagen_jax.main import main


def train_argv(stage: str, data: str, workdir: Path, *more: str) -> list[str]:
    return ["train", "--config", str(Path(tiny.__file__).with_name("tiny_config.py")),
            "--stage", stage, "--data", data, "--workdir", str(workdir),
            "--set", *tiny.WITHOUT_SAMPLES, *more]  # fmt: skip


@pytest.mark.slow
def test_training_embeds_a_corpus_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("imagen_jax.cli.embed.ENCODERS", ("tiny",))
    write_csv(tmp_path)
    workdir, by_hand = tmp_path / "workdir", tmp_path / "by_hand"
    corpus = f"{tmp_path}/table.csv"
    argv = train_argv("base", corpus, workdir, "--shards", "2", "--long-captions", "truncate")
    assert main(argv) == 0
    assert f"4 examples in {workdir / 'embeddings'}" in capsys.readouterr().out
    options = ["--image-size", str(tiny.SR), "--encoder", "tiny", "--shards", "2"]
    options += ["--long-captions", "truncate", "--output", str(by_hand)]
    assert main(["embed", corpus, *options]) == 0
    manifest = load_manifest(workdir / "embeddings")
    assert manifest == load_manifest(by_hand)
    assert tiny.record(workdir, "base")["source"]["train"]["name"] == "csv"
    assert checkpoint_steps(workdir / "base") == [2]

    # The other stage finds one shard there, and makes the one that is missing.
    kept, lost = (workdir / "embeddings" / name for name in manifest["splits"]["train"]["shards"])
    (workdir / "embeddings" / MANIFEST).unlink()
    lost.unlink()
    written = kept.stat().st_mtime_ns
    argv[argv.index("base")] = "sr"
    assert main(argv) == 0
    assert load_manifest(workdir / "embeddings") == manifest
    assert kept.stat().st_mtime_ns == written
    assert checkpoint_steps(workdir / "sr") == [2]

    assert main(train_argv("sr", str(workdir / "embeddings"), workdir)) == 0  # the same data
    capsys.readouterr()
    (tmp_path / "table.csv").write_text("image,caption\n0.png,another\n1.png,corpus\n")
    assert main(argv) == 64
    assert "holds other embeddings" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("data", "more", "message"),
    [
        ("t.csv", [], "no such file or folder as 't.csv'"),
        ("absent/*.tar", [], "no file or folder matches 'absent/*.tar'"),
        ("absent", [], "--data is 'absent', and there is no such file or directory; give a corpus"),
        ("absent", ["--fit", "crop"], "--fit belongs to a corpus, and 'absent' is none"),
        ("a/*.tar", ["--fit", "exact", "--multi-host"],
         "run: imagen embed 'a/*.tar' --encoder=tiny --image-size=8 --fit=crop "
         "--output=w/embeddings --fit=exact (on several hosts, each with its --process ID/COUNT), "
         "then train with --data w/embeddings"),
    ],
)  # fmt: skip
def test_corpora_that_training_refuses(
    data: str,
    more: list[str],
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr("imagen_jax.cli.embed.ENCODERS", ("tiny",))
    monkeypatch.chdir(tmp_path)
    assert main(train_argv("base", data, Path("w"), *more)) == 64
    assert message in capsys.readouterr().err
    assert not list(tmp_path.iterdir()), "a mistake must leave nothing behind"


def test_a_stage_that_is_being_trained_is_told_before_the_corpus_is_embedded(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_csv(tmp_path)
    workdir = tmp_path / "w"
    with only_writer(workdir / "base", "imagen train"):
        assert main(train_argv("base", f"{tmp_path}/table.csv", workdir)) == 64
    assert "base is being written by imagen train" in capsys.readouterr().err
    assert [path.name for path in workdir.iterdir()] == ["base"]
