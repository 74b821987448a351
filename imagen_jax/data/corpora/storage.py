"""Files by name: on this machine, at gs://, or wherever fsspec reaches (s3://, https://, hf://).

A place is a string: a path, or an address with "://". Addresses other than gs:// need the package
that fsspec asks for of their kind, such as s3fs.
"""

from __future__ import annotations

import glob
import hashlib
import os
import re
import shutil
import stat
import tempfile
import unicodedata
import urllib.parse
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from imagen_jax.buckets import SCHEME
from imagen_jax.data.corpora.bucket_files import BucketFiles
from imagen_jax.errors import UserError

_BRACES = re.compile(r"\{([^{}]*)\}")
_RANGE = re.compile(r"(\d+)\.\.(\d+)")
_RANGE_IN_BRACES = re.compile(r"\{(\d+)\.\.(\d+)\}")
_WILD = re.compile(r"[*?\[]")
MAX_EXPANDED = 10**6


def is_remote(place: str) -> bool:
    """Is it an address?"""
    return "://" in place and not place.startswith("file://")


def plain(place: str | os.PathLike[str]) -> str:
    """A place as a string; file:// becomes a path, and ~ the home directory."""
    name = os.fspath(place)
    if name.startswith("file://"):
        name = urllib.parse.unquote(name.removeprefix("file://").removeprefix("localhost"))
    if name.startswith("~") and not os.path.lexists(name):
        name = os.path.expanduser(name)
    return name


def expand(place: str) -> list[str]:
    """Files and folders that a name, a glob or a brace expression names, sorted.

    Braces are those of WebDataset and shells: {00000..00999} and {a,b}. A name that exists is taken
    literally, whatever characters it has.

    Raises:
      UserError: there are none; says what is odd about the name.
    """
    if exists(place):
        return [place]
    if any(int(first) > int(last) for first, last in _RANGE_IN_BRACES.findall(place)):
        raise UserError(f"{place} has a range that begins behind its end")
    found: list[str] = []
    missing: list[str] = []
    for number, name in enumerate(_without_braces(place)):
        if number == MAX_EXPANDED:
            raise UserError(f"{place} names more than {MAX_EXPANDED:,} files")
        matches = [name] if exists(name) else _glob(name)
        found += matches
        if not matches:
            missing.append(name)
    if missing:
        what = "file or folder matches" if _WILD.search(place) else "such file or folder as"
        more = f" (and {len(missing) - 1} more)" if len(missing) > 1 else ""
        raise UserError(f"no {what} {missing[0]!r}{more}{oddities(missing[0])}")
    return sorted(set(found))


def is_pattern(place: str) -> bool:
    """Is it a glob or a brace expression?"""
    return bool(_WILD.search(place) or _RANGE_IN_BRACES.search(place))


def _without_braces(name: str) -> Iterator[str]:
    found = _BRACES.search(name)
    numbers = found and _RANGE.fullmatch(found.group(1))
    if found is None or not (numbers or "," in found.group(1)):
        yield name
        return
    parts: Sequence[str] | Iterator[str] = found.group(1).split(",")
    if numbers:
        first, last = numbers.groups()
        parts = (f"{i:0{len(first)}d}" for i in range(int(first), int(last) + 1))
    for part in parts:
        yield from _without_braces(name[: found.start()] + part + name[found.end() :])


def _glob(pattern: str) -> list[str]:
    if is_remote(pattern):
        system, path = _system(pattern)
        return [system.unstrip_protocol(p) for p in system.glob(path)]
    found = glob.glob(pattern, recursive=True)
    if not found and "[" in pattern:  # of a name, not of a class of characters
        found = glob.glob(pattern.replace("[", "[[]"), recursive=True)
    return found


