"""Labels in scripts that Pillow's own font lacks."""

from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np
import pytest
from fontTools.fontBuilder import FontBuilder
from fontTools.pens.ttGlyphPen import TTGlyphPen
from PIL import Image, features

from imagen_jax import lettering
from imagen_jax.grid import labelled_grid
from imagen_jax.lettering import Lettering

SIZE = 20
PROMPTS = {
    "中": ("\\u4e2d", "fonts-noto-cjk"),
    "क्षि": ("\\u0915\\u094d\\u0937\\u093f", "fonts-noto-core"),
    "قط": ("\\u0642\\u0637", "fonts-noto-core"),
    "🍎": ("\\U0001f34e", "fonts-noto-color-emoji"),
}


def write_font(path: Path, characters: str) -> None:
    """A font whose letters are squares on the baseline, and whose box for others is higher."""

    def rectangle(height: int) -> object:
        pen = TTGlyphPen(None)
        pen.moveTo((0, 0))
        for point in ((0, height), (500, height), (500, 0)):
            pen.lineTo(point)
        pen.closePath()
        return pen.glyph()

    names = [f"u{ord(c):x}" for c in characters]
    builder = FontBuilder(1000, isTTF=True)
    builder.setupGlyphOrder([".notdef", *names])
    builder.setupCharacterMap(dict(zip(map(ord, characters), names, strict=True)))
    builder.setupGlyf({".notdef": rectangle(900)} | {name: rectangle(500) for name in names})
    builder.setupHorizontalMetrics(dict.fromkeys((".notdef", *names), (500, 0)))
    builder.setupHorizontalHeader(ascent=900, descent=-100)
    builder.setupNameTable({"familyName": path.stem, "styleName": "Regular"})
    builder.setupOS2()
    builder.setupPost()
    builder.save(path)


@pytest.fixture
def fonts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The only folder of fonts."""
    monkeypatch.setattr(lettering, "FOLDERS", (str(tmp_path / "fonts"), str(tmp_path / "absent")))
    (tmp_path / "fonts" / "deep").mkdir(parents=True)
    return tmp_path / "fonts" / "deep"


def ink(letters: Lettering, text: str) -> np.ndarray:
    """The rows and columns in which a text has ink, first and last: [2, 2]."""
    sheet = Image.new("RGB", (200, 40), "white")
    letters.draw(sheet, (10, 5), text, "black")
    dark = np.argwhere(np.asarray(sheet).mean(-1) < 128)
    return np.stack([dark.min(0), dark.max(0)])


def test_latin_needs_no_other_font(fonts: Path) -> None:
    with warnings.catch_warnings(action="error"):
        letters = Lettering(["a red apple"], SIZE)
    assert letters.wrap("a red apple", letters.length("apple ")) == ["a red", "apple"]


@pytest.mark.parametrize("text", PROMPTS)
def test_an_installed_font_draws_what_the_own_one_lacks(text: str, fonts: Path) -> None:
    if not features.check("raqm") and text not in "中🍎":
        pytest.skip("this script needs Raqm")
    (fonts / "damaged.ttf").write_bytes(b"no font")
    write_font(fonts / "others.ttf", "xyz")
    write_font(fonts / "these.TTF", "".join(set(text)))
    with warnings.catch_warnings(action="error"):
        letters = Lettering([f"a {text}"], SIZE)
    assert letters.readable(text) == text
    top_left, bottom_right = ink(letters, text)
    baseline = 5 + letters.ascent
    # Squares of half the size, and not boxes of nine tenths.
    assert abs(top_left - [baseline - SIZE // 2, 10]).max() <= 1
    assert abs(bottom_right[0] - (baseline - 1)) <= 1
    before = letters.length("a ")
    assert letters.length(f"a {text}") == pytest.approx(before + letters.length(text), abs=1)


@pytest.mark.parametrize("text", PROMPTS)
def test_what_no_font_has_is_escaped_and_said_once(text: str, fonts: Path) -> None:
    escaped, package = PROMPTS[text]
    write_font(fonts / "others.ttf", "xyz")
    with pytest.warns(UserWarning, match=rf"no font here has .*install fonts.*{package}") as said:
        letters = Lettering([f"a {text}", text], SIZE)
    assert len(said) == 1
    assert letters.readable(f"a {text}!") == f"a {escaped}!"
    with pytest.warns(UserWarning, match=package):
        grid = labelled_grid(np.zeros((1, 64, 64, 3), np.uint8), [text], columns=1, scale=2)
    assert (np.asarray(grid)[144:] < 128).any()


def test_accents(fonts: Path) -> None:
    """Pillow's font has none."""
    with pytest.warns(UserWarning, match="no font here has é ﬀ: labels show e ff; "):
        letters = Lettering(["un cafe\u0301 oﬀ"], SIZE)
    assert letters.readable("cafe\u0301 oﬀ") == "cafe off"
    write_font(fonts / "latin.ttf", "é")
    letters = Lettering(["un cafe\u0301"], SIZE)
    assert letters.readable("cafe\u0301") == "café"


def test_a_font_for_each_character(fonts: Path) -> None:
    write_font(fonts / "one.ttf", "中")
    write_font(fonts / "two.ttf", "文🍎")
    with pytest.warns(UserWarning, match="no font here has 字: ") as said:
        letters = Lettering(["中文字🍎"], SIZE)
    assert len(said) == 1
    assert letters.readable("中文字🍎") == "中文\\u5b57🍎"


def test_scripts_from_the_right_need_raqm(fonts: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_font(fonts / "these.ttf", "قط中")
    monkeypatch.setattr(features, "check", lambda feature: feature != "raqm")
    with pytest.warns(UserWarning, match="apt-get install libfribidi0"):
        letters = Lettering(["قط 中"], SIZE)
    assert letters.readable("قط 中") == "\\u0642\\u0637 中"


def test_lines_break_between_characters_and_not_within(fonts: Path) -> None:
    write_font(fonts / "these.ttf", "中👩🚀🏽")
    letters = Lettering(["中", "👩🏽\u200d🚀"], SIZE)
    word = "中中👩🏽\u200d🚀中"
    lines = letters.wrap(word, 2.5 * letters.length("中"))
    assert "".join(lines) == word
    assert len(lines) >= 2
    assert any("👩🏽\u200d🚀" in line for line in lines)


def test_what_commands_a_terminal_is_escaped(fonts: Path) -> None:
    with warnings.catch_warnings(action="error"):
        letters = Lettering(["a\u202eb\x1b"], SIZE)
    assert letters.readable("a\u202eb\x1b") == "a\\u202eb\\u001b"
