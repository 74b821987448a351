"""Tars and folders as people have them: what is put together, and what is said of the rest."""

from __future__ import annotations

import contextlib
import functools
import gzip
import http.server
import io
import json
import os
import shutil
import tarfile
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from corpus_files import CAPTIONS, IMAGES

from imagen_jax.data.corpora import CorpusExample, open_corpus
from imagen_jax.errors import UserError

DOG, CAT = CAPTIONS[:2]
ONE, TWO = IMAGES[:2]


def tar(path: Path, *members: tuple[str | bytes, bytes]) -> Path:
    """A tar of members in this order; names that are bytes are no UTF-8."""
    with tarfile.open(path, "w", encoding="utf-8", errors="surrogateescape") as archive:
        for name, content in members:
            text = name.decode("utf-8", "surrogateescape") if isinstance(name, bytes) else name
            member = tarfile.TarInfo(text)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return path


def read(where: Any, **options: Any) -> list[tuple[str, Any]]:
    """(id, caption) of examples, (id, "(reason)") of what is left out."""
    return [
        (e.id, e.caption if isinstance(e, CorpusExample) else f"({e.reason})")
        for e in open_corpus(where, **options).examples_of_shard(0, 1)
    ]


@pytest.mark.parametrize(
    ("members", "expected"),
    [
        # Together, in any order, with what else there is.
        ([("0.txt", b"a red dog"), ("0.jpg", ONE), ("0.cls", b"3")], [("0", DOG)]),
        ([("./x/0.JPG", ONE), ("./x/0.TXT", b"a red dog\n")], [("x/0", DOG)]),
        # Captions after all images, and in folders of their own.
        ([("0.jpg", ONE), ("1.jpg", TWO), ("0.txt", DOG.encode()), ("1.txt", CAT.encode())],
         [("0", DOG), ("1", CAT)]),
        ([("images/0.jpg", ONE), ("images/1.jpg", TWO), ("captions/0.txt", DOG.encode()),
          ("captions/1.txt", CAT.encode())], [("images/0", DOG), ("images/1", CAT)]),
        ([("a/0.jpg", ONE), ("b/0.jpg", TWO), ("c/0.txt", DOG.encode())],
         [("a/0", "(image without a caption)"), ("b/0", "(image without a caption)"),
          ("c/0", "(caption without an image)")]),
        # Dots in names.
        ([("a.1.jpg", ONE), ("a.1.txt", DOG.encode()), ("a.2.jpg", TWO),
          ("a.2.txt", CAT.encode())], [("a.1", DOG), ("a.2", CAT)]),
        ([("0.photo.jpg", ONE), ("0.words.txt", DOG.encode())], [("0", DOG)]),
        ([("v1.5.jpg", ONE), ("v1.5.json", json.dumps({"caption": DOG}).encode())],
         [("v1.5", DOG)]),
        # The same name twice.
        ([("0.jpg", ONE), ("0.txt", DOG.encode()), ("1.jpg", TWO), ("1.txt", CAT.encode()),
          ("0.jpg", TWO), ("0.txt", CAT.encode())],
         [("0", DOG), ("1", CAT), ("0", "(the same name twice in a tar)")]),
        ([("0.jpg", ONE), ("0.jpg", TWO), ("0.txt", DOG.encode())],
         [("0.jpg", "(the same name twice in a tar)"), ("0", DOG)]),
        # What is missing or unknown.
        ([("0.jpg", ONE), ("1.jpg", TWO), ("1.txt", CAT.encode())],
         [("1", CAT), ("0", "(image without a caption)")]),
        ([("0.txt", DOG.encode()), ("0.xyz", ONE)], [("0", "(caption without an image)")]),
        ([("0.npy", ONE), ("0.cls", b"3")], [("0", "(neither image nor caption)")]),
        ([("0.jpg", ONE), ("0.json", b'{"width": 8}')],
         [("0", "(no caption in the JSON beside an image)")]),
        ([("0.jpg", ONE), ("0.json", b"{")], [("0", "(JSON beside an image that is damaged)")]),
        ([("0.jpg", ONE), ("0.json", b'{"caption": null}')], [("0", "(no caption)")]),
        # Several images: one is taken, the others are counted.
        ([("0.png", TWO), ("0.jpg", ONE), ("0.txt", DOG.encode())],
         [("0.png", "(further image of its name)"), ("0", DOG)]),
        ([("0.jpg", ONE), ("0.JPG", TWO), ("0.txt", DOG.encode())],
         [("0.JPG", "(further image of its name)"), ("0", DOG)]),
        ([("0.jpg", ONE), ("1.jpg", TWO), ("0.png", TWO), ("1.txt", CAT.encode()),
          ("0.txt", DOG.encode())],
         [("0.png", "(further image of its name)"), ("0", DOG), ("1", CAT)]),
        # Several captions.
        ([("0.jpg", ONE), ("0.caption", CAT.encode()), ("0.txt", DOG.encode())],
         [("0", DOG), ("0#1", CAT)]),
        ([("0.jpg", ONE), ("0.txt", DOG.encode()), ("0.TXT", CAT.encode())],
         [("0", DOG), ("0#1", CAT)]),
        ([("0.txt", DOG.encode()), ("1.jpg", TWO), ("1.txt", CAT.encode()),
          ("0.caption", CAT.encode()), ("2.cls", b"3"), ("0.jpg", ONE)],
         [("1", CAT), ("0", DOG), ("0#1", CAT), ("2", "(neither image nor caption)")]),
        ([("0.jpg", ONE), ("0.json", b'{"caption": "a red dog", "caption": "two blue cats"}')],
         [("0", DOG), ("0#1", CAT)]),
        ([("0.jpg", ONE), ("0.json", json.dumps({"caption": [DOG, CAT]}).encode())],
         [("0", DOG), ("0#1", CAT)]),
        # Not of the corpus.
        ([("._0.jpg", b"x"), ("__MACOSX/0.txt", b"x"), ("0.jpg", ONE), ("0.txt", DOG.encode())],
         [("0", DOG)]),
    ],
)  # fmt: skip
def test_members_of_a_tar(
    tmp_path: Path, members: list[tuple[str, bytes]], expected: list[tuple[str, str]]
) -> None:
    path = tar(tmp_path / "t.tar", *members)
    found = [(name.removeprefix("t/"), caption) for name, caption in read(path)]
    assert found == expected
    (tmp_path / "t.tgz").write_bytes(gzip.compress(path.read_bytes()))
    assert [(name.removeprefix("t/"), c) for name, c in read(tmp_path / "t.tgz")] == expected


