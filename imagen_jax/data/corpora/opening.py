"""The one way in: recognises what lies at a place, and opens it."""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Mapping, Sequence

from imagen_jax.buckets import SCHEME
from imagen_jax.data.choices import CORPUS_KINDS, DAMAGED_FILES
from imagen_jax.data.corpora import storage
from imagen_jax.data.corpora.captions import (
    CAPTION_KEYS,
    IMAGE_KEYS,
    check_encoding,
    find_key,
)
from imagen_jax.data.corpora.files import Files, Keys
from imagen_jax.data.corpora.folders import folder_corpus
from imagen_jax.data.corpora.rows import RowCorpus
from imagen_jax.data.corpora.tables import table_corpus
from imagen_jax.data.corpora.tars import CAPTION_SUFFIXES, IMAGE_SUFFIXES, read_tar
from imagen_jax.data.corpora.tfds import tfds_corpus
from imagen_jax.data.corpora.tfrecords import read_tfrecord
from imagen_jax.errors import UserError

Corpus = RowCorpus | Files

_SUFFIXES = (
    ("webdataset", r"\.(tar|tar\.(gz|bz2|xz)|tgz)"),
    ("tfrecords", r"\.(tfrecords?|tfrec|record)(-\d+-of-\d+)?(\.gz)?"),
    ("parquet", r"\.(parquet|pq)"),
    ("arrow", r"\.(arrow|feather|ipc)"),
    ("csv", r"\.csv(\.(gz|bz2|xz))?"),
    ("tsv", r"\.(tsv|tab)(\.(gz|bz2|xz))?"),
    ("jsonl", r"\.(jsonl|ndjson)(\.(gz|bz2|xz))?"),
    ("json", r"\.json(\.(gz|bz2|xz))?"),
    ("image", rf"\.({'|'.join(IMAGE_SUFFIXES)})"),
    ("caption", rf"\.({'|'.join(CAPTION_SUFFIXES)})"),
)
_TABLES = ("parquet", "csv", "tsv", "jsonl", "json", "arrow")
_SPLITS = {
    "train": ("train", "training"),
    "validation": ("validation", "valid", "val", "dev"),
    "test": ("test", "testing", "eval", "evaluation"),
}


def open_corpus(
    where: str | os.PathLike[str] | Sequence[str | os.PathLike[str]],
    *,
    kind: str | None = None,
    image_key: str | None = None,
    caption_key: str | None = None,
    image_folder: str | None = None,
    split: str | None = None,
    encoding: str = "utf-8",
    damaged_files: str = DAMAGED_FILES[0],
    data_dir: str | None = None,
) -> Corpus:
    """Opens captioned images of any common kind; `embed` embeds them.

    Example:
      >>> from imagen_jax import open_corpus
      >>> print(open_corpus("photos").summary)
      folder photos: 12 images, captions in files beside them

    Args:
      where: a file, a folder, a glob, a brace expression such as {00000..00999}.tar, or several of
        them; on this machine or with "://" where fsspec reaches. Or, of kind "tfds", NAME:SPLIT.
      kind: one of choices.CORPUS_KINDS; None recognises it.
      image_key: column, key, feature or suffix of images; None looks for usual ones.
      caption_key: the same of captions; a / goes into nested ones, as in "captions/text".
      image_folder: folder that image paths in tables are relative to; None is the table's.
      split: split to read if there are several; None is "train".
      encoding: encoding of captions and tables that are text.
      damaged_files: "stop" is an error at the first damage, "drop" counts what cannot be read.
      data_dir: folder of the prepared dataset, for kind "tfds".

    Returns:
      A corpus. Its attribute `summary` says what it was taken for.

    Raises:
      UserError: nothing is there (says what is odd about the name); it is of no known kind,
        ambiguous, or lacks the keys; names what is there.
    """
    check_encoding(encoding)
    for name, value, choices in (
        ("kind", kind, (None, *CORPUS_KINDS)), ("damaged_files", damaged_files, DAMAGED_FILES)
    ):  # fmt: skip
        if value not in choices:
            raise UserError(f"{name} is {value!r}; choices: {', '.join(c for c in choices if c)}")
    given = [where] if isinstance(where, str | os.PathLike) else list(where)
    wheres = [storage.plain(place) for place in given]
    if not wheres:
        raise UserError("no corpus is named: give a file, a folder or a pattern")
    if kind == "tfds" or (kind is None and len(wheres) == 1 and _is_prepared(wheres[0])):
        name = wheres[0]
        if not storage.is_folder(name) and re.search(r":[A-Za-z_]\w*$", name):
            name, _, split = name.rpartition(":")
        return tfds_corpus(name, split, image_key, caption_key, data_dir, encoding)
    places = [found for place in wheres for found in storage.expand(place)]
    folders = [place for place in places if storage.is_folder(place)]
    root = folders[0] if len(folders) == len(places) == 1 else None
    files = [
        file
        for place in places
        for file in (storage.files_below(place) if place in folders else [place])
    ]
    shown = str(given[0]) if len(given) == 1 else f"{given[0]} and {len(given) - 1} more"
    if not files:
        raise UserError(f"{shown} is an empty folder")
    storage.check_different(files)
    census, everything = _census_text(files), files
    found, files = (_recognise(shown, files, bool(folders)) if kind is None
                    else (kind, _of_kind(kind, files, bool(folders))))  # fmt: skip
    if not files:
        raise UserError(f"{shown} has no files of kind {kind!r}; it has {census}")
    unread = _corpora_beside(everything, files)
    files, note = _of_split(shown, files, root or "", split, found)
    note += f"; not read: {_census_text(unread)}" if unread else ""
    corpus: Corpus
    if found != "folder":  # whose files are checked when they are read
        for file in files:
            storage.check_file(file)
    if found == "folder":
        corpus = folder_corpus(root or _common(files), files, caption_key, encoding)
    elif found in ("webdataset", "tfrecords"):
        keys = Keys(image_key, caption_key, encoding)
        read = read_tar if found == "webdataset" else read_tfrecord
        corpus = Files(found, files, read, keys, damaged_files)
    else:
        corpus = table_corpus(
            files, found, image_key, caption_key, image_folder, encoding, damaged_files
        )
    corpus.summary += note
    return corpus


