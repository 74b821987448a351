"""Tables as sources: what may be in their columns, and what may not."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest
from corpus_files import CAPTIONS, IMAGES, write_csv, write_parquet

from imagen_jax.data.tables import Table
from imagen_jax.errors import UserError


def test_missing_columns_files_and_images(tmp_path: Path) -> None:
    write_csv(tmp_path)
    with pytest.raises(ValueError, match=r"has no columns \['text'\]; it has \['image', 'caption'"):
        Table(tmp_path / "table.csv", "image", "text")
    with pytest.raises(UserError, match="no table"):
        Table(tmp_path / "absent.csv", "image", "caption")
    with pytest.raises(ValueError, match=r"0\.png must be a \.csv or \.parquet file"):
        Table(tmp_path / "0.png", "image", "caption")
    (tmp_path / "2.png").unlink()
    images = [e.image for e in Table(tmp_path / "table.csv", "image", "caption")
              .examples_of_shard(0, 1)]  # fmt: skip
    assert [image is None for image in images] == [False, False, True, False]


def test_lines_of_csv(tmp_path: Path) -> None:
    """Blank ones are none, short ones lack what they lack; parts are the whole."""
    path = tmp_path / "table.csv"
    path.write_text("caption,image\na,0.png\n\nb\n\n\nc,2.png\n\n")
    table = Table(path, "image", "caption")
    assert len(table) == 3
    parts = [example for i in range(2) for example in table.examples_of_shard(i, 2)]
    assert [(e.id, e.caption) for e in parts] == [
        ("table/0", "a"), ("table/1", "b"), ("table/2", "c")
    ]  # fmt: skip
    path.write_bytes(b"caption,image\n\xff\xfe,0.png\n")
    with pytest.raises(ValueError, match=rf"{path} is no CSV in UTF-8"):
        Table(path, "image", "caption")


def parquet(directory: Path, image: Any, caption: Any = CAPTIONS) -> Table:
    path = directory / "table.parquet"
    pyarrow.parquet.write_table(pyarrow.table({"image": image, "caption": caption}), path)
    return Table(path, "image", "caption")


def test_images_of_hugging_face_datasets(tmp_path: Path) -> None:
    """An image is {bytes, path}, of which one may be missing."""
    (tmp_path / "2.jpg").write_bytes(IMAGES[2])
    images = [{"bytes": IMAGES[0], "path": "0.jpg"}, {"bytes": IMAGES[1], "path": None},
                {"bytes": None, "path": "2.jpg"}, None]  # fmt: skip
    found = list(parquet(tmp_path, images).examples_of_shard(0, 1))
    assert [e.image for e in found] == [*IMAGES[:3], None]
    assert [e.caption for e in found] == CAPTIONS


def test_columns_of_other_types(tmp_path: Path) -> None:
    path = tmp_path / "table.parquet"
    with pytest.raises(ValueError, match=rf"{path}: column 'caption' holds int64; captions must"):
        parquet(tmp_path, IMAGES, [1, 2, 3, 4])
    with pytest.raises(ValueError, match=rf"{path}: column 'caption' holds list<.*string"):
        parquet(tmp_path, IMAGES, [[caption] for caption in CAPTIONS])
    with pytest.raises(ValueError, match=rf"{path}: column 'image' holds double; it must hold"):
        parquet(tmp_path, [0.5, 1.5, 2.5, 3.5])
    repeated = pyarrow.array(CAPTIONS).dictionary_encode()
    found = parquet(tmp_path, IMAGES, repeated).examples_of_shard(0, 1)
    assert [example.caption for example in found] == CAPTIONS


def test_damaged_parquet_is_named(tmp_path: Path) -> None:
    write_parquet(tmp_path)
    path = tmp_path / "table.parquet"
    content = bytearray(path.read_bytes())
    table = Table(path, "image", "caption")
    content[4:40] = bytes(36)
    path.write_bytes(content)
    with pytest.raises(ValueError, match=rf"{path} is damaged"):
        list(table.examples_of_shard(0, 1))
    path.write_bytes(b"no parquet")
    with pytest.raises(ValueError, match=rf"{path} is no parquet file"):
        Table(path, "image", "caption")
