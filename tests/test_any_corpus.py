"""Corpora as people have them, each read right or refused in one line that says why."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import tiny  # noqa: F401, which registers the encoder

from imagen_jax.data import records
from imagen_jax.data.corpora import open_corpus
from imagen_jax.data.manifest import load_manifest
from imagen_jax.main import main

TESTDATA = Path(__file__).with_name("testdata") / "corpora"
CAPTIONS = ["a red dog on grass", "two blue cats", "one tall tree"]


@pytest.fixture(autouse=True)
def tiny_encoder(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("imagen_jax.cli.embed.ENCODERS", ("tiny",))


def embed(where: Path | str | Sequence[Path], output: Path, *options: str) -> int:
    places = [where] if isinstance(where, Path | str) else where
    return main(["embed", *map(str, places), "--output", str(output), "--encoder", "tiny",
                 *options])  # fmt: skip


def captions(output: Path) -> list[str]:
    entry = load_manifest(output)["splits"]["train"]
    return [r.captions[0] for name in entry["shards"] for r in records.read_records(output / name)]


def dropped(output: Path) -> dict[str, int]:
    return load_manifest(output)["splits"]["train"]["dropped"]


@pytest.mark.parametrize(
    ("where", "options"),
    [
        ("folder_txt", []),
        ("imagefolder_jsonl", []),
        ("imagefolder_jsonl/metadata.jsonl", ["--image-key", "file_name"]),
        ("tsv/t.tsv", ["--image-key", "filepath", "--caption-key", "title"]),
        ("tsv", []),
        ("csv_bom/t.csv", ["--shards", "1"]),
        ("hf_shards/train-*.parquet", []),
        ("hf_shards", []),
        ("tars/appledouble.tar", []),
        ("tars/json_captions.tar", []),
        ("tars/other_extensions.tar", []),
        ("tfrecords/gzip.tfrecord.gz", []),
    ],
)
def test_three_examples(
    where: str, options: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert embed(TESTDATA / where, tmp_path / "out", *options) == 0
    assert captions(tmp_path / "out") == CAPTIONS
    said = capsys.readouterr().out
    assert "reading " in said
    assert "no --image-size: images are reduced and cropped to 64 x 64 pixels" in said


def test_all_captions_of_an_image_are_embedded(tmp_path: Path) -> None:
    assert embed(TESTDATA / "tfrecords" / "five_captions.tfrecord", tmp_path / "out") == 0
    found = captions(tmp_path / "out")
    assert len(found) == len(set(found)) == 15
    ids = [r.id for r in records.read_records(tmp_path / "out" / "train-00000-of-00001.tfrecord")]
    assert len(set(ids)) == 15


def test_captions_of_an_image_are_kept_together_to_be_drawn(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    place = TESTDATA / "tfrecords" / "five_captions.tfrecord"
    assert embed(place, tmp_path / "each") == 0
    assert embed(place, tmp_path / "drawn", "--captions", "drawn") == 0
    assert "changed: 12 further caption of its image" in capsys.readouterr().out
    assert embed(place, tmp_path / "small", "--captions", "drawn", "--states", "int8") == 0
    each, drawn, small = (
        list(records.read_records(tmp_path / name / "train-00000-of-00001.tfrecord"))
        for name in ("each", "drawn", "small")
    )
    assert [record.id for record in drawn] == [record.id for record in each[::5]]
    for i, record in enumerate(drawn):
        separate = each[5 * i : 5 * i + 5]
        assert record.captions == tuple(one.captions[0] for one in separate)
        assert all(record.image == one.image for one in separate)
        for states, one, coarse in zip(record.states, separate, small[i].states, strict=True):
            np.testing.assert_array_equal(states, one.states[0])
            np.testing.assert_allclose(coarse.astype(float), states.astype(float), atol=0.02)
    entry = load_manifest(tmp_path / "drawn")["splits"]["train"]
    assert (entry["examples"], entry["captions"]) == (3, 15)


def test_captions_in_rows_of_their_own_are_drawn_from_too(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """As Flickr8k's table has them: a row for each; however the rows are divided."""
    shutil.copytree(TESTDATA / "csv_bom", tmp_path / "corpus")
    names = sorted(path.name for path in (tmp_path / "corpus").iterdir() if path.suffix != ".csv")
    too_long = "a dog that is longer than it is high"
    said = [["a dog", too_long, "a pet", " ", "a dog"], [too_long], ["a cat", "\u200b", "two cats"]]
    table = tmp_path / "corpus" / "t.csv"
    rows = [f"{name},{caption}\n" for name, of in zip(names, said, strict=True) for caption in of]
    table.write_text("image,caption\n" + "".join(rows) + f"absent.png,a bird\n{names[0]},a fox\n")
    kept = [("a dog", "a pet", "a dog"), ("a cat", "two cats"), ("a fox",)]
    for shards in (1, 2, 3, 7, 11):
        output = tmp_path / f"{shards}"
        assert embed(table, output, "--captions", "drawn", "--shards", str(shards)) == 0
        entry = load_manifest(output)["splits"]["train"]
        found = [r for name in entry["shards"] for r in records.read_records(output / name)]
        assert [r.captions for r in found] == kept
        assert [r.id for r in found] == ["t/0", "t/6", "t/10"]
        assert entry["changed"]["further caption of its image"] == 3
        assert entry["dropped"] == {
            "caption of more than 7 tokens": 2, "empty caption": 2, "no image file": 1
        }  # fmt: skip
    capsys.readouterr()
    assert main(["data", "inspect", str(table)]) == 0
    assert (
        "captions: 3 images with 1, 1 image with 3, 1 image with 5; of" in capsys.readouterr().out
    )


