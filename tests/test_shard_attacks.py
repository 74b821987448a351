"""Embeddings of somebody else: what their files say of sizes is checked before memory is taken."""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from embedding_shards import EXAMPLES, PER_FILE, batches, encode, make_example, write_shards

from imagen_jax.data import records
from imagen_jax.data.manifest import MANIFEST, manifest_fingerprint
from imagen_jax.data.records import Record, record_writer, serialize_record
from imagen_jax.data.report import write_report
from imagen_jax.errors import UserError
from imagen_jax.files import read_json, write_json
from imagen_jax.train.log import _drop_after

HUGE = [2**33, 2**50, 2**63, 2**64 - 17, 2**64 - 1]
"""Lengths that no memory holds."""
SHARD = "train-00001-of-00004.tfrecord"


def crc32c(data: bytes) -> int:
    crc = 2**32 - 1
    for byte in data:
        crc ^= byte
        for _ in range(8):
            crc = crc >> 1 ^ (0x82F63B78 if crc & 1 else 0)
    return crc ^ 2**32 - 1


def length_field(length: int) -> bytes:
    """The start of a record as TFRecord has it, with the checksum of the length."""
    said = struct.pack("<Q", length)
    crc = crc32c(said)
    return said + struct.pack("<I", ((crc >> 15 | crc << 17) + 0xA282EAD8) % 2**32)


def claim(directory: Path, place: int, length: int) -> Path:
    """A record of a shard says that it is of another length."""
    path = directory / SHARD
    at = int(records.read_offsets(path)[place])
    content = bytearray(path.read_bytes())
    content[at : at + 12] = length_field(length)
    path.write_bytes(content)
    return path


def test_the_attempt_is_a_record_but_for_its_length(tmp_path: Path) -> None:
    write_shards(tmp_path)
    offsets = records.read_offsets(tmp_path / SHARD)
    before = (tmp_path / SHARD).read_bytes()
    claim(tmp_path, 4, int(offsets[5] - offsets[4]) - records.FRAME)
    assert (tmp_path / SHARD).read_bytes() == before


@pytest.mark.slow
@pytest.mark.parametrize("length", [2**33, 2**64 - 17, 0])
def test_records_that_say_they_are_longer_than_they_are(tmp_path: Path, length: int) -> None:
    path = claim(write_shards(tmp_path), 4, length)
    said = f"{path}: record 4 is damaged or unsuitable: at byte .* it says that it has {length} byt"
    with pytest.raises(UserError, match=said):
        list(batches(tmp_path, repeat=False))
    with pytest.raises(UserError, match=said):
        batches(tmp_path).first_records(EXAMPLES)
    with pytest.raises(UserError, match=said):
        write_report(tmp_path, tmp_path / "report.html")
    # Others are read in the place of as many as are tolerated.
    assert len(list(batches(tmp_path, repeat=False, max_damaged=0.1))) == EXAMPLES // 4


@pytest.mark.parametrize("length", HUGE)
def test_readers_without_offsets_stop_before_such_a_record(tmp_path: Path, length: int) -> None:
    path = claim(write_shards(tmp_path), 4, length)
    read = []
    with pytest.raises(UserError, match=r"tfrecord: truncated record at byte \d+$"):
        read.extend(records.read_records(path))
    assert len(read) == 4
    events = path.rename(tmp_path / "events.out.tfevents.1")
    events.write_bytes(length_field(length) + bytes(100))
    _drop_after(tmp_path, 3)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("offset", "value"),
    [(5, 2**64 - 8), (5, 2**64 - 1), (5, 2**40), (5, 0), (4, 2**63), (9, 2**32)],
)
def test_offsets_that_lie(tmp_path: Path, offset: int, value: int) -> None:
    write_shards(tmp_path)
    path = records.offsets_path(tmp_path / SHARD)
    offsets = np.frombuffer(path.read_bytes(), "<u8").copy()
    offsets[offset] = value
    path.write_bytes(offsets.tobytes())
    said = rf"{path} says that record \d lies from byte \d+ to byte \d+ of a shard that has \d+$"
    with pytest.raises(UserError, match=said):
        list(batches(tmp_path, repeat=False, max_damaged=0.5))
    with pytest.raises(UserError, match=said):
        write_report(tmp_path, tmp_path / "report.html")