def looks_like_corpus(where: str) -> bool:
    """Is it a file that is there, a pattern, or a name of files of a known kind?"""
    return os.path.isfile(where) or storage.is_pattern(where) or _kind_by_name(where) is not None


def _common(files: Sequence[str]) -> str:
    folder = storage.common_folder(files)
    if folder is None:
        raise UserError("images at several addresses are read one address at a time")
    return folder


def _kind_by_name(name: str) -> str | None:
    """Kind of a file by its name, also "image" and "caption"."""
    for kind, pattern in _SUFFIXES:
        if re.search(pattern + r"$", name, re.IGNORECASE):
            return kind
    if re.search(r"tfrecord[^/]*-\d+-of-\d+$", name):
        return "tfrecords"
    return None


def _kind_by_content(place: str) -> str:
    """Kind of a file whose name says nothing.

    Raises:
      UserError: no known kind.
    """
    with storage.open_file(place) as file:
        start = file.read(512)
    if start.startswith(b"PAR1"):
        return "parquet"
    if start.startswith((b"ARROW1", b"\xff\xff\xff\xff")):
        return "arrow"
    if start[257:262] == b"ustar":
        return "webdataset"
    if re.search(r"\.(xls[xmb]?|ods|numbers)$", place, re.IGNORECASE):
        raise UserError(f"{place} is a workbook; save its table as CSV UTF-8 from that program")
    if start.startswith(b"PK\x03\x04"):
        raise UserError(f"{place} is a ZIP archive; unpack it first")
    if start[:1] in (b"{", b"["):
        return "json"
    if not start:
        raise UserError(f"{place} is empty")
    if storage.utf16_of(start):
        start = start.replace(b"\0", b"")
    line = start.split(b"\n")[0]
    if b"\0" not in line and any(mark in line for mark in (b",", b"\t", b";")):
        return "csv"
    found = f" (it is {storage.kind_of(start)})" if storage.kind_of(start) else ""
    raise UserError(
        f"{place} is of no known kind{found}; choose one with --kind: {', '.join(CORPUS_KINDS)}"
    )


def _recognise(shown: str, files: list[str], in_folder: bool) -> tuple[str, list[str]]:
    """(kind, its files) of files of perhaps several kinds."""
    by_kind: dict[str, list[str]] = {}
    for file in files:
        kind = _kind_by_name(file)
        if kind is None and (not in_folder):
            kind = _kind_by_content(file)
        if kind is not None:
            by_kind.setdefault(kind, []).append(file)
    if not in_folder and by_kind.get("caption") and not by_kind.get("image"):
        return _kind_by_content(by_kind["caption"][0]), by_kind["caption"]
    metadata = {
        kind: [f for f in by_kind.get(kind, []) if re.search(r"(^|/)metadata\.\w+$", f)]
        for kind in ("jsonl", "csv", "parquet")
    }
    metadata = {kind: found for kind, found in metadata.items() if found}
    if len(metadata) == 1:
        return next(iter(metadata.items()))
    if metadata:
        raise _several(shown, metadata)
    stems = {os.path.splitext(file)[0] for file in by_kind.get("image", [])}
    beside = [
        file
        for kind in ("caption", "json")
        for file in by_kind.get(kind, [])
        if os.path.splitext(file)[0] in stems
    ]
    if beside:
        return "folder", by_kind["image"] + by_kind.get("caption", []) + by_kind.get("json", [])
    annotations = [f for f in by_kind.get("json", []) if re.search(r"(^|/)captions[^/]*\.json", f)]
    if annotations:
        return "json", annotations
    for kind in ("webdataset", "tfrecords", "arrow", "parquet"):
        if kind in by_kind:
            return kind, by_kind[kind]
    tables = {kind: _rows_files(by_kind[kind]) for kind in _TABLES if kind in by_kind}
    tables = {kind: found for kind, found in tables.items() if found}
    if len(tables) == 1:
        return next(iter(tables.items()))
    if tables:
        raise _several(shown, tables)
    if "image" in by_kind and len(texts := by_kind.get("caption", [])) == 1 and _is_table(texts[0]):
        return "csv", texts
    if "image" in by_kind:
        return "folder", by_kind["image"] + by_kind.get("caption", [])
    raise UserError(
        f"{shown} is no corpus of a known kind; it has {_census_text(files)}. Known kinds: "
        f"{', '.join(CORPUS_KINDS)}"
    )