def test_folder_of_tfrecords(tmp_path: Path) -> None:
    assert embed(TESTDATA / "tfrecords", tmp_path / "out") == 0
    assert len(captions(tmp_path / "out")) == 18


def test_rows_of_more_cells_than_columns_are_named(tmp_path: Path) -> None:
    assert (
        embed(TESTDATA / "csv_commas" / "t.csv", tmp_path / "out", "--damaged-files", "drop") == 0
    )
    assert captions(tmp_path / "out") == ["two blue cats", "one tree"]
    (line,) = (tmp_path / "out" / "train-00000-of-00001.dropped").read_text().splitlines()
    entry = json.loads(line)
    assert entry["reason"] == "row of more cells than columns"
    assert "t.csv, line 2: 4 cells, 2 columns" in entry["detail"]


def test_paths_that_were_tried_are_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    corpus = TESTDATA / "csv_backslash"
    assert embed(corpus / "t.csv", tmp_path / "out") == 64
    error = capsys.readouterr().err
    assert f"tried {corpus}/pics\\0.jpg" in error
    assert "it has backslashes" in error
    assert f"with / in their place '{corpus}/pics/0.jpg' exists" in error
    assert embed(TESTDATA / "csv_urls" / "t.csv", tmp_path / "urls",
                 "--image-key", "URL", "--caption-key", "TEXT") == 64  # fmt: skip
    error = capsys.readouterr().err
    assert "all 3: image is a URL" in error
    assert "https://example.org/0.jpg" in error


def test_captions_of_other_encodings_are_counted(tmp_path: Path) -> None:
    tar = TESTDATA / "tars" / "captions_not_utf8.tar"
    assert embed(tar, tmp_path / "out") == 0
    assert len(captions(tmp_path / "out")) == 1
    assert dropped(tmp_path / "out") == {"caption is not in utf-8": 4}
    lines = next((tmp_path / "out").glob("*.dropped")).read_text().splitlines()
    names = {json.loads(line)["id"].rpartition("/")[2] for line in lines}
    assert names == {"cp1252", "latin1", "gbk", "utf16"}


def test_parquet_that_is_not_utf8_names_the_row(tmp_path: Path) -> None:
    assert embed(TESTDATA / "parquet_bad_utf8" / "t.parquet", tmp_path / "out") == 0
    assert dropped(tmp_path / "out") == {"caption is not in utf-8": 1}
    listed = json.loads(next((tmp_path / "out").glob("*.dropped")).read_text())
    assert listed["id"] == "t/1"
    assert len(captions(tmp_path / "out")) == 2


