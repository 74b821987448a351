"""TFRecord files of tf.train.Examples, plain or compressed, as img2dataset writes them."""

from __future__ import annotations

import tempfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from imagen_jax.data import records
from imagen_jax.data.corpora import storage, unfolding
from imagen_jax.data.corpora.captions import CAPTION_KEYS, IMAGE_KEYS, find_key
from imagen_jax.data.corpora.files import DamagedFileError, Keys, OtherKindError
from imagen_jax.data.corpora.rows import CorpusExample, Row, examples_of
from imagen_jax.data.sources import Dropped

_ZLIB = (b"\x78\x01", b"\x78\x9c", b"\x78\xda")
_ANY_HEADER = 47  # of gzip or zlib
_READ = 2**14
_HEADER = 12  # of a record: its length, and the checksum of that


def read_tfrecord(place: str, keys: Keys) -> Iterator[CorpusExample | Dropped]:
    """Examples of a TFRecord file.

    Raises:
      DamagedFileError: where the damage begins.
      OSError: it may not be read.
    """
    tf = records.tensorflow()
    from google.protobuf.message import DecodeError

    from imagen_jax.data.damage import first_line

    with storage.open_file(place) as file:
        start = file.read(512)
    if not start:
        raise DamagedFileError(place, "it is empty (0 bytes)")
    if storage.kind_of(start) not in ("", "compressed by gzip"):
        raise OtherKindError(place, "TFRecord file", start)
    with _plain(place, start) as (path, fault_of_compression):
        if not fault_of_compression and not _begins_as_records(path):
            raise OtherKindError(place, "TFRecord file, or its first bytes are wrong", start)
        sound, cut = records.sound_records(path)
        fault = fault_of_compression or cut
        dataset = tf.data.TFRecordDataset(str(path)).take(sound)
        names = set[str]()
        try:
            for number, serialized in enumerate(dataset.as_numpy_iterator()):
                try:
                    features = tf.train.Example.FromString(serialized).features.feature
                except DecodeError as error:
                    if number == 0:
                        raise OtherKindError(place, "file of tf.train.Examples", b"") from error
                    fault = f"record {number} is no tf.train.Example ({error})"
                    raise DamagedFileError(place, fault) from error
                values = {name: list(f.bytes_list.value) for name, f in features.items()}
                key = values.get("key") or [str(number).encode()]
                name = key[0].decode("utf-8", "backslashreplace")
                if name in names:  # records are told apart by their place, keys may not be
                    name = f"{name}@{number}"
                names.add(name)
                yield from _examples(values, name, keys)
        except tf.errors.OpError as error:
            raise DamagedFileError(place, fault or first_line(error)) from error
        if fault:
            raise DamagedFileError(place, fault)


def _begins_as_records(path: Path) -> bool:
    """Has the length of the first record its checksum? True of files that are too short for it."""
    with open(path, "rb") as file:
        header = file.read(_HEADER)
    if len(header) < _HEADER:
        return True
    crc = 0xFFFFFFFF  # CRC-32C, masked as TFRecord does
    for byte in header[:8]:
        crc ^= byte
        for _ in range(8):
            crc = crc >> 1 ^ (0x82F63B78 if crc & 1 else 0)
    crc ^= 0xFFFFFFFF
    masked = ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF
    return masked == int.from_bytes(header[8:], "little")


@contextmanager
def _plain(place: str, start: bytes) -> Iterator[tuple[Path, str]]:
    """(path of the records as they are, on this machine; what is wrong with their compression).

    TensorFlow decompresses, too, but takes a stream that is cut off for its end.
    """
    if start[:2] != b"\x1f\x8b" and start[:2] not in _ZLIB:
        with storage.local_copy(place) as path:
            yield path, ""
        return
    fault = ""
    with tempfile.NamedTemporaryFile(prefix="imagen-jax-") as copy:
        with storage.open_file(place) as file:
            try:
                for part in _decompressed(file, unfolding.growth_limit(storage.size(place))):
                    copy.write(part)
            except zlib.error as error:
                fault = str(error)
        copy.flush()
        yield Path(copy.name), fault


def _decompressed(file: IO[bytes], limit: int) -> Iterator[bytes]:
    """Content of gzip, of one member or several, or of zlib.

    Raises:
      zlib.error: damage, or more bytes than the limit; what comes before has been given out.
    """
    decompressor = zlib.decompressobj(_ANY_HEADER)
    left = limit
    while part := file.read(_READ):
        while part:
            plain = decompressor.decompress(part)
            left -= len(plain)
            if left < 0:
                raise zlib.error(unfolding.too_much(limit))
            yield plain
            part = decompressor.unused_data
            if decompressor.eof and part:
                decompressor = zlib.decompressobj(_ANY_HEADER)
    if not decompressor.eof:
        raise zlib.error("cut off before the end of the compression")


def _examples(
    values: dict[str, list[bytes]], name: str, keys: Keys
) -> Iterator[CorpusExample | Dropped]:
    """Those of one record."""
    there = {key: value for key, value in values.items() if value}
    found: list[list[bytes]] = []
    for what, given, usual in (
        ("image", keys.image, IMAGE_KEYS), ("caption", keys.caption, CAPTION_KEYS)
    ):  # fmt: skip
        chosen = find_key(there, usual) if given is None else given
        if chosen not in there:
            looked = "" if given is None else f" {given!r}"
            listed = ", ".join(sorted(values)) or "none"
            yield Dropped(name, f"no {what}{looked}", f"features of bytes: {listed}")
            return
        found.append(there[chosen])
    yield from examples_of(Row(name, found[0], found[1], ""), keys.encoding)
