"""Corpora as sources: each kind of file is embedded whole, and damage is never silent."""

from __future__ import annotations

import gzip
import io
import json
import sys
import tarfile
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf
from corpus_files import (
    CAPTIONS,
    IMAGES,
    KINDS,
    SIZE,
    pixels,
    write_tars,
    write_tfds,
    write_tfrecords,
)
from PIL import Image

from imagen_jax.data import records
from imagen_jax.data.choices import DAMAGED_FILES
from imagen_jax.data.corpora import open_corpus
from imagen_jax.data.manifest import load_manifest
from imagen_jax.data.sources import Dropped
from imagen_jax.errors import UserError
from imagen_jax.main import main


@pytest.mark.parametrize(
    ("files", "where", "options", "message"),
    [
        ([], [], {}, "no corpus is named: give a file, a folder or a pattern"),
        (["a.py", "b.md", "c.md"], "", {},
         "is no corpus of a known kind; it has 2 x .md, 1 x .py. Known kinds: folder, csv, tsv"),
        (["a.csv"], "", {"kind": "parquet"}, "has no files of kind 'parquet'; it has 1 x .csv"),
        (["a.csv"], "a.csv", {"kind": "cvs"}, "kind is 'cvs'; choices: folder, csv, tsv, jsonl"),
        (["words"], "words", {}, "words is of no known kind (it is text); choose one with --k"),
        ([], "nothing_like_it:train", {"kind": "tfds"},
         "no dataset 'nothing_like_it' in tensorflow_datasets"),
        ([], "s3://bucket/x.csv", {}, "cannot be reached: Install s3fs to access S3; install what"),
        ([], "nowhere://x", {}, "nowhere://x cannot be reached: Protocol not known: nowhere"),
    ],
)  # fmt: skip
def test_where_no_corpus_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, files: list[str], where: str | list[str],
    options: dict[str, str], message: str,
) -> None:  # fmt: skip
    monkeypatch.setitem(sys.modules, "s3fs", None)  # where it is installed
    monkeypatch.chdir(tmp_path)
    for name in files:
        (tmp_path / name).write_text("words")
    with pytest.raises(UserError) as error:
        open_corpus(where or ("." if files else []), **options)
    assert message in str(error.value)


