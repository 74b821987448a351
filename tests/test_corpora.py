"""Corpora as sources: one embedding from each kind of file, what is left out, and what is kept."""

from __future__ import annotations

import base64
import csv
import io
import json
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
import tensorflow as tf
import tiny
from PIL import Image

from imagen_jax.data import corpora, records
from imagen_jax.data.pictures import Picture, UnusableError, record_picture
from imagen_jax.embed import embed
from imagen_jax.embed.estimate import Chip, estimate, report
from imagen_jax.embed.shard import Handling
from imagen_jax.eval.coco import read_tfds
from imagen_jax.eval.pictures import read_picture
from imagen_jax.main import main
from imagen_jax.workdir import checkpoint_steps

SIZE = 8
CAPTIONS = ["a red dog", "two blue cats", "a red dog", "one tree"]


def pixels(index: int, height: int = SIZE, width: int = SIZE) -> np.ndarray:
    return np.random.default_rng(index).integers(0, 256, (height, width, 3), np.uint8)


def encoded(array: np.ndarray, kind: str = "PNG", **options: Any) -> bytes:
    file = io.BytesIO()
    Image.fromarray(array).save(file, kind, **options)
    return file.getvalue()


PICTURES = [encoded(pixels(i), "JPEG" if i % 2 else "PNG") for i in range(len(CAPTIONS))]


def write_tfrecords(directory: Path) -> None:
    """Two files as img2dataset writes them."""

    def feature(value: Any) -> tf.train.Feature:
        if isinstance(value, int):
            return tf.train.Feature(int64_list=tf.train.Int64List(value=[value]))
        return tf.train.Feature(bytes_list=tf.train.BytesList(value=[value]))

    for i in range(2):
        with tf.io.TFRecordWriter(str(directory / f"{i:05d}.tfrecord")) as writer:
            for j in range(2):
                n = 2 * i + j
                values = {
                    "key": f"{n:09d}".encode(), "jpg": PICTURES[n], "txt": CAPTIONS[n].encode(),
                    "caption": CAPTIONS[n].encode(), "width": SIZE, "status": b"success",
                }  # fmt: skip
                features = tf.train.Features(feature={k: feature(v) for k, v in values.items()})
                writer.write(tf.train.Example(features=features).SerializeToString())


def write_tars(directory: Path) -> None:
    for i in range(2):
        with tarfile.open(directory / f"{i:05d}.tar", "w") as tar:
            for j in range(2):
                n = 2 * i + j
                for extension, content in (
                    ("jpg", PICTURES[n]), ("json", b"{}"), ("txt", CAPTIONS[n].encode())
                ):  # fmt: skip
                    member = tarfile.TarInfo(f"{n:09d}.{extension}")
                    member.size = len(content)
                    tar.addfile(member, io.BytesIO(content))


