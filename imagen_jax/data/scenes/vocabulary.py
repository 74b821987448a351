"""The words of the scenes source: nouns, colours, backgrounds, styles, relations, synonyms."""

from __future__ import annotations

import re
from dataclasses import dataclass
from types import MappingProxyType

from imagen_jax.data.scenes.concepts import concepts

RGB = tuple[int, int, int]


@dataclass(frozen=True)
class Noun:
    """A thing that can be drawn.

    Attributes:
      name: singular, as a caption says it.
      plural: as a caption says it after "two" or "three".
      icon: identifier of the icon in both emoji packs; None for a plain shape.
      names: all that it is called in open scenes, its name first.
      keywords: further words that belong to it alone.
      rare: see concepts.Concept.
    """

    name: str
    plural: str
    icon: str | None = None
    names: tuple[str, ...] = ()
    keywords: tuple[str, ...] = ()
    rare: bool = False

    @property
    def is_shape(self) -> bool:
        """True for a plain shape, which always has a named colour."""
        return self.icon is None


_IRREGULAR = {
    "fish": "fish", "mouse": "mice", "cactus": "cacti", "leaf": "leaves",
    "man": "men", "woman": "women",
}  # fmt: skip


_AFTER_THE_HEAD = "of|with|in|on|behind|without|from|holding|showing|facing|over|under"


def plural(name: str) -> str:
    """English plural of a noun phrase: the last word before "of", "with", ... has the ending."""
    head, *rest = re.split(rf" (?=(?:{_AFTER_THE_HEAD}) )", name, maxsplit=1)
    *front, last = head.split(" ")
    if last in _IRREGULAR:
        ending = _IRREGULAR[last]
    elif last.endswith(("s", "x", "ch", "sh")):
        ending = last + "es"
    elif last.endswith("y") and last[-2:-1] not in "aeiou":
        ending = last[:-1] + "ies"
    else:
        ending = last + "s"
    return " ".join([*front, ending, *rest])


def article(phrase: str) -> str:
    """The phrase behind "a" or "an"."""
    vowel = phrase[0] in "aeiou" and not phrase.startswith(("uni", "one", "euro"))
    return f"{'an' if vowel else 'a'} {phrase}"


SHAPE_NAMES = ("circle", "square", "triangle", "star", "heart", "diamond", "cross", "ring")

_EMOJI = {
    "cat": "cat-face", "dog": "dog-face", "fox": "fox", "panda": "panda", "bear": "bear",
    "lion": "lion", "pig": "pig-face", "cow": "cow-face", "frog": "frog", "koala": "koala",
    "monkey": "monkey-face", "mouse": "mouse-face", "owl": "owl", "fish": "fish",
    "octopus": "octopus", "crab": "crab", "turtle": "turtle", "snail": "snail",
    "ladybug": "lady-beetle", "butterfly": "butterfly", "apple": "red-apple", "pear": "pear",
    "strawberry": "strawberry", "lemon": "lemon", "mushroom": "mushroom",
    "hamburger": "hamburger", "doughnut": "doughnut", "cookie": "cookie", "pizza": "pizza",
    "tree": "deciduous-tree", "cactus": "cactus", "sunflower": "sunflower",
    "maple leaf": "maple-leaf", "clover": "four-leaf-clover", "car": "automobile", "bus": "bus",
    "rocket": "rocket", "sailboat": "sailboat", "tractor": "tractor", "house": "house",
    "castle": "castle", "moon": "crescent-moon", "umbrella": "umbrella",
    "bell": "bell", "gift": "wrapped-gift", "crown": "crown", "robot": "robot",
    "teapot": "teapot", "clock": "alarm-clock", "basketball": "basketball",
    "pumpkin": "jack-o-lantern",
}  # fmt: skip
VENDORED_EMOJI = tuple(_EMOJI)

