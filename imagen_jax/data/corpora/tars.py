"""Tar files of WebDataset: files of one example have one name, with different suffixes.

A name ends before its last dot, or where that leaves an example without image or caption, before
its first, as WebDataset has it. Files of one example need not lie together: what found no partner
nearby is matched at the end of the tar.
"""

from __future__ import annotations

import lzma
import posixpath
import tarfile
import zlib
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field

from imagen_jax.data.corpora import storage, unfolding
from imagen_jax.data.corpora.captions import CAPTION_KEYS, at, captions_of, find_key, load_json
from imagen_jax.data.corpora.files import DamagedFileError, Keys, OtherKindError
from imagen_jax.data.corpora.rows import CorpusExample
from imagen_jax.data.images import MAX_BYTES
from imagen_jax.data.sources import Dropped
from imagen_jax.errors import UnusableError

IMAGE_SUFFIXES = (
    "jpg", "jpeg", "png", "webp", "gif", "bmp", "tif", "tiff", "avif", "heic", "heif", "jxl",
    "jfif", "jpe", "ppm", "image", "img",
)  # fmt: skip
CAPTION_SUFFIXES = ("txt", "caption", "text", "cap")
"""Suffixes that are looked for, in this order; captions are looked for in JSON after those."""
_HELD = 64
_READ = 2**20


@dataclass
class _Group:
    """Members of one name.

    Attributes:
      name: without the suffix.
      captions: (suffix, content) of each.
      images: (suffix, content or None while it is not held, member) of each.
      members: names of all.
      twice: names that came again.
    """

    name: str
    captions: list[tuple[str, bytes]] = field(default_factory=list)
    images: list[tuple[str, bytes | None, tarfile.TarInfo]] = field(default_factory=list)
    members: list[str] = field(default_factory=list)
    twice: list[str] = field(default_factory=list)

    @property
    def complete(self) -> bool:
        return bool(self.captions and self.images)


def read_tar(place: str, keys: Keys) -> Iterator[CorpusExample | Dropped]:
    """Examples of a tar file, which may be compressed by gzip, bzip2 or xz.

    Files of macOS (._NAME, __MACOSX) and folders are passed over.

    Raises:
      DamagedFileError: where the damage begins; the last example before it may be incomplete and
        is not given out.
      OSError: it may not be read.
    """
    if not storage.size(place):
        raise DamagedFileError(place, "it is empty (0 bytes)")
    with storage.open_file(place) as file:
        start = file.read(tarfile.BLOCKSIZE)
    if storage.kind_of(start) not in ("", "a tar file", "compressed by gzip"):
        raise OtherKindError(place, "tar file", start)
    reader = _Reader(keys)
    try:
        with (
            unfolding.unfolded(place) as unfolded,
            tarfile.open(  # type: ignore[call-overload]
                fileobj=unfolded, mode="r:", errors="surrogateescape"
            ) as tar,
        ):
            for member in tar:
                yield from reader.add(tar, member)
            _check_end(tar)
            yield from reader.end(tar)
    except OSError as error:
        if error.errno is not None:  # of the system, such as a missing permission
            raise OSError(error.errno, error.strerror, place) from error
        raise DamagedFileError(place, error) from error
    except (tarfile.TarError, EOFError, ValueError, zlib.error, lzma.LZMAError) as error:
        if isinstance(error, UnusableError):
            raise
        raise DamagedFileError(place, error) from error


