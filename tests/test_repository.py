"""Rules for the files of the repository: pins, scripts, package data."""

from __future__ import annotations

import ast
import re
import subprocess
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parent.parent
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
PINS = {path.name: path for path in sorted((ROOT / "launch").glob("pins*.txt"))}
del PINS["pins-left-out.txt"]  # rules, not pins
SCRIPTS = sorted((ROOT / "launch").glob("*.sh"))

# Written in pieces, so that this file does not hold what it forbids.
REGISTRIES = [".".join(parts) for parts in (
    ("pypi", "org"), ("pythonhosted", "org"), ("npmjs", "org"), ("npmjs", "com"),
    ("deb.debian", "org"),
)]  # fmt: skip
MACHINE_PATH = re.compile(rb"(^|[^\w.~-])/(work|farm|" + b"root" + rb")/", re.MULTILINE)


def tracked_files() -> list[Path]:
    done = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z"],
        cwd=ROOT, capture_output=True, check=False,
    )  # fmt: skip
    if done.returncode:
        pytest.skip("not a git checkout")
    return [ROOT / name for name in done.stdout.decode().split("\0") if name]


def pinned(name: str) -> dict[str, str]:
    """Versions by package, of a file in which every package has hashes and markers at most."""
    pins = {}
    for entry in re.split(r"\n(?=\S)", PINS[name].read_text().strip()):
        line, *hashes = entry.split(" \\\n    ")
        match = re.fullmatch(r"([a-z0-9][a-z0-9._-]*)==([0-9a-z.!+]+)( ; .+)?", line)
        assert match, f"launch/{name}: {line!r} must be of the form name==version"
        assert hashes, f"launch/{name}: {line} has no hash"
        assert all(re.fullmatch("--hash=sha256:[0-9a-f]{64}", text) for text in hashes), line
        assert match[1] not in pins, f"launch/{name}: {match[1]} has two versions"
        pins[canonicalize_name(match[1])] = match[2]
    return pins


def test_files_name_no_registry_and_no_path_of_one_machine() -> None:
    found = []
    for path in tracked_files():
        content = path.read_bytes() if path.is_file() else b""
        found += [f"{path}: {registry}" for registry in REGISTRIES if registry.encode() in content]
        if b"\0" not in content[:8192]:
            found += [f"{path}: {match[0]!r}" for match in MACHINE_PATH.finditer(content)]
    assert not found, "\n".join(found)


def test_pins_satisfy_pyproject() -> None:
    build, run = pinned("pins-build.txt"), pinned("pins.txt")
    project, extras = PYPROJECT["project"], PYPROJECT["project"]["optional-dependencies"]
    run |= build
    for name, wanted in (
        ("pins.txt", project["dependencies"] + extras["train"] + extras["page"]),
        ("pins-dev.txt", extras["dev"] + extras["notebook"] + extras["plan"]),
        ("pins-tpu.txt", extras["tpu"] + extras["gcs"]),
        ("pins-cuda12.txt", extras["cuda12"]),
        ("pins-cuda13.txt", extras["cuda13"]),
    ):
        pins = pinned(name)
        assert name == "pins.txt" or not pins.keys() & run.keys(), "pin a package in one place"
        for text in wanted:
            requirement = Requirement(text)
            package = canonicalize_name(requirement.name)
            if package == project["name"]:
                continue
            assert package in run | pins, f"{package} is not pinned; run launch/pins.sh"
            version = (run | pins)[package]
            assert version in requirement.specifier, f"{package}=={version} is not {text}"


def test_pins_leave_out_torch_and_beam() -> None:
    unwanted = {"torch", "sentence-transformers", "apache-beam"}
    found = {name: unwanted & pinned(name).keys() for name in PINS}
    assert not any(found.values()), found


def test_every_platform_has_one_tensorflow() -> None:
    lines = [line for line in PINS["pins.txt"].read_text().splitlines() if "==" in line]
    requirements = [Requirement(line.removesuffix(" \\")) for line in lines]
    for machine, wanted in (
        ({"sys_platform": "linux", "platform_machine": "x86_64"}, "tensorflow-cpu"),
        ({"sys_platform": "linux", "platform_machine": "aarch64"}, "tensorflow"),
        ({"sys_platform": "darwin", "platform_machine": "arm64"}, "tensorflow"),
    ):
        builds = [r for r in requirements if r.name in ("tensorflow", "tensorflow-cpu")]
        taken = [r.name for r in builds if r.marker is not None and r.marker.evaluate(machine)]
        assert taken == [wanted], machine


def test_all_packages_are_installed() -> None:
    listed = set(PYPROJECT["tool"]["setuptools"]["packages"])
    folders = {path.parent for path in (ROOT / "imagen_jax").rglob("*.py")}
    found = {".".join(folder.relative_to(ROOT).parts) for folder in folders}
    assert listed == found | {"imagen_jax.configs"}, "pyproject.toml: [tool.setuptools] packages"


def test_scripts_explain_themselves() -> None:
    found = []
    for script in SCRIPTS:
        done = subprocess.run(
            ["bash", script, "--help"], capture_output=True, text=True, check=False, timeout=600
        )
        begins = done.stdout.startswith(f"usage: bash launch/{script.name}")
        if done.returncode or done.stderr or not begins:
            found.append(f"{script.name} --help: status {done.returncode}, {done.stderr!r}, "
                         f"{done.stdout[:40]!r}")  # fmt: skip
    assert not found, "\n".join(found)


