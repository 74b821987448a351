"""TFRecord files of tf.train.Examples, plain or compressed, as img2dataset writes them."""

from __future__ import annotations

from collections.abc import Iterator

from imagen_jax.data import records
from imagen_jax.data.corpora import storage
from imagen_jax.data.corpora.captions import CAPTION_KEYS, IMAGE_KEYS, find_key
from imagen_jax.data.corpora.files import DamagedFileError, Keys, OtherKindError
from imagen_jax.data.corpora.rows import CorpusExample, Row, examples_of
from imagen_jax.data.sources import Dropped

_COMPRESSIONS = {b"\x1f\x8b": "GZIP", b"\x78\x01": "ZLIB", b"\x78\x9c": "ZLIB", b"\x78\xda": "ZLIB"}


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
    with storage.local_copy(place) as path:
        dataset = tf.data.TFRecordDataset(str(path), _COMPRESSIONS.get(start[:2], ""))
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
                yield from _examples(values, number, keys)
        except tf.errors.OpError as error:
            raise DamagedFileError(place, first_line(error)) from error


def _examples(
    values: dict[str, list[bytes]], number: int, keys: Keys
) -> Iterator[CorpusExample | Dropped]:
    """Those of one record."""
    key = values.get("key") or [str(number).encode()]
    name = key[0].decode("utf-8", "backslashreplace")
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
