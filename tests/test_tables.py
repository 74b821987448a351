"""Tables as corpora: what may be in their columns, and what may not."""

from __future__ import annotations

import base64
import gzip
import json
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest
from corpus_files import CAPTIONS, IMAGES, encoded, pixels, write_csv, write_parquet

from imagen_jax.data.corpora import CorpusExample, open_corpus
from imagen_jax.data.corpora.captions import captions_of
from imagen_jax.data.sources import Dropped
from imagen_jax.errors import UnusableError, UserError


def content(example: Any) -> bytes | None:
    """The encoded image of an example; None where there is none."""
    try:
        return example.image.read() if hasattr(example.image, "read") else example.image
    except UnusableError:
        return None


def read(path: Path, **options: Any) -> list[Any]:
    return list(open_corpus(path, **options).examples_of_shard(0, 1))


def captions(path: Path, **options: Any) -> list[str]:
    """Of examples; of what was dropped the reason, in parentheses."""
    return [e.caption if isinstance(e, CorpusExample) else f"({e.reason})"
            for e in read(path, **options)]  # fmt: skip


def test_missing_columns_files_and_images(tmp_path: Path) -> None:
    write_csv(tmp_path)
    with pytest.raises(ValueError, match=r"no column or key 'text' of captions; it has 'im"):
        open_corpus(tmp_path / "table.csv", caption_key="text")
    with pytest.raises(UserError, match="no such file or folder as"):
        open_corpus(tmp_path / "absent.csv")
    (tmp_path / "2.png").unlink()
    images = [content(e) for e in read(tmp_path / "table.csv")]
    assert [image is None for image in images] == [False, False, True, False]


def test_lines_of_csv(tmp_path: Path) -> None:
    """Blank ones are none, short ones lack what they lack; parts are the whole."""
    path = tmp_path / "table.csv"
    path.write_text("caption,image\na,0.png\n\nb\n\n\nc,2.png\n\n")
    table = open_corpus(path)
    assert len(table) == 3
    parts = [example for i in range(2) for example in table.examples_of_shard(i, 2)]
    assert [(e.id, e.caption) for e in parts] == [
        ("table/0", "a"), ("table/1", "b"), ("table/2", "c")
    ]  # fmt: skip
    path.write_bytes(b"caption,image\n\xff\xfe,0.png\nb,1.png\n")
    assert captions(path) == ["(caption is not in utf-8)", "b"]
    assert captions(path, encoding="latin-1") == ["\xff\xfe", "b"]


def test_rows_are_found_by_their_places_in_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("imagen_jax.data.corpora.text_tables.INDEX_EVERY", 3)
    rows = [f'{i}.png,"number {i}\n of all"\n' for i in range(20)]
    (tmp_path / "t.csv").write_text("image,caption\n" + "".join(rows))
    lines = [json.dumps({"image": f"{i}.png", "caption": f"number {i}"}) for i in range(20)]
    (tmp_path / "t.jsonl").write_text("\n".join(lines))
    for name in ("t.csv", "t.jsonl"):
        for shards in (1, 2, 7, 20):
            corpus = open_corpus(tmp_path / name)
            parts = [list(corpus.examples_of_shard(i, shards)) for i in reversed(range(shards))]
            found = [int(e.caption.split()[1]) for part in reversed(parts) for e in part]
            assert found == list(range(20))


ROWS = "image,caption\n0.png,a dog\n1.png,{}\n2.png,a tree\n3.png,a bird\n"


