"""Shared parts of the commands: the form of their help, and arguments that several have."""

from __future__ import annotations

import argparse
import math
import textwrap
from typing import Any

LEVELS = ("quickstart", "demo", "full", "emoji")

Commands = argparse._SubParsersAction
"""Type of argparse's subparsers."""


MOST = 10**12
"""Of whatever is counted."""

Arguments = argparse._ActionsContainer
"""A parser, or a group of its arguments."""


def unindent(text: str) -> str:
    """Text of a triple-quoted string, without its indentation."""
    return textwrap.dedent(text).strip()


def command(
    commands: Commands,
    name: str,
    summary: str,
    description: str,
    examples: str,
    when_interrupted: str = "",
) -> argparse.ArgumentParser:
    """Adds a command whose help says what it does and shows examples.

    Args:
      commands: subparsers that it is added to.
      name: the word on the command line.
      summary: its line in the help of `imagen`.
      description: description; wrapped to the terminal.
      examples: command lines, shown as they are.
      when_interrupted: message after Ctrl-C.
    """
    parser = commands.add_parser(
        name,
        help=summary,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        description=textwrap.fill(unindent(description), width=80),
        epilog="examples:\n" + textwrap.indent(unindent(examples), "  "),
    )
    parser.add_argument(
        "--debug", action="store_true", default=argparse.SUPPRESS, help="show tracebacks and logs"
    )
    parser.add_argument(
        "--import",
        action="append",
        default=argparse.SUPPRESS,
        dest="modules",
        metavar="MODULE",
        help="a module of your own to import first, with a network, sampler or text encoder; may "
        "be repeated",
    )
    parser.set_defaults(when_interrupted=when_interrupted, parser=parser)
    return parser


def whole(text: str) -> int:
    """Type of an argument that must be a whole number."""
    try:
        return int(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"must be a whole number, got {text!r}") from None


def positive(text: str) -> int:
    """Type of an argument that must be a whole number from 1."""
    value = whole(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"must be at least 1, got {value}")
    if value > MOST:
        raise argparse.ArgumentTypeError(f"must be at most {MOST}, got {value}")
    return value


def seed(text: str) -> int:
    """Type of an argument that must be a whole number from 0."""
    value = whole(text)
    if value < 0:
        raise argparse.ArgumentTypeError(f"must be at least 0, got {value}")
    return value


def number(text: str) -> float:
    """Type of an argument that must be a number."""
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if math.isnan(value):
        raise argparse.ArgumentTypeError(f"must be a number, got {text!r}")
    return value


def above_zero(text: str) -> float:
    """Type of an argument that must be a finite number above 0."""
    value = number(text)
    if not 0 < value < math.inf:
        raise argparse.ArgumentTypeError(f"must be above 0, and finite, got {text!r}")
    return value


def process(text: str) -> tuple[int, int]:
    """Type of --process: (which process this is, how many there are)."""
    number, _, count = text.partition("/")
    if not (number.isdecimal() and count.isdecimal() and int(number) < int(count)):
        raise argparse.ArgumentTypeError(f"{text!r} is not ID/COUNT with ID from 0, such as 0/16")
    return int(number), int(count)


def add_process(parser: argparse.ArgumentParser, share: str) -> None:
    """Adds --process; `share`: what each process does."""
    parser.add_argument(
        "--process",
        metavar="ID/COUNT",
        type=process,
        default="0/1",
        help=f"which of several processes this is, from 0; each {share} (default: %(default)s)",
    )


def add_config(parser: argparse.ArgumentParser) -> None:
    """Adds --config, --stage and --set."""
    parser.add_argument(
        "--config",
        metavar="FILE",
        required=True,
        help="name of a config in configs/, or a file with get_config(). It is run as a program: "
        "give no file of someone whose programs you would not run",
    )
    parser.add_argument(
        "--stage",
        help="key of config.stages, such as base (32 pixels) or sr (64); needed where there are "
        "several",
    )
    parser.add_argument(
        "--set",
        metavar="KEY=VALUE",
        nargs="+",
        action="extend",
        default=[],
        dest="overrides",
        help="other values for keys of the config, by their full path: stages.base.train.seed=1",
    )


def add_scenes(parser: argparse.ArgumentParser) -> None:
    """Adds --scenes, the level of the built-in scenes."""
    parser.add_argument(
        "--scenes",
        choices=LEVELS,
        required=True,
        help="how rich the images are: what minutes on a CPU can learn, what hours can, all that "
        "comes with the package, or every emoji, which `imagen data fetch` gets first",
    )


def add_seed(parser: argparse.ArgumentParser, of_what: str) -> None:
    """Adds --seed."""
    parser.add_argument("--seed", type=seed, default=0, help=f"{of_what} (default: %(default)s)")


def add_encoder_files(parser: Arguments) -> None:
    """Adds --encoder-weights and --vocabulary, the files of a text encoder."""
    parser.add_argument(
        "--encoder-weights",
        metavar="PATH",
        help="of T5: the directory of a T5X checkpoint or of Hugging Face safetensors (default: "
        "MiniLM's, from its installed package)",
    )
    parser.add_argument(
        "--vocabulary",
        metavar="FILE",
        help="of T5: its SentencePiece model, or 'bytes' for ByT5 (default: the spiece.model "
        "beside the weights)",
    )


def add_workdir(parser: Arguments) -> None:
    """Adds --workdir of a trained cascade, and the files of its text encoder."""
    parser.add_argument(
        "--workdir",
        metavar="DIR",
        help="of `imagen train`, with all stages trained (default: the pretrained demo cascade)",
    )
    add_encoder_files(parser)


def add_lora(parser: Arguments) -> None:
    """Adds --lora."""
    parser.add_argument(
        "--lora",
        metavar="FILE[=STRENGTH]",
        nargs="+",
        type=_lora,
        action=_Lora,
        default={},
        help="changes of the weights that `imagen export --format lora` wrote; at strength 0 they "
        "change nothing, at 1 as trained (default: none; without =STRENGTH, 1)",
    )


class _Lora(argparse.Action):
    """Files and their strengths, of which none may come twice."""

    def __call__(
        self, parser: argparse.ArgumentParser, namespace: argparse.Namespace, values: Any, *_: Any
    ) -> None:
        given = dict(getattr(namespace, self.dest))
        for path, strength in values:
            if path in given:
                raise argparse.ArgumentError(self, f"{path} is given twice")
            given[path] = strength
        setattr(namespace, self.dest, given)


def _lora(text: str) -> tuple[str, float]:
    path, equals, strength = text.rpartition("=")
    if not equals:
        return text, 1.0
    try:
        return path, float(strength)
    except ValueError:
        return text, 1.0  # a name with = in it