def test_images_of_captions_that_come_late_are_theirs(tmp_path: Path) -> None:
    path = tar(tmp_path / "t.tar", ("0.jpg", ONE), ("1.jpg", TWO), ("1.txt", CAT.encode()),
               ("0.txt", DOG.encode()))  # fmt: skip
    found: Any = list(open_corpus(path).examples_of_shard(0, 1))
    assert {e.caption: e.image for e in found} == {DOG: ONE, CAT: TWO}


def test_names_that_are_no_utf8(tmp_path: Path) -> None:
    path = tar(tmp_path / "t.tar", (b"caf\xe9.jpg", ONE), (b"caf\xe9.txt", DOG.encode()))
    ((name, caption),) = read(path)
    assert caption == DOG
    assert name.encode("utf-8", "surrogateescape") == b"t/caf\xe9"


def test_links_and_empty_tars(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "t.tar", "w") as archive:
        member = tarfile.TarInfo("0.jpg")
        member.type, member.linkname = tarfile.SYMTYPE, "/etc/passwd"
        archive.addfile(member)
    assert read(tmp_path / "t.tar") == [("t/0.jpg", "(member of a tar that is no file)")]
    tar(tmp_path / "t.tar")
    assert read(tmp_path / "t.tar") == [("t", "(file without examples)")]
    (tmp_path / "t.tar").write_bytes(b"")
    with pytest.raises(UserError, match=r"t\.tar is damaged: it is empty \(0 bytes\)"):
        read(tmp_path / "t.tar")


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("t.tar", b"PK\x03\x04" + bytes(600), r"is no tar file: it is a ZIP archive or an Excel"),
        ("t.tar", b"<html>404", "is no tar file: it is an HTML page"),
        ("t.tfrecord", b"PAR1" + bytes(600), "is no TFRecord file: it is a parquet file"),
        ("t.tfrecord", b"key,caption\n", "is no TFRecord file: it is text"),
        (
            "t.csv",
            b"PK\x03\x04" + bytes(600),
            "is a ZIP archive or an Excel workbook, and no table",
        ),
        ("t.jsonl", b"PAR1" + bytes(600), "is a parquet file, and no table of text"),
        ("t.parquet", b"a,b\n1,2\n", "is no parquet or Arrow file; it is text"),
        ("t.xlsx", b"PK\x03\x04" + bytes(600), "is a workbook; save its table as CSV UTF-8"),
        ("t.XLS", b"\xd0\xcf\x11\xe0" + bytes(600), "is a workbook; save its table as CSV UTF-8"),
        ("photos.zip", b"PK\x03\x04" + bytes(600), "is a ZIP archive; unpack it first"),
    ],
)
def test_another_format_is_no_damage(
    tmp_path: Path, name: str, content: bytes, message: str
) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=message) as error:
        read(tmp_path / name)
    assert "damaged" not in str(error.value)