def test_nothing_kept_says_why_and_blocks_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    corpus, output = TESTDATA / "folder_txt", tmp_path / "out"
    assert embed(corpus, output, "--image-size", "32") == 64
    error = capsys.readouterr().err
    assert "all 3: image is larger than 32 x 32 pixels" in error
    assert "--fit crop reduces" in error
    assert embed(corpus, output, "--image-size", "32", "--fit", "crop") == 0
    assert captions(output) == CAPTIONS


def test_missing_columns_are_listed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert embed(TESTDATA / "tsv" / "t.tsv", tmp_path / "out", "--caption-key", "words") == 64
    error = capsys.readouterr().err
    assert "no column or key 'words' of captions; it has 'filepath', 'title'" in error
    assert not (tmp_path / "out").exists()


def test_the_detected_kind_of_a_corpus_is_said() -> None:
    for where, kind in (("folder_txt", "folder"), ("tsv", "tsv"), ("hf_shards", "parquet"),
                        ("imagefolder_jsonl", "jsonl"), ("tars", "webdataset"),
                        ("tfrecords", "tfrecords")):  # fmt: skip
        corpus = open_corpus(TESTDATA / where)
        assert corpus.describe()["name"] == kind
        assert "not read" not in corpus.summary


def test_tables_beside_what_is_read_are_told(tmp_path: Path) -> None:
    shutil.copytree(TESTDATA / "hf_shards", tmp_path, dirs_exist_ok=True)
    shutil.copy(TESTDATA / "tsv" / "t.tsv", tmp_path)
    (tmp_path / "dataset_info.json").write_text("{}")
    corpus = open_corpus(tmp_path)
    assert corpus.describe()["name"] == "parquet"
    assert corpus.summary.endswith("; not read: 1 x .tsv")


def test_names_with_brackets_and_spaces_are_taken_as_they_are(tmp_path: Path) -> None:
    folder = tmp_path / "my photos [2023]"
    shutil.copytree(TESTDATA / "csv_bom", folder)
    assert len(open_corpus(folder / "t.csv")) == 3
    assert len(open_corpus(f"{folder}/*.csv")) == 3
    assert len(open_corpus([TESTDATA / "csv_bom" / "t.csv", folder / "t.csv"])) == 6


def test_a_look_at_a_corpus_before_it_is_embedded(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for absent in ("photoos", "photoos/*"):
        assert main(["data", "inspect", str(tmp_path / absent)]) == 64
        assert f"{tmp_path}/{absent}" in (said := capsys.readouterr().err)
        assert "no such file or folder as" in said or "no file or folder matches" in said
    output = tmp_path / "look.html"
    assert main(["data", "inspect", str(TESTDATA / "folder_txt"), "--output", str(output)]) == 0
    said = capsys.readouterr().out
    assert "folder_txt: 3 images, captions in files beside them" in said
    assert "3 examples looked at (all there are): 3 would be kept, 0 left out" in said
    assert "images: 2 JPEG, 1 PNG; sides of " in said
    assert " pixels, to be 64 x 64\n" in said
    options = ["--image-size", "32", "--fit", "crop"]
    assert main(["data", "inspect", str(TESTDATA / "folder_txt"), *options]) == 0
    assert "changed: 3 reduced to 32 x 32 pixels\n" in capsys.readouterr().out
    assert "captions: 3 images with 1" in said
    page = output.read_text()
    assert all(caption in page for caption in CAPTIONS)
    assert page.count("<img") == 3
    records = TESTDATA / "tfrecords" / "five_captions.tfrecord"
    assert main(["data", "inspect", str(records), "--count", "12"]) == 0
    said = capsys.readouterr().out
    assert "12 examples looked at (there are more)" in said
    assert "captions: 1 image with 2, 2 images with 5" in said
    shutil.copytree(TESTDATA / "images", tmp_path / "images")
    (tmp_path / "images" / "expected.json").unlink()
    for path in list((tmp_path / "images").iterdir()):
        path.with_suffix(".txt").write_text("four colours")
    assert main(["data", "inspect", str(tmp_path / "images"), "--image-size", "64"]) == 0
    said = capsys.readouterr().out
    for expected in (
        "changed: 2 converted from Test P3", "changed: 1 converted from Test A98",
        "left out: 1 damaged image (first png_no_iend.png: PNG: cut off before its end (IEND))",
        "larger than 64 x 64 pixels", "; --fit crop reduces and crops them",
    ):  # fmt: skip
        assert expected in said, said