@pytest.mark.parametrize(
    ("cell", "expected"),
    [
        ('"a cat, asleep"', "a cat, asleep"),
        ('"a ""big"" cat"', 'a "big" cat'),
        ('"two\nlines"', "two\nlines"),
        ('5" wide', '5" wide'),
        ("a cat,", "a cat"),
        ("a cat, asleep", None),
        ('"a cat', None),  # never closes
        ('"a cat"s toy', None),
        ('"a \\"big\\" cat"', None),
        ('"""', None),
    ],
)
def test_quotes_and_commas_never_merge_or_shift_rows(
    tmp_path: Path, cell: str, expected: str | None
) -> None:
    path = tmp_path / "t.csv"
    path.write_text(ROWS.format(cell))
    if expected is None and "," not in cell:
        with pytest.raises(ValueError, match=rf"{path}, line 3: a quote that does not close"):
            open_corpus(path)
    found = captions(path, damaged_files="drop")
    assert (found[0], found[2:]) == ("a dog", ["a tree", "a bird"])
    assert found[1] == expected or (expected is None and found[1].startswith("("))


@pytest.mark.parametrize("image", ["{}.png", "{}", "https://example.org/{}"])
def test_a_quote_that_closes_rows_later_merges_nothing(tmp_path: Path, image: str) -> None:
    path = tmp_path / "t.csv"
    first, second, third = (image.format(i) for i in range(3))
    path.write_text(f'image,caption\n{first},"a dog\n{second},a cat"\n{third},a tree\n')
    with pytest.raises(ValueError, match="line 2: a quote that does not close"):
        open_corpus(path)
    found = captions(path, damaged_files="drop")
    assert found[0] == "(a quote that does not close, or closes within a cell)"
    assert (found[-1] == "a tree") == ("://" not in image)  # images are not downloaded
    assert len(found) == 3


def test_the_table_of_flickr30k(tmp_path: Path) -> None:
    rows = "".join(f"{i // 2}.png| {i % 2}| A {word} .\n" for i, word in enumerate("abcd"))
    (tmp_path / "results.csv").write_text("image_name| comment_number| comment\n" + rows)
    assert captions(tmp_path / "results.csv") == [f"A {word} ." for word in "abcd"]