def test_offsets_of_other_records(tmp_path: Path) -> None:
    write_shards(tmp_path)
    path = records.offsets_path(tmp_path / SHARD)
    offsets = np.frombuffer(path.read_bytes(), "<u8").copy()
    offsets[4] += 40
    path.write_bytes(offsets.tobytes())
    said = f"{SHARD}: record [34] is damaged or unsuitable: at byte"
    with pytest.raises(UserError, match=said):
        list(batches(tmp_path, repeat=False))


@pytest.mark.slow
@pytest.mark.parametrize("size", [8 * PER_FILE + 7, 8 * PER_FILE + 1])
def test_offsets_that_are_no_whole_numbers(tmp_path: Path, size: int) -> None:
    write_shards(tmp_path)
    for path in tmp_path.glob("*.offsets"):
        path.write_bytes(path.read_bytes()[:size])
    with pytest.raises(UserError, match=rf"offsets has {size} bytes; by manifest.json it has 80"):
        batches(tmp_path)
    with pytest.raises(UserError, match=r"\.offsets has no offset of record 9: it was cut"):
        list(batches(tmp_path, host=(1, 2), repeat=False))


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["png", "jpeg", "gif"])
def test_images_that_say_they_are_large(tmp_path: Path, kind: str) -> None:
    side = 2**14 if kind == "png" else 65_500
    jpeg = encode(make_example(3)[0], "JPEG")
    at = jpeg.index(b"\xff\xc0") + 5
    image = {
        "png": b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR" + struct.pack(">II5B", side, side, 8, 2, 0, 0, 0),
        "jpeg": jpeg[:at] + struct.pack(">HH", side, side) + jpeg[at + 4 :],
        "gif": b"GIF89a" + struct.pack("<HH", side, side) + bytes(3),
    }[kind]
    write_shards(tmp_path, change={"image": image + bytes(64)})
    said = f"has an image of size {side} {side} expected 16 16"
    with pytest.raises(UserError, match="neither PNG nor JPEG" if kind == "gif" else said):
        list(batches(tmp_path, repeat=False))


def test_records_that_are_no_examples(tmp_path: Path) -> None:
    path = tmp_path / "a.tfrecord"
    _, states = make_example(0)
    good = serialize_record(Record("a", ("b",), b"", (states,)))
    for content in (
        b"",
        b"\xff" * 40,
        good[: len(good) // 2],
        good.replace(b"emb_len", b"emb_lem"),
    ):
        with record_writer(path) as writer:
            writer.write(content)
        with pytest.raises(UserError, match="no example with an image, a caption and token states"):
            list(records.read_records(path))


NOT = object()


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        ({"encoder": []}, "TypeError"),
        ({"encoder": NOT}, "KeyError: 'encoder'"),
        ({"encoder": {"name": 1}}, "encoder.name is 1, no text"),
        ({"image_size": 2**20}, r"image_size is 1048576; it must be from 1 to 16384"),
        ({"image_size": "16"}, "image_size is '16'"),
        ({"image_size": True}, "image_size is True"),
        ({"states": []}, r"states is \[\]; choices: bfloat16, int8"),
        ({"source": []}, "TypeError"),
        ({"splits": 3}, "AttributeError"),
        ({"splits.train": None}, "TypeError"),
        ({"splits.train.shards": []}, "lists of equal length"),
        ({"splits.train.shards": ["/etc/passwd", "b", "c", "d"]}, "'/etc/passwd' is no name of a"),
        ({"splits.train.shards": [["a"], "b", "c", "d"]}, r"\['a'\] is no name of a file"),
        ({"splits.train.examples": 37}, "37 examples, but 36 in its shards"),
        ({"splits.train.examples": "36"}, "'36' is no number of anything"),
        ({"splits.train.shard_examples": [-1, 10, 10, 17]}, "-1 is no number"),
        ({"splits.train.shard_bytes": [0.5, 1, 1, 1]}, "0.5 is no number"),
        ({"splits.train.sides": {"wide": 1}}, "ValueError"),
        ({"splits.train.dropped": {"x": float("nan")}}, "nan is no number"),
    ],
)
def test_manifests_of_another_form(tmp_path: Path, change: dict[str, Any], fault: str) -> None:
    path = write_shards(tmp_path) / MANIFEST
    manifest = read_json(path, "manifest")
    ((name, value),) = change.items()
    *within, last = name.split(".")
    part = manifest
    for key in within:
        part = part[key]
    if value is NOT:
        del part[last]
    else:
        part[last] = value
    manifest["fingerprint"] = manifest_fingerprint(manifest)
    write_json(path, manifest)
    with pytest.raises(UserError, match=rf"manifest\.json is no manifest of embeddings: .*{fault}"):
        batches(tmp_path)