NOUNS = {name: Noun(name, plural(name), names=(name,)) for name in SHAPE_NAMES}
NOUNS |= {name: Noun(name, plural(name), icon) for name, icon in _EMOJI.items()}
NOUNS |= {
    emoji: Noun(c.names[0], plural(c.names[0]), c.icon, c.names, c.keywords, c.rare)
    for emoji, c in concepts().items()
}
"""Every noun: shapes and vendored emoji by their names, the concepts of open scenes by their emoji,
of which the drawings have to be fetched (art.add_icons)."""

COLOURS: MappingProxyType[str, RGB] = MappingProxyType(
    {
        "red": (222, 36, 40),
        "orange": (247, 138, 22),
        "yellow": (250, 212, 30),
        "green": (42, 160, 64),
        "blue": (36, 92, 222),
        "purple": (136, 58, 182),
        "pink": (246, 112, 178),
        "black": (48, 48, 54),
        "brown": (132, 80, 44),
        "white": (246, 246, 248),
        "gray": (132, 134, 142),
    }
)
VENDORED_COLOURS = tuple(COLOURS)[:8]
"""Those of the levels without fetched emoji."""

BACKGROUNDS: MappingProxyType[str, RGB] = MappingProxyType(
    {
        "white": (250, 250, 250),
        "blue": (172, 210, 250),
        "green": (186, 232, 186),
        "pink": (252, 204, 220),
        "gray": (172, 174, 180),
        "black": (16, 17, 22),
        "yellow": (250, 236, 160),
        "purple": (214, 196, 248),
        "orange": (250, 190, 126),
        "red": (240, 120, 112),
        "beige": (236, 222, 196),
        "dark blue": (26, 40, 92),
    }
)
VENDORED_BACKGROUNDS = tuple(BACKGROUNDS)[:6]
"""Those of the levels without fetched emoji."""

STYLES: MappingProxyType[str, str] = MappingProxyType({"noto": "drawing", "fluent": "flat icon"})
"""Art style -> the words of a caption for it."""

RELATIONS: MappingProxyType[str, tuple[str, ...]] = MappingProxyType(
    {
        "left of": ("left of", "to the left of"),
        "right of": ("right of", "to the right of"),
        "above": ("above", "over"),
        "below": ("below", "under"),
    }
)
"""Relation -> its wordings; the first is its name."""

SIZES: MappingProxyType[str, tuple[str, ...]] = MappingProxyType(
    {
        "small": ("small", "little"),
        "large": ("large", "big"),
    }
)

COUNT_WORDS = {2: "two", 3: "three"}

SYNONYMS: MappingProxyType[str, tuple[str, ...]] = MappingProxyType(
    {
        "circle": ("disc", "disk"),
        "square": ("quadrangle",),
        "cat": ("kitten", "kitty"),
        "dog": ("puppy", "hound"),
        "apple": ("mcintosh",),
        "rocket": ("spaceship", "spacecraft"),
        "car": ("automobile", "sedan"),
        "house": ("cottage", "home"),
        "fish": ("trout", "goldfish"),
        "tree": ("oak",),
        "pig": ("hog", "piglet"),
        "frog": ("toad",),
        "mouse": ("rodent",),
        "bus": ("coach",),
        "sailboat": ("yacht",),
        "hamburger": ("cheeseburger",),
        "doughnut": ("donut",),
        "cookie": ("biscuit",),
        "turtle": ("tortoise",),
        "gift": ("present",),
        "clock": ("alarm",),
        "moon": ("crescent",),
        "red": ("crimson", "scarlet"),
        "yellow": ("golden",),
        "green": ("emerald",),
        "blue": ("azure", "cobalt"),
        "purple": ("violet",),
        "pink": ("magenta", "fuchsia"),
        "black": ("ebony",),
        "orange": ("tangerine",),
    }
)
"""Word of a training caption -> words of the same meaning that no training caption contains."""

UNSEEN_WORDS = frozenset(word for words in SYNONYMS.values() for word in words)