def test_spaces_before_quotes_and_line_feeds_between_carriage_returns(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    path.write_text('image, caption\n0.png, "a dog, asleep"\n1.png, a cat\n')
    assert captions(path) == ["a dog, asleep", "a cat"]
    path.write_bytes(b'image,caption\r0.png,"a\ndog"\r1.png,a cat\r')
    assert captions(path) == ["a\ndog", "a cat"]


def test_tables_of_tabs_need_no_quotes(tmp_path: Path) -> None:
    path = tmp_path / "t.tsv"
    path.write_text('image\tcaption\n0.png\t"a" dog\n1.png\t"a cat\n2.png\t"a ""big"" tree"\n')
    assert captions(path) == ['"a" dog', '"a cat', 'a "big" tree']


@pytest.mark.parametrize(
    ("name", "write", "options"),
    [
        ("t.csv", lambda t: b"\xef\xbb\xbf" + t.encode(), {}),
        ("t.csv", lambda t: t.replace(",", ";").encode(), {}),
        ("t.csv", lambda t: t.replace("\n", "\r\n").encode(), {}),
        ("t.csv", lambda t: t.replace("\n", "\r").encode(), {}),
        ("t.csv", lambda t: t.rstrip("\n").encode(), {}),
        ("t.csv.gz", lambda t: gzip.compress(t.encode()), {}),
        ("t.csv", lambda t: t.encode("utf-16"), {"encoding": "utf-16"}),
        ("t.csv", lambda t: t.encode("cp1252"), {"encoding": "cp1252"}),
        ("t.tsv", lambda t: t.replace(",", "\t").encode("utf-16"), {"encoding": "utf-16"}),
        ("captions.txt", lambda t: t.encode(), {}),
        # As Excel names its "Unicode text".
        ("t.txt", lambda t: t.replace(",", "\t").encode("utf-16"), {"encoding": "utf-16"}),
        ("t.csv", lambda t: t.encode("utf-16-le"), {"encoding": "utf-16-le"}),
        ("t.csv", lambda t: t.replace("\n", "\r").encode("mac_roman"), {"encoding": "mac_roman"}),
        ("t.csv", lambda t: "sep=;\r\n" + t.replace(",", ";"), {}),
        ("t.csv", lambda t: t.replace(",", ", "), {}),
        ("t.tsv", lambda t: t.encode(), {}),
    ],
)
def test_tables_of_text(tmp_path: Path, name: str, write: Any, options: dict[str, str]) -> None:
    text = "image,caption\n0.png,caf\xe9\n1.png,na\xefve art\n"
    written = write(text)
    (tmp_path / name).write_bytes(written if isinstance(written, bytes) else written.encode())
    assert captions(tmp_path / name, **options) == ["caf\xe9", "na\xefve art"]
    if "encoding" in options and options["encoding"] == "utf-16":
        with pytest.raises(ValueError, match="byte order mark of UTF-16: --encoding utf-16"):
            open_corpus(tmp_path / name)


def test_empty_tables_are_said(tmp_path: Path) -> None:
    for name in ("t.csv", "t.tsv", "t.jsonl", "t.parquet", "t.json"):
        (tmp_path / name).write_bytes(b"")
        with pytest.raises(ValueError, match=r"is empty"):
            open_corpus(tmp_path / name)


RECORDS = [{"image": f"{i}.png", "caption": c} for i, c in enumerate(CAPTIONS)]


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("t.json", RECORDS),
        ("t.json", {"info": {}, "data": RECORDS}),
        ("t.json", {r["image"]: r["caption"] for r in RECORDS}),
        ("t.json", {r["image"]: {"caption": r["caption"], "tags": []} for r in RECORDS}),
        ("t.json", {"image": [r["image"] for r in RECORDS], "caption": CAPTIONS}),
        ("captions_train2017.json", {
            "images": [{"id": i, "file_name": r["image"]} for i, r in enumerate(RECORDS)],
            "annotations": [{"image_id": i, "caption": c} for i, c in enumerate(CAPTIONS)]}),
        ("t.json", {"licenses": [{"id": 1, "url": "u"}], "images": RECORDS}),
        # Of pandas: by columns, and divided.
        ("t.json", {"image": {str(i): r["image"] for i, r in enumerate(RECORDS)},
                    "caption": {str(i): c for i, c in enumerate(CAPTIONS)}}),
        ("t.json", {"columns": ["image", "caption"], "index": [0, 1, 2, 3],
                    "data": [[r["image"], r["caption"]] for r in RECORDS]}),
    ],
)  # fmt: skip
def test_forms_of_json(tmp_path: Path, name: str, value: Any) -> None:
    (tmp_path / name).write_text(json.dumps(value))
    assert captions(tmp_path / name) == CAPTIONS


@pytest.mark.parametrize("name", ["t.json", "t.jsonl"])
@pytest.mark.parametrize("indent", [None, 1])
def test_json_under_the_name_of_the_other_kind(
    name: str, indent: int | None, tmp_path: Path
) -> None:
    rows = [json.dumps(record, indent=indent) for record in RECORDS]
    of_rows = "[\n" + ",\n".join(rows) + "\n]\n"
    for text in (json.dumps(RECORDS, indent=indent), "\n".join(rows) + "\n\n", of_rows):
        (tmp_path / name).write_text(text)
        assert captions(tmp_path / name) == CAPTIONS
    (tmp_path / name).write_text(json.dumps(RECORDS[0], indent=indent))
    assert captions(tmp_path / name) == CAPTIONS[:1]


def test_captions_of_images_that_coco_does_not_list_are_counted(tmp_path: Path) -> None:
    (tmp_path / "t.json").write_bytes(coco([4, 7], 9))
    found = read(tmp_path / "t.json", damaged_files="drop")
    assert [(d.id, d.reason) for d in found] == [
        ("t/0", "no caption"), ("t/1", "no caption"),
        ("t/2", "caption of an image that is not listed"),
    ]  # fmt: skip
    assert found[2].detail == f"{tmp_path}/t.json, row 2: there is no image of the id 9: 'a dog'"