def oddities(name: str, folder: str = "") -> str:
    """Oddities of a name that was not found, as "; it ...", or ""."""
    said = []
    if "\\" in name:
        said.append("has backslashes, as on Windows")
    if re.match(r"[A-Za-z]:[\\/]", name):
        said.append("begins with a drive of Windows")
    if name.startswith("~"):
        said.append("begins with ~")
    if re.match(r"https?://", name):
        said.append("is a URL, and images are not downloaded: img2dataset does that")
    elif "://" in name and not name.startswith(SCHEME):
        said.append("is a URL")
    if name != name.strip():
        said.append("begins or ends with a space")
    if "%" in name and urllib.parse.unquote(name) != name:
        said.append("has escapes of URLs such as %20")
    if name != unicodedata.normalize("NFC", name):
        said.append("has accents apart from their letters (Unicode form NFD)")
    if not is_remote(name):
        for what, other in _alternatives(name):
            path = os.path.join(folder, other)
            if other != name and "\0" not in path and os.path.exists(path):
                said.append(f"{what} {path!r} exists")
                break
    return f"; it {', and '.join(said)}" if said else ""


def _alternatives(name: str) -> Iterator[tuple[str, str]]:
    slashes = name.replace("\\", "/")
    yield "with / in their place", slashes
    if name.startswith("~"):
        yield "with the home directory,", os.path.expanduser(name)
    yield "without spaces around it", name.strip()
    yield "unescaped,", urllib.parse.unquote(name)
    for form in ("NFC", "NFD"):
        yield f"in Unicode form {form}", unicodedata.normalize(form, name)
    yield "as a file beside the table,", os.path.basename(slashes)
    stem, suffix = os.path.splitext(name)
    for other in (suffix.lower(), suffix.upper()):
        yield "with a suffix in other letters", stem + other


def exists(place: str) -> bool:
    """Is there such a file or folder?"""
    if is_remote(place):
        system, path = _system(place)
        return bool(system.exists(path))
    return "\0" not in place and os.path.exists(place)


def is_folder(place: str) -> bool:
    """Is it a folder?"""
    if is_remote(place):
        system, path = _system(place)
        return bool(system.isdir(path))
    return os.path.isdir(place)


def files_below(folder: str) -> list[str]:
    """All files of a folder and those below it, sorted, without hidden ones.

    Hidden are names that begin with a dot (such as macOS's ._ files) and __MACOSX.

    Raises:
      OSError: a folder that may not be read.
    """
    if is_remote(folder):
        system, path = _system(folder)
        found = [system.unstrip_protocol(p) for p in system.find(path)]
        kept = (p for p in found if not any(map(_hidden, p[len(folder) :].split("/"))))
        return sorted(kept)

    def fail(error: OSError) -> None:
        raise error

    names: list[str] = []
    seen = set[tuple[int, int]]()
    for root, folders, files in os.walk(folder, onerror=fail, followlinks=True):
        status = os.stat(root)
        if (status.st_dev, status.st_ino) in seen:  # a link to a folder around it
            folders.clear()
            continue
        seen.add((status.st_dev, status.st_ino))
        folders[:] = [name for name in folders if not _hidden(name)]
        names += [os.path.join(root, name) for name in files if not _hidden(name)]
    return sorted(names)


def _hidden(name: str) -> bool:
    return name.startswith(".") or name in ("__MACOSX", "Thumbs.db", "desktop.ini")


_MAGIC = (
    (b"PK\x03\x04", "a ZIP archive or an Excel workbook"),
    (b"PAR1", "a parquet file"),
    (b"ARROW1", "an Arrow file"),
    (b"\x89HDF", "an HDF5 file"),
    (b"SQLite format 3", "an SQLite database"),
    (b"%PDF", "a PDF"),
    (b"7z\xbc\xaf", "a 7z archive"),
    (b"Rar!", "a RAR archive"),
    (b"\x28\xb5\x2f\xfd", "compressed by zstd"),
    (b"\x1f\x8b", "compressed by gzip"),
    (b"version https://git-lfs", "a Git LFS pointer in place of the file"),
    (b"\x89PNG", "an image"),
    (b"\xff\xd8\xff", "an image"),
)


def kind_of(start: bytes) -> str:
    """Name the kind of a file by its beginning, for messages; "" where it does not show."""
    if re.match(rb"\s*(<!doctype html|<html)", start, re.IGNORECASE):
        return "an HTML page"
    if start[257:262] == b"ustar":
        return "a tar file"
    found = next((kind for magic, kind in _MAGIC if start.startswith(magic)), "")
    if not found and start and not re.search(rb"[^\t\r\n\x20-\x7e]", start[:200]):
        return "text"
    return found