def folder(root: Path, *names: str) -> Path:
    """Images (and, of other suffixes, text) by names."""
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        image = path.suffix.lower() in (".png", ".jpg", ".jpeg")
        path.write_bytes(ONE if image else path.stem.encode() + b"\r\n")
    return root


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (["a.jpg", "a.txt", "sub/dir/b.PNG", "sub/dir/b.txt"],
         [("a.jpg", "a"), ("sub/dir/b.PNG", "b")]),
        (["a.jpg", "a.jpg.txt"], [("a.jpg", "a.jpg")]),
        (["a.jpg", "a.caption", "b.jpg", "b.caption"], [("a.jpg", "a"), ("b.jpg", "b")]),
        (["a.jpg", "a.png", "a.txt"], [("a.jpg", "a"), ("a.png", "a")]),
        (["a.JPG", "a.TXT", "b.JPEG", "b.Txt"], [("a.JPG", "a"), ("b.JPEG", "b")]),
        (["a.jpg", "a.txt", "a.caption"], [("a.jpg", "a"), ("a.jpg#1", "a")]),
        (["a.jpg", "a.jpg.txt", "a.txt"], [("a.jpg", "a"), ("a.jpg#1", "a.jpg")]),
        (["a [1] {2}.jpg", "a [1] {2}.txt", "\U0001f600 é/#1.png", "\U0001f600 é/#1.txt"],
         [("a [1] {2}.jpg", "a [1] {2}"), ("\U0001f600 é/#1.png", "#1")]),
        (["a.jpg", "a.txt", "b.jpg"], [("a.jpg", "a"), ("b.jpg", "(image without a caption)")]),
        (["a.jpg", "a.txt", "b.txt"], [("a.jpg", "a"), ("b.txt", "(caption without an image)")]),
        (["a.jpg", "a.txt", "._a.jpg", ".DS_Store", "__MACOSX/a.jpg"], [("a.jpg", "a")]),
    ],
)  # fmt: skip
def test_images_with_captions_beside_them(
    tmp_path: Path, names: list[str], expected: list[tuple[str, str]]
) -> None:
    assert read(folder(tmp_path, *names)) == expected


def test_folders_of_splits(tmp_path: Path) -> None:
    folder(tmp_path, "train/a.jpg", "train/a.txt", "test/b.jpg", "test/b.txt")
    assert read(tmp_path) == [("train/a.jpg", "a")]
    assert "; split train of test, train" in open_corpus(tmp_path).summary
    assert read(tmp_path, split="test") == [("test/b.jpg", "b")]
    with pytest.raises(UserError, match="has the splits test, train and not 'validation': choose"):
        open_corpus(tmp_path, split="validation")


def test_images_without_captions(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"has 2 images, and no captions beside them: that of NAME"):
        open_corpus(folder(tmp_path, "a.jpg", "b.jpg"))


def test_a_table_named_txt_beside_images(tmp_path: Path) -> None:
    """As Flickr8k has one; another text is none."""
    folder(tmp_path, "0.jpg", "1.jpg")
    (tmp_path / "captions.txt").write_text(f"image,caption\n0.jpg,{DOG}\n1.jpg,{CAT}\n")
    assert read(tmp_path) == [("captions/0", DOG), ("captions/1", CAT)]
    (tmp_path / "captions.txt").write_text("Images, and their captions: see elsewhere\n")
    with pytest.raises(UserError, match=r"has 2 images, and no captions beside them"):
        open_corpus(tmp_path)


def test_links_around_in_folders_end(tmp_path: Path) -> None:
    folder(tmp_path, "a.jpg", "a.txt")
    os.symlink(tmp_path, tmp_path / "around")
    os.symlink(tmp_path / "absent.jpg", tmp_path / "b.jpg")
    folder(tmp_path, "c.jpg")
    os.mkfifo(tmp_path / "c.txt")
    assert read(tmp_path) == [
        ("a.jpg", "a"), ("b.jpg", "(image without a caption)"), ("c.jpg", "(caption is no file)")
    ]  # fmt: skip


def test_cocos_layout(tmp_path: Path) -> None:
    (tmp_path / "annotations").mkdir()
    folder(tmp_path, "train2017/1.jpg", "train2017/2.jpg", "val2017/3.jpg")
    for split, ids in (("train2017", [1, 2]), ("val2017", [3])):
        (tmp_path / "annotations" / f"captions_{split}.json").write_text(json.dumps({
            "images": [{"id": i, "file_name": f"{i}.jpg"} for i in ids],
            "annotations": [{"image_id": i, "caption": c} for i in ids for c in (DOG, CAT)],
        }))  # fmt: skip
    train = open_corpus(tmp_path)
    found: Any = list(train.examples_of_shard(0, 1))
    assert [e.caption for e in found] == [DOG, CAT, DOG, CAT]
    assert {e.image.read() for e in found} == {ONE}
    assert len(read(tmp_path / "annotations" / "captions_val2017.json")) == 2