@pytest.mark.parametrize(
    ("cell", "expected"),
    [
        # As numpy, pandas and Python write lists.
        ("['a dog' 'a pet']", ["a dog", "a pet"]),
        ("['a dog'\n 'a pet']", ["a dog", "a pet"]),
        ("[b'a dog', b'a pet']", ["a dog", "a pet"]),
        ("[\"it's\" 'a pet']", ["it's", "a pet"]),
        # No JSON, though it begins so.
        ("[a dog]", ["[a dog]"]),
        ("[0, 1] is a range", ["[0, 1] is a range"]),
        ("{red, blue} dogs", ["{red, blue} dogs"]),
        ('"a dog"', ['"a dog"']),
        ("null", ["null"]),
        # JSON, but not whole.
        ("{'caption': 'a dog', 'n': nan}", "caption is JSON that is damaged"),
        ('{"caption": "a dog", "si', "caption is JSON that is damaged"),
        ('["a dog", "a c', "caption is JSON that is damaged"),
        ('[{"caption": "a dog"', "caption is JSON that is damaged"),
        ('{"capt', "caption is JSON that is damaged"),
        # No text.
        ("a\0 \0d\0o\0g\0", "caption with NUL bytes"),
        ("\ud83d dog", "caption with half a letter (a lone surrogate)"),
        ([("en", "a dog"), ("fr", "un chien")], "caption is JSON without a text"),
        (True, "caption is no text"),
    ],
)
def test_what_a_cell_says(cell: Any, expected: list[str] | str) -> None:
    if isinstance(expected, list):
        assert captions_of(cell) == expected
        return
    with pytest.raises(UnusableError) as error:
        captions_of(cell)
    assert error.value.reason == expected


def test_keys_that_come_twice_lose_nothing(tmp_path: Path) -> None:
    (tmp_path / "t.jsonl").write_text(
        '{"image": "0.png", "caption": "a dog", "caption": "a pet"}\n'
        '{"image": "1.png", "image": "1.png", "caption": "a cat"}\n'
        '{"image": "2.png", "image": "3.png", "caption": "a tree"}\n'
    )
    assert captions(tmp_path / "t.jsonl") == [
        "a dog", "a pet", "a cat", "(several images in one row)"
    ]  # fmt: skip


