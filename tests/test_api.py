"""The public API: lazy, typed, and its examples run."""

from __future__ import annotations

import doctest
import inspect
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import imagen_jax
from imagen_jax import diffusion
from imagen_jax.cascade import Samples, sweep

# In the order in which examples use what the ones before them wrote.
NAMES = (
    "load_config",
    "Stage",
    "diffusion",
    "open_corpus",
    "embed",
    "train",
    "Cascade",
    "evaluate",
)


def test_the_names_are_those_of_all() -> None:
    assert {*NAMES, "__version__"} == set(imagen_jax.__all__) <= set(dir(imagen_jax))
    assert imagen_jax.__version__.count(".") == 2


def functions() -> list[tuple[str, Any]]:
    """The public functions and classes, their methods among them, by name."""
    found: dict[str, Any] = {name: getattr(imagen_jax, name) for name in NAMES}
    found |= {"Samples": Samples, "sweep": sweep}
    found |= {f"diffusion.{of}": getattr(diffusion, of) for of in diffusion.__all__}
    for name, thing in list(found.items()):
        if inspect.isclass(thing):
            methods = inspect.getmembers(thing, inspect.isroutine)
            found |= {
                f"{name}.{of}": method
                for of, method in methods
                if of[0] != "_" and str(getattr(method, "__module__", "")).startswith("imagen_jax")
            }
    return [
        (name, thing)
        for name, thing in found.items()
        if callable(thing) and not getattr(thing, "_is_protocol", False)
    ]


@pytest.mark.parametrize(("name", "function"), functions())
def test_parameters_are_named_and_typed(name: str, function: Any) -> None:
    for parameter in inspect.signature(function).parameters.values():
        # Editors complete the names of a TypedDict, too.
        named = str(parameter.annotation).startswith("Unpack[")
        assert named or parameter.kind is not parameter.VAR_KEYWORD, f"{name}(**{parameter.name})"
        if parameter.name != "self":
            assert parameter.annotation is not parameter.empty, f"{name}({parameter.name})"


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no attribute 'sample'"):
        imagen_jax.sample  # noqa: B018


def python(code: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=600
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_importing_is_fast_and_loads_nothing_heavy() -> None:
    code = """
import sys, time
start = time.process_time()
import imagen_jax
print(time.process_time() - start)
assert not {"jax", "numpy", "flax", "tensorflow", "imagen_jax.config"} & set(sys.modules)
"""
    assert min(float(python(code)) for _ in range(5)) < 0.05


@pytest.mark.slow
@pytest.mark.parametrize("first", ["", "import imagen_jax.train.loop, imagen_jax.embed.job"])
def test_train_and_embed_are_functions_whatever_was_imported_before(first: str) -> None:
    code = f"""
import imagen_jax
{first}
from imagen_jax import embed, train
assert callable(embed) and callable(train) and imagen_jax.train is train
from imagen_jax.train import state
from imagen_jax.embed.job import embed as same
assert same is embed is imagen_jax.embed and state.TrainState
"""
    python(code)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A working folder with captioned images, as the examples find it."""
    where = tmp_path_factory.mktemp("examples")
    (where / "photos").mkdir()
    rng = np.random.default_rng(0)
    for i in range(12):
        image = Image.fromarray(rng.integers(0, 255, (64, 64, 3), dtype=np.uint8))
        image.save(where / "photos" / f"{i}.png")
        (where / "photos" / f"{i}.txt").write_text(f"photo number {i}")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(where)
        yield where


class LastLines(doctest.OutputChecker):
    """Compares the end of what is printed: progress may come before it."""

    def check_output(self, want: str, got: str, optionflags: int) -> bool:
        return got.endswith(want)


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_examples_of_docstrings_run(name: str, folder: Path) -> None:
    thing = getattr(imagen_jax, name)
    text = inspect.getdoc(thing) or ""
    test = doctest.DocTestParser().get_doctest(text, {}, name, None, None)
    assert test.examples, f"{name} has no example"
    said: list[str] = []
    failed, _ = doctest.DocTestRunner(LastLines()).run(test, out=said.append)
    assert not failed, "".join(said)


README = (Path(__file__).resolve().parent.parent / "README.md").read_text()
SNIPPETS = re.findall(r"```python\n(.*?)```", README, re.DOTALL)

# Trains the snippets' configs for two steps of four images.
SHORT = """
import imagen_jax
from imagen_jax.config import load_config
from imagen_jax.train.loop import train as real_train

def short(config, stage, data, workdir):
    config = load_config(config) if isinstance(config, str) else config
    config = ConfigDict(config)
    config.stages[stage].train.update(steps=2, warmup_steps=0, batch_size=4)
    return real_train(config, stage, data, workdir)

from ml_collections import ConfigDict
imagen_jax.train = short
"""


def test_the_readme_keeps_its_promise_of_length() -> None:
    sampling, training, network, own = (
        [line for line in snippet.split("\n") if line] for snippet in SNIPPETS
    )
    assert len(sampling) == 3
    assert len(training) <= 10
    assert len(own) <= 9
    assert "class Mine(BaseNetwork):" in network


@pytest.mark.slow
def test_the_snippets_of_the_readme_run(folder: Path, tmp_path: Path) -> None:
    sampling, training, network, own = SNIPPETS
    shutil.copytree(folder / "photos", tmp_path / "photos")
    (tmp_path / "mine.py").write_text(network)
    for code in (sampling, training, own):
        (made,) = re.findall(r"\.save\(\"(.*)\"\)", code)
        script = tmp_path / f"{made}.py"
        script.write_text(SHORT + code)
        done = subprocess.run(
            [sys.executable, script], cwd=tmp_path, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr
        assert (tmp_path / made / "grid.png").is_file()


@pytest.mark.slow
def test_python_users_keep_compiled_programs_as_the_commands_do(tmp_path: Path) -> None:
    script = """
import jax
jax.jit(lambda x: x + 1)(1.0)  # before this package is asked for anything
import imagen_jax
imagen_jax.Cascade.load()
jax.jit(lambda x: x * 2)(1.0).block_until_ready()
print(jax.config.jax_compilation_cache_dir)
"""
    plain = {k: v for k, v in os.environ.items() if not k.startswith(("JAX_COMPIL", "JAX_PERS"))}

    def kept(**environment: str) -> list[Path]:
        env = plain | {"XDG_CACHE_HOME": str(tmp_path)} | environment
        command = [sys.executable, "-c", script]
        done = subprocess.run(command, env=env, text=True, stdout=subprocess.PIPE, check=True)
        return list(Path(done.stdout.split()[-1]).iterdir())

    assert kept()
    chosen = tmp_path / "chosen"
    chosen.mkdir()
    where = kept(
        JAX_COMPILATION_CACHE_DIR=str(chosen), JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS="0"
    )
    assert {path.parent for path in where} == {chosen}