Put = Callable[[str, bytes], object]


@contextlib.contextmanager
def in_memory(request: pytest.FixtureRequest) -> Iterator[tuple[str, Put]]:
    system = pytest.importorskip("fsspec").filesystem("memory")
    yield "memory://corpus", lambda name, content: system.pipe_file(f"/corpus/{name}", content)
    system.rm("/corpus", recursive=True)


@contextlib.contextmanager
def in_s3(request: pytest.FixtureRequest) -> Iterator[tuple[str, Put]]:
    """By s3fs, from a server that speaks like Amazon's."""
    s3fs = pytest.importorskip("s3fs")
    server = pytest.importorskip("moto.server").ThreadedMotoServer("127.0.0.1", 0)
    server.start()
    host, port = server.get_host_and_port()
    monkeypatch = request.getfixturevalue("monkeypatch")
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://{host}:{port}")
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "none")
    s3fs.S3FileSystem.clear_instance_cache()
    system = s3fs.S3FileSystem()
    system.mkdir("corpus")
    yield "s3://corpus", lambda name, content: system.pipe_file(f"corpus/{name}", content)
    server.stop()


@contextlib.contextmanager
def in_gcs(request: pytest.FixtureRequest) -> Iterator[tuple[str, Put]]:
    """By TensorFlow, from a server that speaks like Google's."""
    bucket = request.getfixturevalue("bucket")
    yield "gs://bucket/corpus", lambda name, content: bucket.put(f"corpus/{name}", content)


@pytest.mark.parametrize("storage", [in_memory, in_s3, in_gcs])
def test_corpora_at_addresses(storage: Any, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    folder(tmp_path, "photos/a.jpg", "photos/a.txt", "table/0.jpg")
    (tmp_path / "table" / "t.csv").write_text(f"image,caption\n0.jpg,{DOG}\n")
    tar(tmp_path / "00000.tar", ("0.jpg", ONE), ("0.txt", DOG.encode()))
    shutil.copytree(Path(__file__).with_name("testdata") / "corpora" / "hf_shards",
                    tmp_path / "hub" / "data")  # fmt: skip
    shutil.copytree(Path(__file__).with_name("testdata") / "corpora" / "tfrecords",
                    tmp_path / "tfrecords")  # fmt: skip
    with storage(request) as (address, put):
        for file in sorted(p for p in tmp_path.rglob("*") if p.is_file()):
            put(str(file.relative_to(tmp_path)), file.read_bytes())
        assert read(f"{address}/photos") == [("a.jpg", "a")]
        assert [c for _, c in read(f"{address}/{{00000..00000}}.tar")] == [DOG]
        assert len(read(f"{address}/hub/data/train-*.parquet")) == 3
        assert len(read(f"{address}/hub")) == 3
        assert len(read(f"{address}/tfrecords/*.tfrecord")) == 15
        (example,) = open_corpus(f"{address}/table/t.csv").examples_of_shard(0, 1)
        assert isinstance(example, CorpusExample)
        assert example.image.read() == ONE  # type: ignore[union-attr]
        with pytest.raises(UserError, match=f"no file or folder matches '{address}/x"):
            open_corpus(f"{address}/x*.tar")


def test_a_corpus_of_a_web_server(tmp_path: Path) -> None:
    pytest.importorskip("aiohttp")
    (tmp_path / "t.csv").write_text(f"image,caption\n0.jpg,{DOG}\n")
    (tmp_path / "0.jpg").write_bytes(ONE)
    tar(tmp_path / "00000.tar", ("0.jpg", ONE), ("0.txt", DOG.encode()))
    handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=tmp_path)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        address = f"http://127.0.0.1:{server.server_port}"
        assert [c for _, c in read(f"{address}/{{00000..00000}}.tar")] == [DOG]
        (example,) = open_corpus(f"{address}/t.csv").examples_of_shard(0, 1)
        assert isinstance(example, CorpusExample)
        assert example.image.read() == ONE  # type: ignore[union-attr]
        with pytest.raises(UserError, match=f"no such file or folder as '{address}/absent"):
            open_corpus(f"{address}/absent.tar")
        server.shutdown()


def test_addresses_that_nothing_reads() -> None:
    pytest.importorskip("fsspec")
    with pytest.raises(UserError, match="nowhere://x cannot be reached"):
        open_corpus("nowhere://x")