def test_tables_named_twice_or_from_different_folders(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_csv(tmp_path)
    (tmp_path / "other.csv").write_text("image,caption\n0.png,a dog\n")
    monkeypatch.chdir(tmp_path)
    for again in (["table.csv", str(tmp_path / "table.csv")], ["*.csv", "table.*"]):
        with pytest.raises(UserError, match=r"table\.csv is named twice: its examples would come"):
            open_corpus(again)
    found = list(open_corpus([str(tmp_path / "table.csv"), "other.csv"]).examples_of_shard(0, 1))
    assert [e.id for e in found] == [*(f"table/{i}" for i in range(4)), "other/0"]
    with pytest.raises(UserError, match=r"\{3\.\.1\}\.csv has a range that begins behind its end"):
        open_corpus("{3..1}.csv")


def test_parquet_in_parts_of_hive(tmp_path: Path) -> None:
    for split in ("train", "test"):
        (tmp_path / f"split={split}").mkdir()
        parquet(tmp_path / f"split={split}", IMAGES, [f"{split} {i}" for i in range(4)])
    assert captions(tmp_path) == [f"train {i}" for i in range(4)]
    assert captions(tmp_path, split="test") == [f"test {i}" for i in range(4)]


def test_lines_of_json(tmp_path: Path) -> None:
    path = tmp_path / "t.jsonl"
    encoded = base64.b64encode(IMAGES[0]).decode()
    lines = [json.dumps({"image": "0.png", "caption": ["a dog", "a pet"]}), "{", "[1]",
             json.dumps({"image": "1.png"}), json.dumps({"image": "2.png", "caption": 3}),
             json.dumps({"image": "3.png", "caption": '{"a": 1}'}),
             json.dumps({"image": encoded, "caption": "in the cell"}),
             json.dumps({"image": f"data:image/png;base64,{encoded}",
                         "caption": "in a URL"})]  # fmt: skip
    path.write_text("\n".join(lines) + "\n")
    with pytest.raises(ValueError, match=rf"{path}, line 2: line is not JSON"):
        open_corpus(path)
    assert captions(path, damaged_files="drop") == [
        "a dog", "a pet", "(line is not JSON)", "(line is not a JSON object)", "(no caption)",
        "(caption is no text)", "(caption is JSON without a text)", "in the cell", "in a URL",
    ]  # fmt: skip
    found = read(path, damaged_files="drop")
    assert [content(e) for e in found[-2:]] == [IMAGES[0]] * 2


def parquet(directory: Path, image: Any, caption: Any = CAPTIONS) -> Path:
    path = directory / "table.parquet"
    pyarrow.parquet.write_table(pyarrow.table({"image": image, "caption": caption}), path)
    return path


def test_images_in_base64_of_every_format(tmp_path: Path) -> None:
    kinds = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "AVIF")
    images = [encoded(pixels(0), kind) for kind in kinds]
    rows = [f"{base64.b64encode(image).decode()},a dog\n" for image in images]
    broken = "/9j/" + "A" * 4001
    (tmp_path / "t.csv").write_text("image,caption\n" + "".join(rows) + f"{broken},a cat\n")
    *found, last = read(tmp_path / "t.csv")
    assert [content(e) for e in found] == images
    with pytest.raises(UnusableError) as error:
        last.image.read()
    assert error.value.reason == "no image file"
    assert len(error.value.detail) < 1200


def test_images_of_hugging_face_datasets(tmp_path: Path) -> None:
    """An image is {bytes, path}, of which one may be missing."""
    (tmp_path / "2.jpg").write_bytes(IMAGES[2])
    images = [{"bytes": IMAGES[0], "path": "0.jpg"}, {"bytes": IMAGES[1], "path": None},
              {"bytes": None, "path": "2.jpg"}, None]  # fmt: skip
    found = read(parquet(tmp_path, images))
    assert [content(e) for e in found] == [*IMAGES[:3], None]
    assert [e.caption for e in found] == CAPTIONS


def test_columns_of_other_types(tmp_path: Path) -> None:
    assert captions(parquet(tmp_path, IMAGES, [1, 2, 3, 4])) == ["(caption is no text)"] * 4
    several = [["a", "b"], [], ["c"], None]
    assert captions(parquet(tmp_path, IMAGES, several)) == [
        "a", "b", "(no caption)", "c", "(no caption)"
    ]  # fmt: skip
    numbers = parquet(tmp_path, [0.5, 1.5, 2.5, 3.5])
    assert captions(numbers) == ["(image is no file and no path)"] * 4
    pixels = parquet(tmp_path, [[[1, 2, 3], [4, 5, 6]]] * 4)
    assert captions(pixels) == ["(image is no file and no path)"] * 4
    of_one_name = pyarrow.table([IMAGES, CAPTIONS, CAPTIONS], ["image", "caption", "caption"])
    pyarrow.parquet.write_table(of_one_name, tmp_path / "t.parquet")
    with pytest.raises(
        UserError, match=r"t\.parquet has several columns 'caption': rename all but"
    ):
        open_corpus(tmp_path / "t.parquet")
    repeated = pyarrow.array(CAPTIONS).dictionary_encode()
    assert captions(parquet(tmp_path, IMAGES, repeated)) == CAPTIONS