def write_csv(directory: Path) -> None:
    with (directory / "table.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["image", "caption", "other"])
        for n, caption in enumerate(CAPTIONS):
            (directory / f"{n}.png").write_bytes(PICTURES[n])
            writer.writerow([f"{n}.png", caption, "a, b\nc"])


def write_parquet(directory: Path) -> None:
    table = pyarrow.table({"image": PICTURES, "caption": CAPTIONS})
    pyarrow.parquet.write_table(table, directory / "table.parquet", row_group_size=3)


def write_tfds(directory: Path) -> None:
    import tensorflow_datasets as tfds

    features = tfds.features.FeaturesDict(
        {"image": tfds.features.Image(), "captions": tfds.features.Sequence({"text": tf.string})}
    )
    tfds.dataset_builders.store_as_tfds_dataset(
        name="pairs", version="1.0.0", features=features, data_dir=directory,
        split_datasets={"train": [
            (n, {"image": pixels(n), "captions": {"text": [caption, "another"]}})
            for n, caption in enumerate(CAPTIONS)
        ]},
    )  # fmt: skip


KINDS = {
    "tfrecords": (write_tfrecords, lambda d: ["--tfrecords", f"{d}/*.tfrecord"]),
    "webdataset": (write_tars, lambda d: ["--webdataset", f"{d}/*.tar"]),
    "csv": (write_csv, lambda d: ["--table", f"{d}/table.csv", "--shards", "2"]),
    "parquet": (write_parquet, lambda d: ["--table", f"{d}/table.parquet", "--shards", "2"]),
    "tfds": (write_tfds, lambda d: ["--tfds", "pairs:train", "--data-dir", str(d), "--shards", "2",
                                    "--caption-key", "captions/text"]),
}  # fmt: skip


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
    split = records.load_manifest(output)["splits"]["train"]
    assert (split["examples"], split["dropped"], split["changed"]) == (4, {}, {})
    assert split["shard_examples"] == [2, 2]
    read = [r for name in split["shards"] for r in records.read_records(output / name)]
    assert len({record.id for record in read}) == 4
    if kind == "tfds":  # which has an order of its own, and encodes pictures
        pairs = {
            (record.caption, np.asarray(Image.open(io.BytesIO(record.image))).tobytes())
            for record in read
        }
        assert pairs == {(caption, pixels(n).tobytes()) for n, caption in enumerate(CAPTIONS)}
    else:
        assert [record.caption for record in read] == CAPTIONS
        assert [record.image for record in read] == PICTURES  # to the byte
    (log,) = (output / "progress").glob("*.log")
    lines = [json.loads(line) for line in log.read_text().splitlines()]
    assert [line["shard"] for line in lines] == [split["shards"][1], split["shards"][0]]
    assert sum(line["examples"] for line in lines) == 4


class Pairs:
    """A corpus from a list."""

    def __init__(self, *pairs: tuple[str, bytes | None]):
        self.pairs = pairs

    def examples_of_shard(self, shard: int, num_shards: int) -> Any:
        for i in range(shard, len(self.pairs), num_shards):
            yield corpora.CorpusExample(str(i), *self.pairs[i])

    def describe(self) -> dict[str, Any]:
        return {"name": "pairs", "count": len(self.pairs)}


GOOD = encoded(pixels(0))


def run(directory: Path, *pairs: tuple[str, bytes | None], **options: Any) -> dict[str, Any]:
    defaults = {"split": "train", "image_size": SIZE, "num_shards": 1}
    return embed(Pairs(*pairs), tiny.encoder(), directory, **{**defaults, **options})  # type: ignore[return-value]


def test_what_is_left_out_is_counted_and_listed(tmp_path: Path) -> None:
    big = encoded(pixels(1, 16, 24), "JPEG")
    words = " ".join("abcdefgh")
    pairs = [("a dog", GOOD), ("", GOOD), ("a cat", None), ("a cat", GOOD[:60]), ("a cat", b"x"),
             ("a cat", encoded(pixels(0, 8, 7))), ("a cat", big), (words, GOOD)]  # fmt: skip
    split = run(tmp_path / "exact", *pairs)["splits"]["train"]
    assert (split["examples"], split["captions"], split["tokens"]) == (1, 1, 2)
    assert split["dropped"] == {
        "empty caption": 1, "no picture": 1, "undecodable picture": 2,
        "picture is smaller than 8 x 8 pixels": 1, "picture is not of 8 x 8 pixels": 1,
        "caption of more than 7 tokens": 1,
    }  # fmt: skip
    (listing,) = (tmp_path / "exact").glob("*.dropped")
    listed = {line["id"]: line for line in map(json.loads, listing.read_text().splitlines())}
    assert listed.keys() == set("1234567")
    assert listed["5"]["detail"] == "7 x 8"
    assert listed["7"]["detail"] == "8 tokens"

    split = run(tmp_path / "crop", *pairs, fit="crop", long_captions="truncate")["splits"]["train"]
    assert split["examples"] == 3
    assert split["changed"] == {"reduced": 1, "cropped": 1, "caption cut to 7 tokens": 1}
    last = list(records.read_records(tmp_path / "crop" / split["shards"][0]))[-1]
    encoder = tiny.encoder()
    expected = encoder.encode_tokens(encoder.tokenize([" ".join("abcdefg")]))[0]
    np.testing.assert_array_equal(last.states, expected.astype(last.states.dtype))
    assert last.caption == words


def test_pictures_as_they_are_recorded() -> None:
    def recorded(content: bytes, size: int, fit: str) -> tuple[np.ndarray, list[str]]:
        found = record_picture(content, size, fit)
        return np.asarray(Image.open(io.BytesIO(found.content))), found.changed

    wide = np.zeros((16, 24, 3), np.uint8)
    wide[:, 4:20] = np.kron(pixels(3, 4, 4), np.ones((4, 4, 1), np.uint8))
    assert record_picture(encoded(wide), 4, "crop").side == 16
    found, changed = recorded(encoded(wide), 4, "crop")
    assert changed == ["reduced", "cropped"]
    np.testing.assert_array_equal(found, pixels(3, 4, 4))

    found, changed = recorded(encoded(pixels(0)[..., 0]), SIZE, "exact")
    assert changed == ["converted to RGB"]
    np.testing.assert_array_equal(found, np.repeat(pixels(0)[..., :1], 3, -1))
    clear = np.concatenate([pixels(0), np.zeros((SIZE, SIZE, 1), np.uint8)], -1)
    assert (recorded(encoded(clear), SIZE, "exact")[0] == 255).all()

    exif = Image.Exif()
    exif[0x0112] = 3  # upside down
    found, changed = recorded(encoded(pixels(1), exif=exif), SIZE, "exact")
    assert changed == ["turned upright"]
    np.testing.assert_array_equal(found, pixels(1)[::-1, ::-1])

    for kind in ("JPEG", "PNG"):
        kept = encoded(pixels(0), kind)
        assert record_picture(kept, SIZE, "exact") == Picture(kept, [], SIZE)
    jpeg = record_picture(encoded(pixels(0, 16, 16), "JPEG"), SIZE, "crop").content
    assert Image.open(io.BytesIO(jpeg)).format == "JPEG"
    with pytest.raises(UnusableError, match=r"smaller than 9 x 9 pixels \(8 x 8\)"):
        record_picture(GOOD, 9, "crop")


def test_the_report_shows_what_is_there(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pairs = [("a <b> dog", GOOD), ("two blue cats", encoded(pixels(1, 20, 30), "JPEG")), ("", GOOD)]
    run(tmp_path / "data", *pairs, fit="crop", num_shards=2)
    report_file = tmp_path / "report.html"
    assert main(["data", "inspect", str(tmp_path / "data"), "--output", str(report_file)]) == 0
    assert "from 2 examples" in capsys.readouterr().out
    text = report_file.read_text()
    for expected in (
        "a &lt;b&gt; dog", "two blue cats", "1 empty caption", "1 cropped; 1 reduced", "8-15",
        "16-31", "2, in 2 shards of 1 to 1", "6, 3.0 to an example", "8 x 8 pixels",
    ):  # fmt: skip
        assert expected in text, expected
    assert text.count("<img") == 2
    assert base64.b64encode(GOOD).decode() in text


def test_damaged_and_missing_files(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"no file matches '.*\*\.tar'"):
        corpora.Files("webdataset", f"{tmp_path}/*.tar", corpora.read_tar)
    write_tars(tmp_path)
    write_tfrecords(tmp_path)
    write_csv(tmp_path)
    for pattern, read in (("*.tar", corpora.read_tar), ("*.tfrecord", corpora.read_tfrecord)):
        source = corpora.Files("files", f"{tmp_path}/{pattern}", read)
        with pytest.raises(ValueError, match="3 shards of 2 files: files are not divided"):
            list(source.examples_of_shard(0, 3))
        path = source.files[1]
        before = source.describe()
        path.write_bytes(path.read_bytes()[:400])
        assert source.describe() != before
        with pytest.raises(ValueError, match=rf"{path} is damaged"):
            list(source.examples_of_shard(0, 1))
    with pytest.raises(ValueError, match=r"has no columns \['text'\]; it has \['image', 'caption'"):
        corpora.Table(tmp_path / "table.csv", "image", "text")
    with pytest.raises(FileNotFoundError, match="no table"):
        corpora.Table(tmp_path / "absent.csv", "image", "caption")
    with pytest.raises(ValueError, match=r"0\.png must be a \.csv or \.parquet file"):
        corpora.Table(tmp_path / "0.png", "image", "caption")
    (tmp_path / "2.png").unlink()
    images = [e.image for e in corpora.Table(tmp_path / "table.csv", "image", "caption")
              .examples_of_shard(0, 1)]  # fmt: skip
    assert [image is None for image in images] == [False, False, True, False]


def test_an_estimate_is_what_embedding_gives(tmp_path: Path) -> None:
    pairs = [(caption, picture) for caption, picture in zip(CAPTIONS, PICTURES, strict=True)]
    chip = Chip(tflops=2.0, utilisation=0.5, price=3.0)
    handling = Handling(SIZE, "exact", "drop")
    found = estimate(Pairs(*pairs, ("", GOOD)), tiny.encoder(), handling, 1000, chip)
    assert (found.sampled, found.usable, found.distinct) == (5, 0.8, 0.75)
    assert found.tokens == np.mean([len(caption.split()) for caption in CAPTIONS])
    for states in records.STATES:
        split = run(tmp_path / states, *pairs, states=states)["splits"]["train"]
        framed = split["bytes"] / split["examples"] - 16
        assert found.bytes_of[states] == pytest.approx(framed, rel=1e-6)
    assert found.chip_hours == pytest.approx(
        1000 * 0.8 * 0.75 * found.flops * 6 / (2e12 * 0.5) / 3600
    )
    assert found.cost == pytest.approx(3 * found.chip_hours)
    text = report(found, chip)
    assert "for 1,000 examples" in text
    assert "dropped: 1 empty caption" in text
    with pytest.raises(ValueError, match="none of the first 1 examples can be used"):
        estimate(Pairs(("", GOOD)), tiny.encoder(), handling, 10, chip)


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--scenes", "demo", "--count", "9"], "--output is missing"),
        (["--scenes", "demo", "--output", "o"], "--scenes needs --count"),
        (["--table", "t.csv", "--count", "9", "--output", "o"], "--count belongs to --scenes"),
        (["--tfds", "coco", "--output", "o"], "--tfds is 'coco'; it must be NAME:SPLIT"),
        (["--tfrecords", "x", "--output", "o", "--process", "2/2"], "--process is '2/2'"),
        (["--tfrecords", "absent/*", "--output", "o"], "no file matches 'absent/*'"),
    ],
)
def test_bad_arguments(argv: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["embed", *argv]) == 2
    assert message in capsys.readouterr().err