@pytest.mark.parametrize(
    ("images", "captions", "notes"),
    [
        (1, 1, ["all 4 images are the same", "captions repeat: at most 1 of 4 are different"]),
        (1, 4, ["all 4 images are the same"]),
        (4, 2, ["captions repeat: at most 2 of 4 are different"]),
        (2, 3, []),
    ],
)
def test_what_is_all_alike_is_remarked_on(
    images: int, captions: int, notes: list[str], tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.setattr("imagen_jax.cli.embed.ENCODERS", ("tiny",))
    (tmp_path / "corpus").mkdir()
    for i in range(4):
        pixels = np.full((SIZE, SIZE, 3), i % images, np.uint8)
        Image.fromarray(pixels).save(tmp_path / "corpus" / f"{i}.png")
        (tmp_path / "corpus" / f"{i}.txt").write_text(f"number {i % captions}")
    argv = ["embed", str(tmp_path / "corpus"), "--output", str(tmp_path / "out"), "--encoder"]
    assert main([*argv, "tiny", "--image-size", str(SIZE)]) == 0
    said = capsys.readouterr().out.splitlines()
    assert [line.removeprefix("  note: ") for line in said if "note:" in line] == notes


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_is_embedded(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("imagen_jax.cli.embed.ENCODERS", ("tiny",))
    corpus, output = tmp_path / "corpus", tmp_path / "embeddings"
    corpus.mkdir()
    write, arguments = KINDS[kind]
    write(corpus)
    argv = ["embed", *arguments(corpus), "--output", str(output), "--image-size", str(SIZE)]
    # Two processes, each of which writes one of the shards.
    assert main([*argv, "--encoder", "tiny", "--process", "1/2"]) == 0
    assert "others are not finished" in capsys.readouterr().out
    assert main([*argv, "--encoder", "tiny", "--process", "0/2"]) == 0
    assert f"4 examples in {output}" in capsys.readouterr().out
    split = load_manifest(output)["splits"]["train"]
    assert (split["examples"], split["dropped"], split["changed"]) == (4, {}, {})
    assert split["shard_examples"] == [2, 2]
    read = [r for name in split["shards"] for r in records.read_records(output / name)]
    assert len({record.id for record in read}) == 4
    if kind == "tfds":  # which has an order of its own, and encodes images
        pairs = {
            (record.captions[0], np.asarray(Image.open(io.BytesIO(record.image))).tobytes())
            for record in read
        }
        assert pairs == {(caption, pixels(n).tobytes()) for n, caption in enumerate(CAPTIONS)}
    else:
        assert [record.captions[0] for record in read] == CAPTIONS
        assert [record.image for record in read] == IMAGES  # to the byte
    (log,) = (output / "progress").glob("*.log")
    lines = [json.loads(line) for line in log.read_text().splitlines()]
    assert [line["shard"] for line in lines] == [split["shards"][1], split["shards"][0]]
    assert sum(line["examples"] for line in lines) == 4


def test_damaged_and_missing_files(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no file or folder matches '.*\*\.tar'"):
        open_corpus(f"{tmp_path}/*.tar")
    write_tars(tmp_path)
    write_tfrecords(tmp_path)
    for pattern in ("*.tar", "*.tfrecord"):
        source = open_corpus(f"{tmp_path}/{pattern}")
        with pytest.raises(ValueError, match="3 shards of 2 files: files are not divided"):
            list(source.examples_of_shard(0, 3))
        path = Path(source.places[1])
        before = source.describe()
        path.write_bytes(path.read_bytes()[:400])
        assert source.describe() != before
        with pytest.raises(ValueError, match=rf"{path} is damaged: [^{{\[]*truncated [^{{\[]*; to"):
            list(source.examples_of_shard(0, 1))


def headers(path: Path) -> list[int]:
    """Offsets of the members of a tar file."""
    with tarfile.open(path) as tar:
        return [member.offset for member in tar]


def flip_header(content: bytearray, at: list[int]) -> None:
    content[at[3] + 100] ^= 1


def zero_header(content: bytearray, at: list[int]) -> None:
    content[at[3] : at[3] + 512] = bytes(512)


def cut_at_member(content: bytearray, at: list[int]) -> None:
    del content[at[3] :]


def cut_content(content: bytearray, at: list[int]) -> None:
    del content[at[3] + 520 :]


def cut_end(content: bytearray, at: list[int]) -> None:
    del content[at[5] + 1024 :]


def append_another(content: bytearray, at: list[int]) -> None:
    content += bytes(content)


@pytest.mark.parametrize(
    ("damage", "left"),
    [(flip_header, 0), (zero_header, 0), (cut_at_member, 0), (cut_content, 1), (cut_end, 1),
     (append_another, 1)],
)  # fmt: skip
@pytest.mark.parametrize("suffix", ["", ":gz"])
def test_the_rest_of_a_damaged_tar_is_not_lost_silently(
    tmp_path: Path, damage: Callable[[bytearray, list[int]], None], left: int, suffix: str
) -> None:
    """Of two examples of three files each; Python's tarfile ends quietly at most of these."""
    write_tars(tmp_path)
    path = tmp_path / "00000.tar"
    content = bytearray(path.read_bytes())
    damage(content, headers(path))
    path.write_bytes(gzip.compress(content) if suffix else content)
    stop, drop = (
        open_corpus(f"{tmp_path}/*.tar", damaged_files=damaged) for damaged in DAMAGED_FILES
    )
    with pytest.raises(ValueError, match=rf"{path} is damaged: .*: --damaged-files drop"):
        list(stop.examples_of_shard(0, 1))
    *first, file, third, fourth = drop.examples_of_shard(0, 1)
    assert isinstance(file, Dropped)
    assert (file.id, file.reason) == ("00000", "rest of a damaged file")
    assert [example.id for example in first] == ["00000/000000000"][:left]
    assert [third.id, fourth.id] == ["00001/000000002", "00001/000000003"]
    assert stop.describe() == drop.describe()


def test_records_of_another_kind_are_damage(tmp_path: Path) -> None:
    path = tmp_path / "0.tfrecord"
    with tf.io.TFRecordWriter(str(path)) as writer:
        writer.write(b"\xff\xff")
    source = open_corpus(path)
    with pytest.raises(ValueError, match=rf"{path} is no file of tf\.train\.Examples$"):
        list(source.examples_of_shard(0, 1))


def test_records_of_one_key_are_told_apart(tmp_path: Path) -> None:
    path = tmp_path / "0.tfrecord"
    with tf.io.TFRecordWriter(str(path)) as writer:
        for caption in CAPTIONS[:3]:
            values = {"key": b"same", "jpg": IMAGES[0], "txt": caption.encode()}
            feature = {
                name: tf.train.Feature(bytes_list=tf.train.BytesList(value=[value]))
                for name, value in values.items()
            }
            example = tf.train.Example(features=tf.train.Features(feature=feature))
            writer.write(example.SerializeToString())
    found = list(open_corpus(path).examples_of_shard(0, 1))
    assert [e.id for e in found] == ["0/same", "0/same@1", "0/same@2"]
    assert [e.caption for e in found if not isinstance(e, Dropped)] == CAPTIONS[:3]
    for content in (b"BZh9" + bytes(range(200)), bytes(range(1, 200))):  # of no TFRecord file
        path.write_bytes(content)
        with pytest.raises(ValueError, match=rf"{path} is no TFRecord file") as error:
            list(open_corpus(path).examples_of_shard(0, 1))
        assert "damaged" not in str(error.value)


def test_captions_of_a_dataset_are_strings(tmp_path: Path) -> None:
    write_tfds(tmp_path)
    source = open_corpus("pairs:train", kind="tfds", caption_key="label", data_dir=str(tmp_path))
    assert [d.reason for d in source.examples_of_shard(0, 1)] == ["caption is no text"] * 4
    with pytest.raises(
        UserError, match=r"no feature 'captions/words'; there are \['captions', 'im"
    ):
        open_corpus(
            "pairs:train", kind="tfds", caption_key="captions/words", data_dir=str(tmp_path)
        )
    with pytest.raises(UserError, match="the dataset 'a b' cannot be opened: Parsing builder"):
        open_corpus("a b", kind="tfds", data_dir=str(tmp_path))
    (file,) = tmp_path.glob("pairs/1.0.0/*.tfrecord*")
    file.write_bytes(file.read_bytes()[:-9])
    with pytest.raises(UserError, match=r"pairs/1\.0\.0 is damaged: .*truncated"):
        list(source.examples_of_shard(0, 1))


def test_a_folder_in_place_of_a_file_is_no_damage(tmp_path: Path) -> None:
    (tmp_path / "folder.tar").mkdir()
    with pytest.raises(ValueError, match=r"is an empty folder"):
        open_corpus(f"{tmp_path}/*", damaged_files="drop")
    with pytest.raises(ValueError, match="damaged_files is 'skip'; choices: stop, drop"):
        open_corpus(f"{tmp_path}/*", damaged_files="skip")


def test_embedding_resumes_past_a_damaged_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("imagen_jax.cli.embed.ENCODERS", ("tiny",))
    write_tars(tmp_path)
    path = tmp_path / "00001.tar"
    content = bytearray(path.read_bytes())
    cut_content(content, headers(path))
    path.write_bytes(content)
    output = tmp_path / "embeddings"
    argv = ["embed", f"{tmp_path}/*.tar", "--output", str(output)]
    argv += ["--image-size", str(SIZE), "--encoder", "tiny"]
    assert main(argv) == 64
    assert f"{path} is damaged" in capsys.readouterr().err
    kept = output / "train-00000-of-00002.tfrecord"
    written = kept.stat().st_mtime_ns
    assert main([*argv, "--damaged-files", "drop"]) == 0
    assert "dropped: 1 rest of a damaged file" in capsys.readouterr().out
    assert kept.stat().st_mtime_ns == written
    split = load_manifest(output)["splits"]["train"]
    assert (split["shard_examples"], split["dropped"]) == ([2, 1], {"rest of a damaged file": 1})
    (listing,) = output.glob("*.dropped")
    line = json.loads(listing.read_text())
    assert line["id"] == "00001"
    assert "unexpected end of data" in line["detail"]


def test_a_wrong_number_of_shards_leaves_nothing_behind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("imagen_jax.cli.embed.ENCODERS", ("tiny",))
    write_tars(tmp_path)
    output = tmp_path / "embeddings"
    argv = ["embed", f"{tmp_path}/*.tar", "--output", str(output)]
    assert main([*argv, "--encoder", "tiny", "--shards", "3"]) == 64
    assert "3 shards of 2 files" in capsys.readouterr().err
    assert not output.exists()


def test_ids_are_unique_in_folders_of_folders(tmp_path: Path) -> None:
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        write_tars(tmp_path / folder)
    ids = [example.id for example in open_corpus(tmp_path).examples_of_shard(0, 1)]
    assert len(set(ids)) == 8
    assert ids[0] == "a/00000/000000000"
    (tmp_path / "a" / "00000.tar").rename(tmp_path / "b" / "00000.tgz")
    source = open_corpus(f"{tmp_path}/b/*.t*")
    assert [example.id for example in source.examples_of_shard(0, 3)] == [
        "00000.tar/000000000", "00000.tar/000000001"
    ]  # fmt: skip


@pytest.mark.parametrize("compress", [gzip.compress, zlib.compress])
def test_compressed_tfrecords_to_where_they_are_cut(
    tmp_path: Path, compress: Callable[[bytes], bytes]
) -> None:
    write_tfrecords(tmp_path)
    first, second = ((tmp_path / f"0000{i}.tfrecord").read_bytes() for i in range(2))
    path = tmp_path / "both.tfrecord.gz"
    whole = gzip.compress(first) + gzip.compress(second)  # two members, as `cat` makes them
    path.write_bytes(whole if compress is gzip.compress else compress(first + second))
    found = list(open_corpus(path).examples_of_shard(0, 1))
    assert [e.caption for e in found if not isinstance(e, Dropped)] == CAPTIONS
    path.write_bytes(path.read_bytes()[:-30])
    with pytest.raises(ValueError, match=rf"{path} is damaged: cut off before the end of the comp"):
        list(open_corpus(path).examples_of_shard(0, 1))
    *_, last = open_corpus(path, damaged_files="drop").examples_of_shard(0, 1)
    assert isinstance(last, Dropped)
