"""Corpora of strangers that unfold, never end, or hold less than they say: one clear error each."""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import os
import resource
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path

import pytest
from corpus_files import IMAGES

from imagen_jax.data.corpora import CorpusExample, open_corpus
from imagen_jax.errors import UserError
from imagen_jax.eval.feature_sets import FeatureSet

TOO_MUCH = "holds more than 256 MiB, which is too much for its size; decompress it first"
COMPRESS: dict[str, Callable[[bytes], bytes]] = {
    "gz": gzip.compress,
    "bz2": bz2.compress,
    "xz": lambda content: lzma.compress(content, preset=0),
}
ZEROS = bytes(2**24)


def read(path: Path) -> list[object]:
    return list(open_corpus(path).examples_of_shard(0, 1))


def bomb(path: Path, start: bytes, kind: str) -> Path:
    """Writes `start` and 2 GiB of zeros in a few megabytes: streams one after another are one."""
    compress = COMPRESS[kind]
    path.write_bytes(compress(start) + compress(ZEROS) * (2**31 // len(ZEROS)))
    assert path.stat().st_size < 4 * 2**20
    return path


def refused(path: Path, message: str) -> None:
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(UserError, match=message) as error:
        read(path)
    assert path.name in str(error.value)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss < before + 700_000  # kB


def member(name: str, kind: bytes = tarfile.REGTYPE, size: int = 2**31) -> bytes:
    info = tarfile.TarInfo(name)
    info.type, info.size = kind, size
    return info.tobuf(tarfile.GNU_FORMAT)


@pytest.mark.slow
@pytest.mark.parametrize("kind", COMPRESS)
@pytest.mark.parametrize(
    "start",
    [
        member("0.jpg"),
        member("0.txt"),
        member("0.json"),
        member("0.other"),
        member("././@LongLink", tarfile.GNUTYPE_LONGNAME),
        member("PaxHeaders/0", tarfile.XHDTYPE),
    ],
    ids=["image", "caption", "json", "neither", "a long name", "an extended header"],
)
def test_tars_that_unfold(start: bytes, kind: str, tmp_path: Path) -> None:
    refused(bomb(tmp_path / f"t.tar.{kind}", start, kind), TOO_MUCH)


@pytest.mark.slow
@pytest.mark.parametrize("kind", COMPRESS)
@pytest.mark.parametrize(
    ("name", "start"),
    [
        ("t.csv", b"image,caption\n0.png,a dog\n1.png,"),
        ("t.jsonl", b'{"image": "0.png", "caption": "a dog"}\n{"caption": "'),
        ("t.json", b'[{"image": "0.png", "caption": "a dog"}]'),
    ],
)
def test_tables_that_unfold(name: str, start: bytes, kind: str, tmp_path: Path) -> None:
    refused(bomb(tmp_path / f"{name}.{kind}", start, kind), TOO_MUCH)


@pytest.mark.slow
@pytest.mark.parametrize("wrap", [gzip.compress, zlib.compress], ids=["gzip", "zlib"])
def test_tfrecords_that_unfold(wrap: Callable[[bytes], bytes], tmp_path: Path) -> None:
    path = tmp_path / "t.tfrecord"
    path.write_bytes(wrap(ZEROS) * (2**31 // len(ZEROS)))
    refused(path, TOO_MUCH)


def test_large_corpora_that_are_compressed_are_read(tmp_path: Path) -> None:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for i in range(40):
            for name, content in ((f"{i}.png", IMAGES[0]), (f"{i}.txt", b"a dog")):
                info = tarfile.TarInfo(name)
                info.size = len(content)
                archive.addfile(info, io.BytesIO(content))
    for kind, compress in COMPRESS.items():
        path = tmp_path / f"t.tar.{kind}"
        path.write_bytes(compress(buffer.getvalue()))
        found = read(path)
        assert len(found) == 40
        assert all(isinstance(example, CorpusExample) for example in found)


def test_holes_in_a_tar_are_not_filled(tmp_path: Path) -> None:
    """GNU's sparse members: 512 bytes that say that they are a gibibyte."""
    header = bytearray(member("0.jpg", tarfile.GNUTYPE_SPARSE, 0))
    header[386:398], header[398:410] = b"00000000000\0", b"00000000000\0"
    header[483:495] = b"%011o\0" % (2**30 - 1)  # of the whole
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\0 " % sum(header)
    path = tmp_path / "t.tar"
    path.write_bytes(bytes(header) + bytes(1024))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    (found,) = read(path)
    assert "member of a tar that is no file" in str(found)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss < before + 100_000


def masked_crc(content: bytes) -> int:
    """Checksum of TFRecord."""
    crc = 0xFFFFFFFF
    for byte in content:
        crc ^= byte
        for _ in range(8):
            crc = crc >> 1 ^ (0x82F63B78 if crc & 1 else 0)
    crc ^= 0xFFFFFFFF
    return ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF


@pytest.mark.parametrize("length", [2**20, 2**31, 2**40, 2**63 - 1, 2**64 - 1, 2**64 - 5])
@pytest.mark.parametrize("wrap", [bytes, gzip.compress], ids=["plain", "gzip"])
def test_records_that_say_that_they_are_longer(
    wrap: Callable[[bytes], bytes], length: int, tmp_path: Path
) -> None:
    """With the checksum that their length has: it is the memory for it that is asked for."""
    said = struct.pack("<Q", length)
    path = tmp_path / "t.tfrecord"
    path.write_bytes(wrap(said + struct.pack("<I", masked_crc(said)) + bytes(100)))
    refused(path, "is damaged: ")


@pytest.mark.parametrize("address", [
    "https://example.org/0.jpg", "HTTP://example.org/0.jpg", "s3://bucket/0.jpg", "ftp://h/0.jpg",
    "memory://0.jpg", "simplecache::memory://0.jpg", "zip://0.jpg::memory://z.zip",
])  # fmt: skip
def test_tables_reach_no_other_storage(address: str, tmp_path: Path) -> None:
    """A table of somebody else could make this machine ask for anything."""
    (tmp_path / "t.csv").write_text(f"image,caption\n{address},a dog\n")
    (found,) = read(tmp_path / "t.csv")
    assert "image is a URL, and nothing is downloaded" in str(found)


@pytest.mark.slow
def test_features_that_unfold(tmp_path: Path) -> None:
    path = tmp_path / "features.npz"
    shape = f"{{'descr': '<f4', 'fortran_order': False, 'shape': ({2**19}, 1024), }}"
    with (
        zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive,
        archive.open("features.npy", "w", force_zip64=True) as file,
    ):
        file.write(b"\x93NUMPY\x01\x00" + struct.pack("<H", 118) + shape.encode().ljust(118))
        for _ in range(2**31 // len(ZEROS)):
            file.write(ZEROS)
    assert path.stat().st_size < 4 * 2**20
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(UserError, match=TOO_MUCH):
        FeatureSet.load(path)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss < before + 300_000  # kB


@pytest.mark.parametrize("name", ["t.tar", "t.tar.gz", "t.tfrecord", "t.csv", "t.json", "t.jsonl",
                                  "t.parquet", "t.arrow"])  # fmt: skip
def test_devices_and_pipes_are_no_corpora(name: str, tmp_path: Path) -> None:
    (tmp_path / name).symlink_to("/dev/zero")
    with pytest.raises(UserError, match="is no file"):
        read(tmp_path / name)
    (tmp_path / name).unlink()
    os.mkfifo(tmp_path / name)
    with pytest.raises(UserError, match="is no file"):
        read(tmp_path / name)