def _is_table(place: str) -> bool:
    """Does a text begin with the names of columns of images and captions?"""
    with storage.open_file(place) as file:
        line = file.readline(512).decode("utf-8", "replace").removeprefix("\ufeff")
    names = [name.strip('" \r\n') for name in re.split(r"[,;\t|]", line)]
    return bool(find_key(names, IMAGE_KEYS) and find_key(names, CAPTION_KEYS))


def _several(shown: str, tables: Mapping[str, Sequence[str]]) -> UserError:
    """The error for tables of several kinds."""
    listed = ", ".join(file for found in tables.values() for file in found[:3])
    return UserError(
        f"{shown} has several tables: {listed}; name the one that has the captions, or its kind "
        "(--kind)"
    )


def _rows_files(files: list[str]) -> list[str]:
    """Without what describes a corpus and holds none of it."""
    passed = r"(^|/)(dataset_info|state|dataset_dict|features|.*_stats|package|config)\.json$"
    return [file for file in files if not re.search(passed, file)]


def _corpora_beside(everything: Sequence[str], read: Sequence[str]) -> list[str]:
    """Files that could be a corpus by themselves, and are not what is read."""
    taken = set(read)
    others = [file for file in everything if file not in taken]
    kinds = (*_TABLES, "webdataset", "tfrecords")
    return _rows_files([file for file in others if _kind_by_name(file) in kinds])


def _of_kind(kind: str, files: list[str], in_folder: bool) -> list[str]:
    """Those of a kind that was asked for; of files that were named, all."""
    if not in_folder:
        return files
    if kind == "folder":
        return [f for f in files if _kind_by_name(f) in ("image", "caption", "json")]
    wanted = "json" if kind == "coco" else kind
    return _rows_files([file for file in files if _kind_by_name(file) == wanted])


def _census_text(places: Sequence[str]) -> str:
    suffixes = Counter(os.path.splitext(place)[1] or "no suffix" for place in places)
    return ", ".join(f"{number:,} x {suffix}" for suffix, number in suffixes.most_common(8))


def _split_of(name: str, kind: str) -> str | None:
    """The split that a path says: a folder of it, or of tables the file's name."""
    *folders, base = name.split("/")
    for split, names in _SPLITS.items():
        # Also as tables are divided for Hive: split=train
        if any(folder.lower().removeprefix("split=") in names for folder in folders):
            return split
    if kind == "folder":
        return None
    for split, names in _SPLITS.items():
        if re.search(rf"(^|[-_.])({'|'.join(names)})([-_.\d]|$)", base.lower()):
            return split
    return None


def _of_split(
    shown: str, files: list[str], root: str, split: str | None, kind: str
) -> tuple[list[str], str]:
    """(files of the split, what to say of it) where the corpus has several."""
    if len(files) < 2 or not root:
        return files, ""
    by_split: dict[str | None, list[str]] = {}
    for file in files:
        by_split.setdefault(_split_of(file[len(root) :].lstrip("/"), kind), []).append(file)
    named = [found for found in by_split if found is not None]
    if len(named) < 2:
        return files, ""
    wanted = split or "train"
    canonical = next((key for key, names in _SPLITS.items() if wanted in names), wanted)
    if canonical not in by_split:
        raise UserError(
            f"{shown} has the splits {', '.join(sorted(named))} and not {wanted!r}: choose one "
            "with --source-split"
        )
    unnamed = len(by_split.get(None, []))
    note = f"; split {canonical} of {', '.join(sorted(named))}"
    if unnamed:
        note += f", without {unnamed:,} files of no split"
    return by_split[canonical], note


def _is_prepared(place: str) -> bool:
    """Is it the folder of a prepared TensorFlow dataset?"""
    names = ("features.json", "dataset_info.json")
    if storage.is_remote(place) and not place.startswith(SCHEME):
        return False
    return all(storage.exists(storage.join(place, name)) for name in names)