def test_rows_of_one_image_are_in_one_shard(tmp_path: Path) -> None:
    """Also where parts are read out of order, and a table ends within."""
    images = [IMAGES[i] for i in (0, 0, 0, 1, 1, 0, 2, 3, 3, 3, 3, 3)]
    for name, rows in (("a", slice(0, 2)), ("b", slice(2, 9)), ("c", slice(9, 12))):
        table = pyarrow.table({"image": images[rows], "caption": list("abcdefghijkl")[rows]})
        pyarrow.parquet.write_table(table, tmp_path / f"{name}.parquet", row_group_size=2)
    for shards in range(1, 13):
        corpus = open_corpus(tmp_path)
        parts = [list(corpus.examples_of_shard(i, shards)) for i in range(shards)]
        again = open_corpus(tmp_path)
        backwards = [list(again.examples_of_shard(i, shards)) for i in reversed(range(shards))]
        assert parts == backwards[::-1]
        assert "".join(e.caption for part in parts for e in part) == "abcdefghijkl"
        ends = {"".join(e.caption for e in part)[-1:] for part in parts}
        assert ends <= {"c", "e", "f", "g", "l", ""}, shards


@pytest.mark.parametrize("stream", [False, True])
def test_arrow_files_and_streams(tmp_path: Path, stream: bool) -> None:
    table = pyarrow.table({"image": IMAGES, "caption": CAPTIONS})
    path = tmp_path / "data-00000-of-00001.arrow"
    new = pyarrow.ipc.new_stream if stream else pyarrow.ipc.new_file
    with new(str(path), table.schema) as writer:
        writer.write_table(table, max_chunksize=3)
    assert captions(path) == CAPTIONS
    corpus = open_corpus(path)
    assert [e.caption for i in range(4) for e in corpus.examples_of_shard(i, 4)] == CAPTIONS


def test_damaged_parquet_is_named(tmp_path: Path) -> None:
    write_parquet(tmp_path)
    path = tmp_path / "table.parquet"
    damaged = bytearray(path.read_bytes())
    damaged[4:40] = bytes(36)
    path.write_bytes(damaged)
    with pytest.raises(ValueError, match=rf"{path} is damaged in rows 0 to 2: .*--damaged-f"):
        read(path)
    found = read(path, damaged_files="drop")
    assert [e.reason for e in found[:3] if isinstance(e, Dropped)] == ["rest of a damaged file"] * 3
    assert found[3].caption == CAPTIONS[3]
    path.write_bytes(b"no parquet")
    with pytest.raises(ValueError, match=rf"{path} is no parquet or Arrow file; it is text"):
        open_corpus(path)


def coco(ids: list[int], of: int) -> bytes:
    images = [{"id": i, "file_name": f"{i}.png"} for i in ids]
    notes = [{"image_id": of, "caption": "a dog"}]
    return json.dumps({"images": images, "annotations": notes}).encode()