def train_argv(stage: str, data: str, workdir: Path, *more: str) -> list[str]:
    return ["train", "--config", str(Path(tiny.__file__).with_name("tiny_config.py")),
            "--stage", stage, "--data", data, "--workdir", str(workdir),
            "--set", *tiny.ONE_LEVEL, *more]  # fmt: skip


def test_training_embeds_a_corpus_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("imagen_jax.cli.embed.ENCODERS", ("tiny",))
    write_csv(tmp_path)
    workdir, by_hand = tmp_path / "workdir", tmp_path / "by_hand"
    corpus = f"table:{tmp_path}/table.csv"
    argv = train_argv("base", corpus, workdir, "--embed", "shards=2", "long-captions=truncate")
    assert main(argv) == 0
    assert f"4 examples in {workdir / 'embeddings'}" in capsys.readouterr().out
    options = ["--image-size", str(tiny.SR), "--encoder", "tiny", "--shards", "2"]
    options += ["--long-captions", "truncate", "--output", str(by_hand)]
    assert main(["embed", "--table", f"{tmp_path}/table.csv", *options]) == 0
    manifest = records.load_manifest(workdir / "embeddings")
    assert manifest == records.load_manifest(by_hand)
    assert tiny.record(workdir, "base")["source"]["train"]["name"] == "table"
    assert checkpoint_steps(workdir / "base") == [2]

    # The other stage finds one shard there, and makes the one that is missing.
    kept, lost = (workdir / "embeddings" / name for name in manifest["splits"]["train"]["shards"])
    (workdir / "embeddings" / records.MANIFEST).unlink()
    lost.unlink()
    written = kept.stat().st_mtime_ns
    argv[argv.index("base")] = "sr"
    assert main(argv) == 0
    assert records.load_manifest(workdir / "embeddings") == manifest
    assert kept.stat().st_mtime_ns == written
    assert checkpoint_steps(workdir / "sr") == [2]

    assert main(train_argv("sr", str(workdir / "embeddings"), workdir)) == 0  # the same data
    capsys.readouterr()
    (tmp_path / "table.csv").write_text("image,caption\n0.png,another\n1.png,corpus\n")
    assert main(argv) == 2
    assert "holds other embeddings" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("data", "more", "message"),
    [
        ("table:t.csv", ["--embed", "fti=crop"], "--embed 'fti=crop' must be KEY=VALUE with KEY"),
        ("table:t.csv", ["--embed", "output=o"], "--embed 'output=o' must be KEY=VALUE with KEY"),
        ("table:t.csv", ["--embed", "fit"], "--embed 'fit' must be KEY=VALUE with KEY one of"),
        ("table:t.csv", [], "no table t.csv"),
        ("tfrecords:absent/*", [], "no file matches 'absent/*'"),
        ("t.csv", [], "no embedding directory t.csv"),
        ("t.csv", ["--embed", "fit=crop"], "a corpus is KIND:WHERE with KIND one of: scenes,"),
        ("webdataset:a/*.tar", ["--embed", "fit=crop", "--multi-host"],
         "run: imagen embed '--webdataset=a/*.tar' --encoder=tiny --image-size=8 "
         "--output=w/embeddings --fit=crop (on several hosts, each with its --process ID/COUNT), "
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
    assert main(train_argv("base", data, Path("w"), *more)) == 2
    assert message in capsys.readouterr().err
    assert not list(tmp_path.iterdir()), "a mistake must leave nothing behind"


def test_captions_of_a_dataset_are_chosen_for_evaluation(tmp_path: Path) -> None:
    write_tfds(tmp_path)
    captions = read_tfds("pairs:train", str(tmp_path), 3, 0)
    assert captions == read_tfds("pairs:train", str(tmp_path), 3, 0)
    assert [len(captions.chosen), len(captions.rest)] == [3, 1]
    every = [c.picture for c in captions.chosen] + captions.rest
    read = sorted(read_picture(picture, SIZE, "exact").tobytes() for picture in every)
    assert read == sorted(pixels(n).tobytes() for n in range(4))
    for caption, picture in captions.chosen:
        (n,) = (n for n in range(4)
                if (pixels(n) == read_picture(picture, SIZE, "exact")).all())  # fmt: skip
        assert caption == CAPTIONS[n]
    with pytest.raises(ValueError, match="'pairs' is not of the form NAME:SPLIT"):
        read_tfds("pairs", str(tmp_path), 3, 0)
