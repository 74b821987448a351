"""Text in any script: what Pillow's own font lacks is drawn with the fonts of the system.

Pillow's font has the letters of English. Whatever else a text has is looked for in the fonts that
are installed; a character that none of them has is shown without its accent, or escaped as in JSON,
and a warning says so once, with the package of fonts to install. Scripts that join their letters or
run from right to left need Raqm, which Pillow has where the system has the library FriBiDi.
"""

from __future__ import annotations

import contextlib
import math
import struct
import unicodedata
import warnings
from collections.abc import Iterable, Iterator, Mapping
from itertools import chain, groupby, islice
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image, ImageDraw, ImageFont, features

FOLDERS = (
    "~/.local/share/fonts", "~/.fonts", "~/Library/Fonts", "/usr/local/share/fonts",
    "/usr/share/fonts", "/Library/Fonts", "/System/Library/Fonts",
)  # fmt: skip
"""Folders in which Linux and macOS have their fonts; folders in them count."""
_ENDINGS = {".ttf", ".otf", ".ttc", ".otc"}
_BITMAP_SIZES = (109, 96)
"""Sizes of the images that Noto's and Apple's fonts of emoji consist of."""
_UNUSUAL = ("bold", "italic", "oblique", "light", "thin", "black", "mono", "serif", "condensed")
"""Parts of the names of fonts that are taken when no other has a character."""
_JOINERS = "\u200c\u200d\ufe0e\ufe0f"
"""Characters that join others, or choose a form of them, and are not drawn."""
_SHOWN = 8
"""Most characters that a warning names."""


class Face(NamedTuple):
    """A font at one size.

    Attributes:
      font: Pillow's font.
      characters: characters that it has, of those that were asked for.
      scale: by which what it draws is reduced; not 1 for images of emoji, which are of one size.
    """

    font: Any
    characters: frozenset[str]
    scale: float = 1.0


class Lettering:
    """Measures and draws texts, with the fonts that they need."""

    def __init__(self, texts: Iterable[str], size: int):
        """Args:
        texts: all texts that will be drawn.
        size: height of a line's letters, in pixels.

        Warns:
          UserWarning: characters that no font here has, and what to install.
        """
        asked = {c for text in texts for c in _composed(text) if c not in _JOINERS}
        asked |= set(map(chr, range(33, 127)))  # what escapes consist of
        usable = {c for c in asked if c.isspace() or (c.isprintable() and _can_be_laid_out(c))}
        font: Any = ImageFont.load_default(size)
        self._own = Face(font, frozenset(c for c in usable if c.isspace() or _draws(font, c)))
        others = _system_faces(usable - self._own.characters, usable, size)
        self._faces = [self._own, *others]
        lacking = asked.difference(*(face.characters for face in self._faces))
        self._shown_as = {c: _shown_as(c, self._own) for c in sorted(lacking)}
        self.ascent = font.getmetrics()[0]
        # "Ag" reaches above and below all other letters.
        self.line_height = round(font.getbbox("Ag")[3]) + 4
        if printable := {c: said for c, said in self._shown_as.items() if c.isprintable()}:
            _warn(printable)

    def readable(self, text: str) -> str:
        """Return a text in which what no font has is e for é, or an escape such as \\u4e2d."""
        return "".join(map(self._readable, _clusters(_composed(text))))

    def _readable(self, cluster: str) -> str:
        face = self._face_of(cluster)
        if face is self._own:
            return "".join(c for c in cluster if c not in _JOINERS)  # which it would draw as boxes
        if face is not None:
            return cluster
        return "".join(_escape(c) if c in _JOINERS else self._shown_as.get(c, c) for c in cluster)

    def length(self, text: str) -> float:
        """Width of a readable text, in pixels."""
        return sum(face.scale * face.font.getlength(part) for face, part in self._runs(text))

    def draw(self, sheet: Image.Image, at: tuple[int, int], text: str, fill: Any) -> None:
        """Draw a readable text on an RGB image, its line's upper left corner at a point."""
        x, y = float(at[0]), at[1] + self.ascent
        for face, part in self._runs(text):
            if face.scale == 1:
                ImageDraw.Draw(sheet).text(
                    (x, y), part, font=face.font, fill=fill, anchor="ls", embedded_color=True
                )
            else:
                _paste(sheet, (round(x), y), part, face)
            x += face.scale * face.font.getlength(part)

    def wrap(self, text: str, width: float) -> list[str]:
        """Break a readable text into lines of a width; a longer word is broken within."""
        lines: list[str] = []
        for word in text.split():
            joined = f"{lines[-1]} {word}" if lines else word
            if lines and self.length(joined) <= width:
                lines[-1] = joined
                continue
            parts = list(_clusters(word))
            while len(parts) > 1 and self.length("".join(parts)) > width:
                fits = next(n for n in range(len(parts) - 1, 0, -1)
                            if n == 1 or self.length("".join(parts[:n])) <= width)  # fmt: skip
                lines.append("".join(parts[:fits]))
                parts = parts[fits:]
            lines.append("".join(parts))
        return lines

    def _face_of(self, cluster: str) -> Face | None:
        """Return the first font that has all of a cluster, its joiners apart."""
        drawn = {c for c in cluster if c not in _JOINERS}
        return next((face for face in self._faces if drawn <= face.characters), None)

    def _runs(self, text: str) -> Iterator[tuple[Face, str]]:
        """Yield the parts of a text that one font has, each as long as it can be."""
        for face, parts in groupby(_clusters(text), lambda part: self._face_of(part)):
            yield face or self._own, "".join(parts)


