"""Writes assets/concepts.json, the list of emoji that the level "emoji" knows by name.

    python -m imagen_jax.data.scenes.make_concepts

Maintainers run it when a pinned package changes; the list is part of this package, so that sampling
knows all names without the drawings. It has every emoji that both icon packs draw, joined by
codepoint, but for those that nobody would ask for by name: flags, keys, clock times, buttons with
letters, and people who merely face the other way.
"""

from __future__ import annotations

import json
import re
import tempfile
from collections import defaultdict
from pathlib import Path
from typing import Any

from imagen_jax.data.scenes.art import PACKAGES, npm_files
from imagen_jax.data.scenes.concepts import CONCEPTS_FILE
from imagen_jax.data.scenes.vocabulary import UNSEEN_WORDS, plural

NAMES_PACKAGE = "emojibase-data@17.0.0"
SHORTCODES = ("emojibase", "cldr", "github", "joypixels", "iamcal")
"""Sets of short names in that package that give a concept further names."""
MOST_OWNERS = 3
"""A word that names more concepts than this names none."""
_FLAGS, _COMPONENTS, _PEOPLE, _SYMBOLS = 9, 2, 1, 8
_LEFT_OUT = re.compile(
    r"keycap|facing right|o’clock|-thirty|Japanese “|\(blood type\)|^input |^(CL|NG|P|VS) button"
)


def concepts(directory: Path) -> list[dict[str, Any]]:
    """The list.

    Args:
      directory: holds emojibase's data.json and <shortcodes>.json, and <style>-chars.json of both
        icon packs.
    """
    drawn = {}
    for style in PACKAGES:
        chars = json.loads((directory / f"{style}-chars.json").read_bytes())
        drawn[style] = {_codepoints(code): name for code, name in chars.items()}
    shortcodes = [json.loads((directory / f"{name}.json").read_bytes()) for name in SHORTCODES]
    found = []
    for emoji in json.loads((directory / "data.json").read_bytes()):
        code = _codepoints(emoji["hexcode"])
        if (
            emoji.get("group") in (None, _FLAGS, _COMPONENTS)
            or _LEFT_OUT.search(emoji["label"])
            or any(code not in icons for icons in drawn.values())
        ):
            continue
        found.append(
            {
                "emoji": emoji["emoji"],
                "icon": code,
                "icons": {style: icons[code] for style, icons in drawn.items()},
                "names": _names(emoji, shortcodes),
                "keywords": [_plain(tag) for tag in emoji.get("tags", ())],
                "rare": emoji["group"] == _SYMBOLS
                or (emoji["group"] == _PEOPLE and "gender" in emoji),
            }
        )
    _keep_telling_words(found)
    return found


def _codepoints(code: str) -> str:
    """A sequence of codepoints as both packs and emojibase can be joined by."""
    return "-".join(part for part in code.lower().split("-") if part != "fe0f")


def _plain(name: str) -> str:
    """A name as a caption says it: lower case, without marks."""
    name = name.replace("’", "'").replace("“", "").replace("”", "")
    return name.replace(": ", " with ").replace("_", " ").lower().strip()


def _names(emoji: dict[str, Any], shortcodes: list[dict[str, Any]]) -> list[str]:
    names = [_plain(emoji["label"])]
    for of_set in shortcodes:
        codes = of_set.get(emoji["hexcode"], ())
        names += [
            _plain(c).replace("-", " ") for c in ([codes] if isinstance(codes, str) else codes)
        ]
    first, *others = dict.fromkeys(names)
    return [first, *(n for n in others if re.fullmatch(r"[a-z' -]{3,}", n))]


def _keep_telling_words(found: list[dict[str, Any]]) -> None:
    """Drops further names and keywords that many concepts share, and words kept from captions."""
    owners: dict[str, set[str]] = defaultdict(set)
    for concept in found:
        for name in concept["names"]:
            owners[name].add(concept["icon"])
    tags: dict[str, set[str]] = defaultdict(set)
    for concept in found:
        for tag in concept["keywords"]:
            tags[tag].add(concept["icon"])

    def allowed(word: str) -> bool:
        return not UNSEEN_WORDS.intersection(word.split(" "))

    plurals = {plural(name) for name in owners}
    for concept in found:
        first, *others = concept["names"]
        concept["names"] = [
            first, *(n for n in others if len(owners[n]) <= MOST_OWNERS and allowed(n))
        ]  # fmt: skip
        concept["keywords"] = [
            tag for tag in dict.fromkeys(concept["keywords"])
            if len(tags[tag]) == 1 and tag not in owners and tag not in plurals
            and allowed(tag)
            and re.fullmatch(r"[a-z' -]{4,}", tag)
        ]  # fmt: skip


def main() -> None:
    """Fetches the packages and writes the list."""
    with tempfile.TemporaryDirectory() as scratch:
        directory = Path(scratch)
        names = {"data.json": "en/data.json"}
        names |= {f"{name}.json": f"en/shortcodes/{name}.json" for name in SHORTCODES}
        npm_files(NAMES_PACKAGE, names, directory)
        for style, package in PACKAGES.items():
            npm_files(package, {f"{style}-chars.json": "chars.json"}, directory)
        found = concepts(directory)
    lines = ",\n".join(json.dumps(concept, ensure_ascii=False) for concept in found)
    CONCEPTS_FILE.write_text(f"[\n{lines}\n]\n", "utf-8")
    print(f"{len(found)} concepts in {CONCEPTS_FILE}")


if __name__ == "__main__":
    main()