@pytest.mark.parametrize(
    ("files", "options", "message"),
    [
        ({"t.csv": b"\n\n"}, {}, "t.csv is empty"),
        ({"t.csv": b'image,"caption\n0.png,a'}, {}, "t.csv, line 1, which names the columns: unex"),
        ({"t.csv": b"image,caption\n"}, {"encoding": "utf-9"}, "unknown encoding 'utf-9'; some"),
        ({"t.csv": b"image,caption\n0.png,\x81\n"}, {"encoding": "cp1252"},
         "t.csv is not in cp1252 ('charmap' codec can't decode byte 0x81 in position 20: character "
         "maps to <undefined>); --encoding names another"),
        ({"t.csv.gz": b"\x1f\x8b\x08\x00"}, {}, "t.csv.gz is damaged: Compressed file ended"),
        ({"t.jsonl": b"[]\n"}, {}, "t.jsonl is empty, or has no JSON object on its first lines"),
        ({"t.json": b"\xff"}, {}, "t.json is not in utf-8: b'\\xff'"),
        ({"t.json": b"{"}, {}, "t.json is not JSON: Expecting property name"),
        ({"t.json": b"3"}, {}, "t.json holds one int; rows are wanted"),
        ({"t.json": b'{"image": ["a", "b"], "caption": ["c"]}'}, {},
         "t.json has columns of different lengths: 'image' of 2, 'caption' of 1"),
        ({"t.json": b'{"a": 1, "b": 2}'}, {}, "t.json has the keys 'a', 'b'; it must be a list of"),
        ({"t.json": b"{}"}, {}, "t.json has the keys (none); it must be"),
        ({"t.json": coco([4, 7, 7], 4)}, {}, "t.json: the image id 7 comes twice"),
        ({"t.json": coco([4, 7], 9)}, {}, "t.json: caption of an image that is not listed: there "
         "is no image of the id 9: 'a dog'; to leave out such captions, counted and listed: --dam"),
        ({"t.json": coco([4], 4).replace(b"image_id", b"id")}, {},
         "t.json is not of the form of COCO's captions_train2017"),
        ({"t.csv": b"image,caption,caption\n0.png,a,b\n"}, {},
         "t.csv has several columns 'caption': rename all but the one that is meant"),
        ({"t.csv": "image,caption\n0.png,a\n".encode("utf-16-le")}, {},
         "t.csv begins with letters of UTF-16: --encoding utf-16-le reads it"),
        ({"t.txt": "image\tcaption\n0.png\ta\n".encode("utf-16")}, {},
         "t.txt begins with the byte order mark of UTF-16: --encoding utf-16 reads it"),
        ({"t.csv": "image,caption\n0.png,a\n".encode("utf-32")}, {},
         "t.csv begins with the byte order mark of UTF-32: --encoding utf-32 reads it"),
        ({"t.json": "[{}]".encode("utf-16")}, {}, "UTF-16; --encoding utf-16 reads it"),
        ({"t.csv": b"image,caption\n0.png,a\rdog\n"}, {},
         "t.csv, line 2: carriage return in a cell without quotes: quote it, or end all lines"),
        ({"train/metadata.csv": b"file_name,text\n", "test/metadata.jsonl": b"{}"}, {},
         "has several tables: test/metadata.jsonl, train/metadata.csv; name the one that has the"),
        ({"t.tar.zst": b"\x28\xb5\x2f\xfd"}, {},
         "t.tar.zst is of no known kind (it is compressed by zstd); choose one with --kind: "),
        ({"a.csv": b"image,caption\n", "b.csv": b"image,text\n"}, {},
         "b.csv has no column 'caption', which a.csv has; it has 'image', 'text'"),
        ({"a.csv": b"image,caption\n", "b.json": b"[]"}, {},
         "has several tables: a.csv, b.json; name the one that has the captions"),
        ({"t.arrow": b"ARROW1 nothing"}, {}, "t.arrow is damaged: File is too small"),
    ],
)  # fmt: skip
def test_tables_that_cannot_be_read(
    tmp_path: Path, files: dict[str, bytes], options: dict[str, str], message: str
) -> None:
    for name, written in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(written)
    with pytest.raises(UserError) as error:
        open_corpus(tmp_path if len(files) > 1 else tmp_path / next(iter(files)), **options)
    assert message in str(error.value).replace(f"{tmp_path}/", "")


def test_cells_that_hold_too_much_or_no_text(tmp_path: Path) -> None:
    deep = "[" * 50_000 + "]" * 50_000
    rows = {"several": (["0.png", "1.png"], "a"), "key": ("0.png", {"k": 1}),
            "bytes": ("0.png", "\udcff"), "deep": ("0.png", deep)}  # fmt: skip
    lines = [json.dumps({"image": image, "caption": said}) for image, said in rows.values()]
    (tmp_path / "t.jsonl").write_text("\n".join(lines))
    assert [(d.reason, d.detail) for d in read(tmp_path / "t.jsonl")] == [
        ("several images in one row", "2 images"), ("caption is JSON without a text", "keys: k"),
        ("caption is not in utf-8", "b'\\xff'"),
        ("caption is JSON without a text", "nested too deeply"),
    ]  # fmt: skip