@pytest.mark.parametrize("script", ["setup.sh", "quickstart.sh"])
def test_script_refuses_an_unknown_argument(script: str) -> None:
    done = subprocess.run(
        ["bash", ROOT / "launch" / script, "--nonsense"],
        capture_output=True, text=True, check=False, timeout=600,
    )  # fmt: skip
    assert done.returncode != 0
    assert "--nonsense" in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_package_data_is_shipped() -> None:
    patterns = PYPROJECT["tool"]["setuptools"]["package-data"]["imagen_jax"]
    package = ROOT / "imagen_jax"
    shipped = {path for pattern in patterns for path in package.glob(pattern)}
    data = {
        path
        for path in tracked_files()
        if path.is_relative_to(package) and path.is_file()
        if path.suffix != ".py" and path.name != "README.md"
    }
    assert data, "there are drawings, a cascade and kernels"
    assert data <= shipped, f"no tool.setuptools.package-data for {sorted(data - shipped)}"


def test_quickstart_samples_held_out_prompts() -> None:
    from imagen_jax.data.scenes.levels import get_level
    from imagen_jax.data.scenes.sampling import held_out_pairs, held_out_triples
    from imagen_jax.data.scenes.vocabulary import RELATIONS, STYLES

    level = get_level("quickstart")
    wordings = {text: name for name, texts in RELATIONS.items() for text in texts}
    for prompt in (ROOT / "launch" / "quickstart_prompts.txt").read_text().splitlines():
        text = re.sub(r"\w+ background", "", prompt)
        nouns = [word for word in re.findall(r"\w+", text) if word in level.nouns]
        if len(nouns) == 2:
            relation = next(name for words, name in wordings.items() if f" {words} " in text)
            assert (nouns[0], relation, nouns[1]) in held_out_pairs(level), prompt
        else:
            colour = next(word for word in text.split() if word in level.colours)
            style = next(name for name, words in STYLES.items() if words in text)
            assert (nouns[0], colour, style) in held_out_triples(level), prompt


def test_no_text_is_in_the_encoding_of_the_locale() -> None:
    found = [
        f"{path.relative_to(ROOT)}:{node.lineno}"
        for path in sorted((ROOT / "imagen_jax").rglob("*.py"))
        for node in ast.walk(ast.parse(path.read_text("utf-8")))
        if isinstance(node, ast.Call)
        and isinstance(node.func, ast.Attribute)
        and (node.func.attr, len(node.args)) in {("read_text", 0), ("write_text", 1)}
        and not any(keyword.arg == "encoding" for keyword in node.keywords)
    ]
    assert not found, f"say encoding='utf-8', or read bytes for JSON: {found}"


PLAIN_ENGLISH = {
    r"\bpictures?\b": "image",
    r"\banew\b": "again, or repaint",
    r"\b(goes|go|went) on (with|from|where)\b": "resume",
    r"\bpainted again\b": "repainted",
}
"""Words that readers of the field stumble over -> the field's word."""


def prose() -> Iterator[tuple[Path, str]]:
    """Code, scripts, notebooks and pages that people read."""
    for path in tracked_files():
        read = path.suffix in (".py", ".md", ".sh", ".bash", ".ipynb", ".css")
        if read and path.is_file() and path != Path(__file__) and "assets" not in path.parts:
            yield path, path.read_text()


def test_prose_uses_the_words_of_the_field() -> None:
    found = [
        f"{path.relative_to(ROOT)}: {match[0]!r}; write {better}"
        for path, text in prose()
        for word, better in PLAIN_ENGLISH.items()
        for match in re.finditer(word, text, re.IGNORECASE)
    ]
    assert not found, "\n".join(found)


def test_docstrings_name_their_subject() -> None:
    opening = re.compile(r'^\s*r?"""(What|How|Where|Whether|Which)\b', re.MULTILINE)
    argument = re.compile(r"^ {4,}[a-z_]+(?:, [a-z_]+)*: (?:of|that|whether) .*$", re.MULTILINE)
    found = [
        f"{path.relative_to(ROOT)}: {match[0].strip()}"
        for path, text in prose()
        if path.suffix == ".py"
        for pattern in (opening, argument)
        for match in pattern.finditer(text)
    ]
    assert not found, "begin with what it is or does:\n" + "\n".join(found)


def test_the_docstring_of_a_folder_is_its_map() -> None:
    missing = []
    for init in sorted((ROOT / "imagen_jax").rglob("*/__init__.py")):
        said = ast.get_docstring(ast.parse(init.read_text())) or ""
        for path in sorted(init.parent.iterdir()):
            is_module = path.suffix == ".py" and path != init
            is_folder = (path / "__init__.py").is_file()
            if (is_module or is_folder) and not re.search(rf"\b{path.stem}\b", said):
                missing.append(str(path.relative_to(ROOT)))
    assert not missing, "to be named in the docstring of their folder:\n" + "\n".join(missing)


def test_the_index_names_every_page() -> None:
    index = (ROOT / "docs" / "README.md").read_text()
    missing = {page.name for page in (ROOT / "docs").glob("*.md")} - {"README.md"}
    missing -= set(re.findall(r"\(([\w-]+\.md)\)", index))
    assert not missing, f"docs/README.md does not name {sorted(missing)}"
