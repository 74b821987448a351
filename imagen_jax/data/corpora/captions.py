"""Captions: their rules, the same in every kind of corpus, and their usual keys."""

from __future__ import annotations

import ast
import io
import json
import math
import re
import tokenize
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from imagen_jax.errors import UnusableError, UserError

IMAGE_KEYS = (
    "image", "jpg", "jpeg", "png", "webp", "img", "file_name", "filename", "file", "filepath",
    "file_path", "path", "image_path", "image_file", "image_name", "img_path", "image/encoded",
    "url", "image_url",
)  # fmt: skip
CAPTION_KEYS = (
    "txt", "caption", "text", "captions", "captions/text", "image/caption", "title", "description",
    "prompt", "alt_text", "sentences/raw", "raw", "sentence", "comment",
)  # fmt: skip
"""Names that are looked for, in this order, in any letters; / goes into what is nested."""
MAX_LITERAL = 100_000
_BOM = "\ufeff"
_JSON_START = re.compile(
    r"""\s*(\[\s*\{\s*["']  # a list of objects
    | \{\s*(["'])((?!\2).)*\2\s*:  # an object
    | \[\s*(["'])((?!\4).)*\4\s*(,|$)  # a list of strings
    | [\[{]\s*"[^"]*$)  # cut off within the first string
    """,
    re.DOTALL | re.VERBOSE,
)
_INVISIBLE = ("Cc", "Cf", "Zs", "Zl", "Zp")


def captions_of(value: Any, encoding: str = "utf-8") -> list[str]:
    """All captions that a cell, a feature or a file holds.

    A final line break and a byte order mark are no part of a caption. Lists give each of theirs;
    JSON (also as text) is looked into and is never itself a caption.

    Args:
      value: bytes, text, lists of these, mappings with one of CAPTION_KEYS; None or NaN is none.
      encoding: encoding of bytes.

    Raises:
      UnusableError: bytes of another encoding, or what is no text.
    """
    try:
        return _captions(value, encoding)
    except RecursionError as error:
        raise UnusableError("caption is JSON without a text", "nested too deeply") from error


def _captions(value: Any, encoding: str) -> list[str]:
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return []
    if isinstance(value, bytes):
        value = decode(value, encoding)
    if isinstance(value, str):
        text = value.removeprefix(_BOM).rstrip("\r\n")
        if any("\ud800" <= letter <= "\udfff" for letter in text):
            raise _surrogate(text, encoding)
        if "\0" in text:
            raise UnusableError("caption with NUL bytes", repr(text[:40]))
        parsed = _json(text)
        return [text] if parsed is None else _captions(parsed, encoding)
    if isinstance(value, Mapping):
        key = find_key(value, CAPTION_KEYS)
        if key is None:
            raise UnusableError("caption is JSON without a text", f"keys: {', '.join(value)}")
        return _captions(at(value, key), encoding)
    if isinstance(value, Sequence) or hasattr(value, "tolist"):
        values = value if isinstance(value, Sequence) else value.tolist()
        if values and isinstance(values, list) and all(isinstance(v, tuple) for v in values):
            return _captions(dict(values), encoding)  # Arrow's maps
        if isinstance(values, Sequence) and not isinstance(values, str | bytes):
            return [caption for part in values for caption in _captions(part, encoding)]
        return _captions(values, encoding)
    raise UnusableError("caption is no text", f"{type(value).__name__}: {str(value)[:60]}")


def decode(content: bytes, encoding: str) -> str:
    """Text from bytes, without a byte order mark.

    Raises:
      UnusableError: they are of another encoding.
    """
    try:
        return content.decode(encoding).removeprefix(_BOM)
    except UnicodeError as error:
        raise _not_text(content, encoding) from error


def says_nothing(caption: str) -> bool:
    """True of a caption without a visible letter, such as one of spaces of no width."""
    if caption.isascii():
        return not caption.strip()
    return all(unicodedata.category(letter) in _INVISIBLE for letter in caption)


def _surrogate(text: str, encoding: str) -> UnusableError:
    """The error for text with surrogates: bytes that are no text, or halves of letters."""
    try:
        return _not_text(text.encode("utf-8", "surrogateescape"), encoding)
    except UnicodeEncodeError:
        return UnusableError("caption with half a letter (a lone surrogate)", ascii(text[:40]))


def _not_text(content: bytes, encoding: str) -> UnusableError:
    hint = ""
    if content.startswith((b"\xff\xfe", b"\xfe\xff")):
        hint = ", with the byte order mark of UTF-16"
    return UnusableError(f"caption is not in {encoding}", f"{content[:40]!r}{hint}")