class _Reader:
    """Puts members together to examples."""

    def __init__(self, keys: Keys):
        self._keys = keys
        self._images = IMAGE_SUFFIXES if keys.image is None else (keys.image.casefold(),)
        caption = keys.caption and keys.caption.casefold()
        self._captions = CAPTION_SUFFIXES if caption is None else (caption,)
        self._first_name = ""
        self._held: dict[str, _Group] = {}
        self._apart: dict[str, _Group] = {}
        self._given: set[int] = set()

    def add(self, tar: tarfile.TarFile, member: tarfile.TarInfo) -> Iterator[
        CorpusExample | Dropped
    ]:  # fmt: skip
        """Takes a member; gives out the examples that are complete by it."""
        path = posixpath.normpath(member.name)
        folder, base = posixpath.split(path)
        if member.isdir() or base.startswith("._") or "__MACOSX" in folder.split("/"):
            return
        if not member.isfile() or member.issparse():  # whose zeros are not in the archive
            yield Dropped(path, "member of a tar that is no file", path)
            return
        before, _, behind = base.partition(".")
        first_name = posixpath.join(folder, before)
        if behind.casefold() in (*self._images, *self._captions):
            name, suffix = first_name, behind.casefold()
        else:
            stem, dot, last = base.rpartition(".")
            name, suffix = posixpath.join(folder, stem if dot else base), last.casefold()
        if first_name != self._first_name:
            yield from self._flush()
            self._first_name = first_name
        elif len(self._held) > _HELD and name not in self._held:
            yield from self._flush()
        group = self._held.setdefault(name, _Group(name))
        if path in group.members:
            group.twice.append(path)
            return
        group.members.append(path)
        if suffix in self._images or suffix in self._captions or suffix == "json":
            if member.size > MAX_BYTES:
                yield Dropped(path, "file of more than 1 GiB", path)
                return
            content = _content(tar, member)
            if suffix in self._images:
                group.images.append((suffix, content, member))
            else:
                group.captions.append((suffix, content))

    def end(self, tar: tarfile.TarFile) -> Iterator[CorpusExample | Dropped]:
        """The rest after all members were taken."""
        yield from self._flush()
        by_base: dict[str, list[_Group]] = {}
        for group in self._apart.values():
            if group.captions and not group.images:
                by_base.setdefault(posixpath.basename(group.name), []).append(group)
        pictured = Counter(
            posixpath.basename(group.name)
            for group in self._apart.values()
            if group.images and not group.captions
        )
        for group in self._apart.values():
            if group.images and not group.captions:
                base = posixpath.basename(group.name)
                partners = by_base.get(base, [])
                if len(partners) == pictured[base] == 1:
                    group.captions, partners[0].captions = partners[0].captions, []
                    partners[0].members = []
        for group in self._apart.values():
            if group.complete:
                first = self._first_image(group)
                group.images = [
                    (suffix, _content(tar, member) if member is first[2] else None, member)
                    for suffix, _, member in group.images
                ]
                yield from self._examples(group)
                group.images.clear()
            elif group.members:
                what = "image without a caption" if group.images else "caption without an image"
                if not group.captions and not group.images:
                    what = "neither image nor caption"
                yield Dropped(group.name, what, f"there is {', '.join(group.members[:8])}")

    def _flush(self) -> Iterator[CorpusExample | Dropped]:
        groups, self._held = list(self._held.values()), {}
        lonely = [group for group in groups if not group.complete]
        if len(lonely) == len(groups) > 1:
            pictured = [group for group in lonely if group.images]
            captioned = [group for group in lonely if group.captions]
            if len(pictured) == len(captioned) == 1:  # as "0.photo.jpg" and "0.words.txt"
                joined = _Group(self._first_name, captioned[0].captions, pictured[0].images)
                joined.members = [name for group in groups for name in group.members]
                joined.twice = [name for group in groups for name in group.twice]
                groups = [joined]
        for group in groups:
            for name in group.twice:
                yield Dropped(name, "the same name twice in a tar", name)
            if group.complete:
                yield from self._examples(group)
            elif group.name in self._apart:
                yield from self._again(group)
            else:
                # Of images that wait for a caption the place is kept, not the content.
                group.images = [(suffix, None, member) for suffix, _, member in group.images]
                self._apart[group.name] = group

    def _again(self, group: _Group) -> Iterator[Dropped]:
        """Joins members with those that came earlier under this name."""
        first = self._apart[group.name]
        twice = [name for name in group.members if name in first.members]
        for name in twice:
            yield Dropped(name, "the same name twice in a tar", name)
        if len(twice) == len(group.members):
            return
        first.captions += group.captions
        first.images += [(suffix, None, member) for suffix, _, member in group.images]
        first.members += [name for name in group.members if name not in first.members]

    def _examples(self, group: _Group) -> Iterator[CorpusExample | Dropped]:
        if hash(group.name) in self._given:
            yield Dropped(group.name, "the same name twice in a tar", group.members[0])
            return
        self._given.add(hash(group.name))
        first = self._first_image(group)
        for _, _, member in group.images:
            if member is not first[2]:
                path = posixpath.normpath(member.name)
                yield Dropped(path, "further image of its name", f"{first[2].name} is taken")
        image = first[1]
        try:
            captions = self._captions_of(group)
            if not captions:
                raise UnusableError("no caption", f"there is {', '.join(group.members[:8])}")
        except UnusableError as error:
            yield Dropped(group.name, error.reason, error.detail)
            return
        for number, caption in enumerate(captions):
            name = f"{group.name}#{number}" if number else group.name
            yield CorpusExample(name, caption, image)

    def _first_image(self, group: _Group) -> tuple[str, bytes | None, tarfile.TarInfo]:
        """The image of the first of the suffixes."""
        return min(group.images, key=lambda image: self._images.index(image[0]))

    def _captions_of(self, group: _Group) -> list[str]:
        """Those of all files of captions; of JSON only where there are no others."""
        texts = [content for wanted in self._captions for suffix, content in group.captions
                 if suffix == wanted]  # fmt: skip
        if texts:
            return captions_of(texts, self._keys.encoding)
        return [
            caption
            for _, content in group.captions
            for caption in json_captions(content, self._keys.caption)
        ]


def _content(tar: tarfile.TarFile, member: tarfile.TarInfo) -> bytes:
    file = tar.extractfile(member)
    assert file is not None  # of a regular file
    return file.read()


def json_captions(content: bytes, key: str | None) -> list[str]:
    """Captions of a JSON file beside an image.

    Args:
      content: content of the file.
      key: key of the captions in it, with / into what is nested; None looks for usual ones.

    Raises:
      UnusableError: it is not JSON, or has no such key.
    """
    try:
        found = load_json(content)
    except (ValueError, RecursionError) as error:
        raise UnusableError("JSON beside an image that is damaged", str(error)[:100]) from error
    if not isinstance(found, dict):
        return captions_of(found)
    chosen = find_key(found, CAPTION_KEYS) if key is None else key
    value = None if chosen is None else at(found, chosen)
    if value is None:
        if chosen in found:
            return []
        raise UnusableError("no caption in the JSON beside an image", f"keys: {', '.join(found)}")
    return captions_of(value)


def _check_end(tar: tarfile.TarFile) -> None:
    """Raises unless the file ends where reading has: Python stops at a damaged header, too."""
    file = tar.fileobj
    assert file is not None  # of an open archive
    file.seek(tar.offset)
    end = file.read(tarfile.BLOCKSIZE)
    if len(end) < tarfile.BLOCKSIZE:
        raise tarfile.ReadError(f"cut off at byte {tar.offset}: no end-of-archive block")
    if any(end):
        raise tarfile.ReadError(f"damaged header at byte {tar.offset}")
    while end := file.read(_READ):
        if any(end):
            raise tarfile.ReadError(f"data behind the end-of-archive block at byte {tar.offset}")