def size(place: str) -> int:
    """Bytes of a file."""
    if is_remote(place):
        system, path = _system(place)
        return int(system.size(path) or 0)
    return os.stat(place).st_size


def check_file(place: str) -> None:
    """Check that a place on this machine is a regular file: a link to a device may have no end.

    Raises:
      OSError: it is not there.
      UserError: it is something else.
    """
    if not is_remote(place) and not stat.S_ISREG(os.stat(place).st_mode):
        raise UserError(f"{place} is no file")


def open_file(place: str) -> IO[bytes]:
    """Opens a file for reading; it can be searched (`seek`).

    Raises:
      OSError: it is not there, or may not be read.
      UserError: as check_file.
    """
    if is_remote(place):
        system, path = _system(place)
        return system.open(path, "rb")
    check_file(place)
    return open(place, "rb")


def read_bytes(place: str) -> bytes:
    """The content of a file."""
    with open_file(place) as file:
        return file.read()


@contextmanager
def local_copy(place: str) -> Iterator[Path]:
    """A path of the file on this machine: itself, or a copy for as long as the block lasts."""
    if not is_remote(place):
        yield Path(place)
        return
    with tempfile.NamedTemporaryFile(prefix="imagen-jax-") as copy:
        with open_file(place) as file:
            shutil.copyfileobj(file, copy)
        copy.flush()
        yield Path(copy.name)


def sha256(content: bytes) -> str:
    """sha256 (hex) of bytes."""
    return hashlib.sha256(content).hexdigest()


def folder_of(place: str) -> str:
    """The folder that a file lies in."""
    return place.rpartition("/")[0] if is_remote(place) else os.path.dirname(place)


def join(folder: str, name: str) -> str:
    """A name in a folder; an absolute name or an address is itself."""
    if is_remote(name) or not folder:
        return name
    return f"{folder.rstrip('/')}/{name}" if is_remote(folder) else os.path.join(folder, name)


def common_folder(places: Sequence[str]) -> str | None:
    """The folder that holds all places; None of places in different storage."""
    folders = [folder_of(place) for place in places]
    if len({place.partition("://")[0] if is_remote(place) else "" for place in places}) > 1:
        return None
    if len({os.path.isabs(folder) for folder in folders}) > 1:
        folders = [os.path.abspath(folder) for folder in folders]
    folder = os.path.commonpath(folders) if folders else ""
    return folder.replace(":/", "://", 1) if places and is_remote(places[0]) else folder


def check_different(places: Sequence[str]) -> None:
    """Check that no place is named twice.

    Raises:
      UserError: one is; names it.
    """
    seen = set()
    for place in places:
        whole = place if is_remote(place) else os.path.abspath(place)
        if whole in seen:
            raise UserError(f"{place} is named twice: its examples would come twice")
        seen.add(whole)


def utf16_of(start: bytes) -> str:
    """The encoding of text that begins as UTF-16 or UTF-32 do, or as UTF-16 does without its byte
    order mark; else ""."""
    if start.startswith((b"\xff\xfe\0\0", b"\0\0\xfe\xff")):
        return "utf-32"
    if start.startswith((b"\xff\xfe", b"\xfe\xff")):
        return "utf-16"
    some = start[: min(len(start), 64) // 2 * 2]
    if len(some) >= 8 and not any(some[1::2]) and all(some[::2]):
        return "utf-16-le"
    return "utf-16-be" if len(some) >= 8 and not any(some[::2]) and all(some[1::2]) else ""


def names_of(places: Sequence[str]) -> list[str]:
    """Short names that tell files apart: from the folder that holds all, without a suffix."""
    folder = common_folder(places)
    names = [os.path.relpath(place, folder or ".") if folder is not None else place.lstrip("/")
             for place in places]  # fmt: skip
    stems = [os.path.splitext(name)[0] for name in names]
    return stems if len(set(stems)) == len(stems) else names


def _system(place: str) -> tuple[Any, str]:
    """(fsspec's file system, or one that stands for it, path in it)."""
    if place.startswith(SCHEME):
        return BucketFiles(), place
    try:
        import fsspec

        return fsspec.core.url_to_fs(place)
    except ImportError as error:
        raise UserError(f"{place} cannot be reached: {error}; install what it names") from error
    except ValueError as error:
        raise UserError(f"{place} cannot be reached: {error}") from error