def check_encoding(encoding: str) -> str:
    """The name of an encoding, as Python knows it.

    Raises:
      UserError: it knows none of this name.
    """
    try:
        b"".decode(encoding)
        "".encode(encoding)
    except (LookupError, ValueError) as error:
        raise UserError(
            f"unknown encoding {encoding!r}; some are utf-8, utf-16, cp1252, latin-1, gbk, "
            "shift_jis, koi8-r"
        ) from error
    return encoding


def _json(text: str) -> Any:
    """A list or mapping that the text is in JSON or as Python writes it, or None.

    Raises:
      RecursionError: it is nested too deeply to be read.
      UnusableError: it begins as such, and cannot be read.
    """
    if not text.lstrip().startswith(("{", "[")):
        return None
    try:
        return load_json(text)
    except ValueError:
        pass
    try:  # as Python and pandas write a list: ['a dog', 'a pet']
        found = ast.literal_eval(_with_commas(text)) if len(text) < MAX_LITERAL else None
    except (ValueError, SyntaxError, RecursionError, MemoryError, TypeError, tokenize.TokenError):
        found = None
    if isinstance(found, list | dict):
        return found
    if _JSON_START.match(text):
        raise UnusableError("caption is JSON that is damaged", text[:60])
    return None


def _with_commas(text: str) -> str:
    """A list with a comma between strings: numpy writes ['a dog' 'a pet'], which Python joins."""
    parts: list[str] = []
    before = tokenize.OP
    for token in tokenize.generate_tokens(io.StringIO(text.strip()).readline):
        if token.type in (tokenize.NL, tokenize.NEWLINE):
            continue
        if before == token.type == tokenize.STRING:
            parts.append(",")
        parts.append(token.string)
        before = token.type
    return " ".join(parts)


def load_json(content: str | bytes) -> Any:
    """A value from JSON; of a key that comes with several values, a list of them.

    Raises:
      ValueError: it is not JSON.
      RecursionError: it is nested too deeply to be read.
    """
    return json.loads(content, object_pairs_hook=all_values)


def all_values(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Keys and values of a JSON object, see load_json."""
    found = dict(pairs)
    if len(found) < len(pairs):
        several: dict[str, list[Any]] = {}
        for key, value in pairs:
            several.setdefault(key, []).append(value)
        for key, values in several.items():
            found[key] = values if any(value != values[0] for value in values) else values[0]
    return found


def at(value: Any, key: str) -> Any:
    """The value at a key, or at a path of keys with / through mappings and lists; else None."""
    if isinstance(value, Mapping) and key in value:
        return value[key]
    first, slash, rest = key.partition("/")
    if isinstance(value, Mapping):
        return at(value[first], rest) if slash and first in value else None
    if isinstance(value, Sequence) and not isinstance(value, str | bytes):
        return [found for part in value if (found := at(part, key)) is not None]
    return None


def find_key(names: Iterable[str] | Mapping[str, Any], keys: Sequence[str]) -> str | None:
    """The first of the keys that is there, spelt as it is there; of any letters."""
    if not isinstance(names, Mapping):
        names = dict.fromkeys(names, "")
    spelt = {name.casefold(): name for name in reversed(list(names))}
    for key in keys:
        first, slash, rest = key.partition("/")
        if key in names:
            return key
        if key.casefold() in spelt:
            return spelt[key.casefold()]
        if slash and first in names and at(names[first], rest):
            return key
    return None


def choose_key(
    names: Mapping[str, Any], given: str | None, keys: Sequence[str], what: str, where: str
) -> str:
    """The key that was given, or the first that is there.

    Args:
      names: the keys or columns that there are, with an example of each.
      given: by the user; None looks for `keys`.
      what: "image" or "caption".
      where: the file, for messages.

    Raises:
      UserError: it is not there; lists those that are.
    """
    found = find_key(names, keys) if given is None else given
    if found is not None and (found in names or at(names, found) is not None or (
        found.partition("/")[0] in names)):  # fmt: skip
        return found
    looked = "no column or key" if given is None else f"no column or key {given!r}"
    kind = "image" if what == "image" else "caption"
    tried = "" if given is not None else f" (looked for {', '.join(keys[:8])}, ...)"
    listed = ", ".join(map(repr, list(names)[:40])) or "none"
    raise UserError(
        f"{where} has {looked} of {kind}s{tried}; it has {listed}: choose with --{kind}-key"
    )
