"""Corpora made by the tools that people make them with, where these are installed."""

from __future__ import annotations

import csv
import io
import sys
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from corpus_files import CAPTIONS, IMAGES, write_tfds
from PIL import Image

from imagen_jax.data.corpora import open_corpus
from imagen_jax.data.sources import Dropped

NAMES = [f"{i:09d}" for i in range(len(CAPTIONS))]


def read(where: Any, **options: Any) -> list[tuple[str, bytes]]:
    """(caption, encoded image) of all examples, of which none may be left out."""
    found = []
    for example in open_corpus(where, **options).examples_of_shard(0, 1):
        assert not isinstance(example, Dropped), example
        image: Any = example.image
        found.append((example.caption, image.read() if hasattr(image, "read") else image))
    return found


PAIRS = list(zip(CAPTIONS, IMAGES, strict=True))


@pytest.mark.parametrize(
    "writer",
    ["WebDatasetSampleWriter", "FilesSampleWriter", "ParquetSampleWriter", "TFRecordSampleWriter"],
)
def test_img2dataset(tmp_path: Path, writer: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the metadata files that it puts beside its shards."""
    img2dataset = pytest.importorskip("img2dataset.writer")
    # It registers file systems, of which this needs none.
    monkeypatch.setitem(sys.modules, "tensorflow_io", types.ModuleType("tensorflow_io"))
    pyarrow = pytest.importorskip("pyarrow")
    fields = [("key", pyarrow.string()), ("caption", pyarrow.string()), ("url", pyarrow.string()),
              ("width", pyarrow.int32())]  # fmt: skip
    made = getattr(img2dataset, writer)(0, str(tmp_path), True, 5, pyarrow.schema(fields), "jpg")
    for name, caption, image in zip(NAMES, CAPTIONS, IMAGES, strict=True):
        meta = {"key": name, "caption": caption, "url": f"https://example.org/{name}", "width": 8}
        made.write(image, name, caption, meta)
    made.close()
    (tmp_path / "00000_stats.json").write_text('{"count": 4, "successes": 4}')
    assert read(tmp_path) == PAIRS


def test_webdatasets_writer(tmp_path: Path) -> None:
    webdataset = pytest.importorskip("webdataset")
    with webdataset.ShardWriter(f"{tmp_path}/%05d.tar", maxcount=2) as writer:
        for name, caption, image in zip(NAMES, CAPTIONS, IMAGES, strict=True):
            writer.write({"__key__": name, "jpg": image, "txt": caption, "cls": 3,
                          "json": {"width": 8}, "seg.png": IMAGES[0]})  # fmt: skip
    found = open_corpus(f"{tmp_path}/{{00000..00001}}.tar").examples_of_shard(0, 1)
    examples = [e for e in found if not isinstance(e, Dropped)]
    assert [(e.caption, e.image) for e in examples] == PAIRS


def _parquet(data: Any, folder: Path) -> Path:
    (folder / "data").mkdir()
    data.to_parquet(str(folder / "data" / "train-00000-of-00001.parquet"))
    return folder


def _saved(data: Any, folder: Path) -> Path:
    data.save_to_disk(str(folder / "saved"))
    return folder / "saved"


def _two_splits(data: Any, folder: Path) -> Path:
    datasets = pytest.importorskip("datasets")
    both = datasets.DatasetDict({"train": data, "test": data.select([0])})
    both.save_to_disk(str(folder / "both"))
    return folder / "both"


@pytest.mark.parametrize("write", [_parquet, _saved, _two_splits])
def test_hugging_faces_datasets(tmp_path: Path, write: Callable[[Any, Path], Path]) -> None:
    datasets = pytest.importorskip("datasets")
    features = datasets.Features({"image": datasets.Image(), "text": datasets.Value("string")})
    rows = {"image": [{"bytes": image, "path": None} for image in IMAGES], "text": CAPTIONS}
    data = datasets.Dataset.from_dict(rows, features)
    assert read(write(data, tmp_path)) == PAIRS


@pytest.mark.parametrize("suffix", ["jsonl", "csv"])
def test_hugging_faces_imagefolder(tmp_path: Path, suffix: str) -> None:
    """The same folder by both."""
    datasets = pytest.importorskip("datasets")
    folder = tmp_path / "photos" / "train"
    folder.mkdir(parents=True)
    for name, image in zip(NAMES, IMAGES, strict=True):
        (folder / f"{name}.png").write_bytes(image)
    rows = [{"file_name": f"{n}.png", "text": c} for n, c in zip(NAMES, CAPTIONS, strict=True)]
    table = datasets.Dataset.from_list(rows)
    if suffix == "csv":
        table.to_csv(str(folder / "metadata.csv"), index=False)
    else:
        table.to_json(str(folder / "metadata.jsonl"))
    assert read(tmp_path / "photos") == PAIRS
    theirs = datasets.load_dataset(
        "imagefolder", data_dir=str(tmp_path / "photos"), cache_dir=str(tmp_path / "cache")
    )
    assert sorted(theirs["train"]["text"]) == sorted(CAPTIONS)


@pytest.mark.parametrize(
    ("encoding", "delimiter", "options"),
    [("utf-8-sig", ",", {}), ("utf-8-sig", ";", {}), ("cp1252", ";", {"encoding": "cp1252"}),
     ("utf-16", "\t", {"encoding": "utf-16"})],
)  # fmt: skip
def test_excels_forms_of_csv(
    tmp_path: Path, encoding: str, delimiter: str, options: dict[str, str]
) -> None:
    """CSV UTF-8, CSV with semicolons, CSV of Windows, and "Unicode text": all with CRLF."""
    text = io.StringIO(newline="")
    writer = csv.writer(text, "excel", delimiter=delimiter)
    writer.writerow(["Image", "Caption"])
    for name, image in zip(NAMES, IMAGES, strict=True):
        (tmp_path / f"{name}.png").write_bytes(image)
    captions = ['caf\xe9, "au" lait; hot', "two\nlines", "tab\tbed", " plain "]
    writer.writerows([f"{name}.png", c] for name, c in zip(NAMES, captions, strict=True))
    suffix = "txt" if delimiter == "\t" else "csv"
    path = tmp_path / f"t.{suffix}"
    path.write_bytes(text.getvalue().encode(encoding))
    kind = {"kind": "tsv"} if suffix == "txt" else {}
    assert read(path, **options, **kind) == list(zip(captions, IMAGES, strict=True))


def test_tensorflow_datasets_folder(tmp_path: Path) -> None:
    """Opened by its folder, which is recognised."""
    write_tfds(tmp_path)
    found = read(tmp_path / "pairs" / "1.0.0", caption_key="captions/text")
    assert sorted(caption for caption, _ in found) == sorted(CAPTIONS)
    assert {Image.open(io.BytesIO(image)).size for _, image in found} == {(8, 8)}