def _composed(text: str) -> str:
    """Return a text with letters and their accents as one character, where there is one."""
    return unicodedata.normalize("NFC", text)


def _clusters(text: str) -> Iterator[str]:
    """Yield characters with what is combined with them: accents, vowel signs, joined emoji."""
    cluster = ""
    for c in text:
        combined = unicodedata.category(c).startswith("M") or c in _JOINERS
        if cluster and not (combined or cluster.endswith("\u200d") or 0x1F3FB <= ord(c) <= 0x1F3FF):
            yield cluster
            cluster = ""
        cluster += c
    if cluster:
        yield cluster


def _escape(character: str) -> str:
    number = ord(character)
    return f"\\u{number:04x}" if number < 0x10000 else f"\\U{number:08x}"


def _shown_as(character: str, own: Face) -> str:
    """Return what is shown for a character that no font has: without its marks, or an escape."""
    without_marks = "".join(
        c for c in unicodedata.normalize("NFKD", character) if not unicodedata.combining(c)
    )
    if without_marks and all(_draws(own.font, c) for c in without_marks):
        return without_marks
    return _escape(character)


def _can_be_laid_out(character: str) -> bool:
    """Can it be drawn in its place? Without Raqm, one letter stands to the right of the other."""
    from_right = unicodedata.bidirectional(character) in ("R", "AL", "AN")
    combined = unicodedata.category(character) in ("Mc", "Mn")
    return not (from_right or combined) or bool(features.check("raqm"))


def _draws(font: Any, character: str) -> bool:
    """True unless a font draws nothing, or the same as for a character that it lacks. (With a mark
    it also draws what that is put on.)"""
    drawn = _drawn(font, character)
    marks = unicodedata.category(character).startswith("M")
    return not marks and drawn.getbbox() is not None and drawn != _drawn(font, "\uffff")


def _drawn(font: Any, text: str) -> Image.Image:
    """Return a text on a transparent image just as large."""
    left, top, right, bottom = font.getbbox(text, anchor="ls")
    image = Image.new("RGBA", (max(1, math.ceil(right - left)), max(1, math.ceil(bottom - top))))
    ImageDraw.Draw(image).text((-left, -top), text, "black", font, "ls", embedded_color=True)
    return image


def _open(path: Path, size: int) -> tuple[Any, float] | None:
    """Return the first font of a file and its scale; None for one that cannot be used."""
    for at in (size, *_BITMAP_SIZES):
        try:
            return ImageFont.truetype(str(path), at), 1 if at == size else 1.2 * size / at
        except OSError:  # damaged, or images of another size
            continue
    return None


def _system_faces(wanted: set[str], asked: set[str], size: int) -> list[Face]:
    """Return fonts of the system that together have what can be had of the characters wanted, each
    with what it has of all that is asked for."""
    listed: dict[Path, set[str]] = {}
    for path in sorted(_files(), key=_rank) if wanted else ():
        listed[path] = _listed(path, asked)
        if listed[path] >= wanted:
            break
    chosen: list[Face] = []
    while wanted and listed:
        best = max(listed, key=lambda path: len(listed[path] & wanted))
        has = listed.pop(best)
        if not has & wanted:
            break
        if opened := _open(best, size):
            font, scale = opened
            marks = {c for c in has if unicodedata.category(c).startswith("M")}
            # Images of a form that Pillow does not draw are listed, too.
            has = marks | {c for c in has if c.isspace() or _draws(font, c)}
            chosen.append(Face(font, frozenset(has), scale))
            wanted = wanted - has
    return chosen


def _listed(path: Path, wanted: set[str]) -> set[str]:
    """Return which of the characters a file's first font lists in its table "cmap", of the formats
    4 and 12; none of a file that cannot be read."""
    numbers = np.array(sorted(map(ord, wanted)))
    found = np.zeros(len(numbers), bool)
    with contextlib.suppress(OSError, ValueError, KeyError, struct.error), open(path, "rb") as file:

        def read(at: int, form: str) -> tuple[Any, ...]:
            file.seek(at)
            return struct.unpack(f">{form}", file.read(struct.calcsize(f">{form}")))

        (start,) = read(12, "I") if read(0, "4s") == (b"ttcf",) else (0,)
        tables = (read(start + 12 + 16 * i, "4s4xI") for i in range(read(start + 4, "H")[0]))
        cmap = dict(tables)[b"cmap"]
        for i in range(read(cmap + 2, "H")[0]):
            at = cmap + read(cmap + 4 + 8 * i + 4, "I")[0]
            (form,) = read(at, "H")
            if form == 4:
                (twice,) = read(at + 6, "H")
                last, first = (np.array(read(at + skip, f"{twice // 2}H"))
                               for skip in (14, 16 + twice))  # fmt: skip
            elif form == 12:
                (count,) = read(at + 12, "I")
                first, last, _ = np.array(read(at + 16, f"{3 * count}I")).reshape(-1, 3).T
            else:
                continue
            segment = np.searchsorted(last, numbers).clip(max=len(last) - 1)
            found |= (first[segment] <= numbers) & (numbers <= last[segment])
    return {chr(number) for number in numbers[found]}


def _files() -> Iterator[Path]:
    folders = (Path(folder).expanduser() for folder in FOLDERS)
    paths = chain.from_iterable(folder.rglob("*") for folder in folders if folder.is_dir())
    return (path for path in paths if path.suffix.lower() in _ENDINGS)


def _rank(path: Path) -> tuple[int, str]:
    return sum(word in path.stem.lower() for word in _UNUSUAL), path.name


def _paste(sheet: Image.Image, at: tuple[int, int], text: str, face: Face) -> None:
    """Paste images of emoji on a sheet, reduced, with their baseline at a point."""
    left, top, _, _ = face.font.getbbox(text, anchor="ls")
    drawn = _drawn(face.font, text)
    size = (max(1, round(drawn.width * face.scale)), max(1, round(drawn.height * face.scale)))
    small = drawn.resize(size, Image.Resampling.LANCZOS)
    x, y = at[0] + round(left * face.scale), at[1] + round(top * face.scale)
    sheet.paste(small, (x, y), small)


def _warn(shown_as: Mapping[str, str]) -> None:
    """Warn of characters that no font has; they are shown as the values."""
    some = dict(islice(shown_as.items(), _SHOWN))
    more = " ..." * (len(shown_as) > _SHOWN)
    packages = sorted({_package(c) for c in shown_as})
    warnings.warn(
        f"no font here has {' '.join(some)}{more}: labels show {' '.join(some.values())}{more}; "
        f"install fonts that have them, such as {', '.join(packages)} (apt-get install "
        f"{' '.join(packages)})",
        stacklevel=4,
    )


def _package(character: str) -> str:
    """Return the package of Debian and Ubuntu that draws a character."""
    if not _can_be_laid_out(character):
        return "libfribidi0"
    name = unicodedata.name(character, "")
    if name.startswith(("CJK", "HIRAGANA", "KATAKANA", "HANGUL", "IDEOGRAPHIC", "FULLWIDTH")):
        return "fonts-noto-cjk"
    if ord(character) >= 0x1F000 or unicodedata.category(character) == "So":
        return "fonts-noto-color-emoji"
    return "fonts-noto-core"
