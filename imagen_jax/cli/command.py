"""What the commands share: the form of their help, and arguments that several have."""

from __future__ import annotations

import argparse
import textwrap
from collections.abc import Callable
from typing import Any

LEVELS = ("quickstart", "demo", "full", "emoji")

Commands = argparse._SubParsersAction
"""What `argparse` calls the place that commands are added to."""


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
      commands: where it is added.
      name: the word on the command line.
      summary: its line in the help of `imagen`.
      description: what it does; wrapped anew.
      examples: command lines, shown as they are.
      when_interrupted: what to tell after Ctrl-C.
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
    parser.set_defaults(when_interrupted=when_interrupted)
    return parser


def one_line(error: Exception) -> str:
    """What an error says, in one line."""
    if isinstance(error, OSError) and error.strerror and error.filename:
        return f"{error.filename}: {error.strerror}"
    return " ".join(str(error).split())


def positive(text: str) -> int:
    """Type of an argument that must be a whole number from 1."""
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"must be at least 1, got {number}")
    return number


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
        help="file with get_config(), or the name of one in configs/",
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
        help="other values for keys of the config, by their full path: seed=1",
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
    parser.add_argument("--seed", type=int, default=0, help=f"{of_what} (default: %(default)s)")


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


SETTINGS = ("guidance", "threshold", "percentile", "sampler", "time_grid", "steps", "aug_level")
"""Names of the sampling settings, as in stage.SampleConfig."""
THRESHOLDS = ("dynamic", "static", "none")


def per_stage(kind: Callable[[str], Any]) -> Callable[[str], Any]:
    """Type of an argument with one value for all stages, or STAGE=VALUE,STAGE=VALUE."""

    def parse(text: str) -> Any:
        if "=" not in text:
            return kind(text)
        pairs = [part.partition("=") for part in text.split(",")]
        if not all(name and equals and value for name, equals, value in pairs):
            raise argparse.ArgumentTypeError(
                f"must be one value, or STAGE=VALUE,STAGE=VALUE; got {text!r}"
            )
        return {name: kind(value) for name, _, value in pairs}

    parse.__name__ = kind.__name__  # what argparse calls it in its messages
    return parse


def threshold(text: str) -> str:
    """Type of an argument that must be one of THRESHOLDS."""
    if text not in THRESHOLDS:
        raise argparse.ArgumentTypeError(
            f"invalid choice: {text!r}; choose {', '.join(THRESHOLDS)}"
        )
    return text


def add_settings(parser: argparse.ArgumentParser, guidance: str = "that of the config") -> None:
    """Adds the sampling settings, which are the config's where they are not given; `guidance`: what
    its weight is then."""
    group = parser.add_argument_group(
        "settings of the stages",
        "each one value for all stages, or STAGE=VALUE,STAGE=VALUE as in --steps\n"
        "base=32,sr=8; those of the config where not given",
    )
    group.add_argument(
        "--guidance",
        type=per_stage(float),
        metavar="WEIGHT",
        help="of classifier-free guidance; 1 is off, more follows the text closer "
        f"(default: {guidance})",
    )
    group.add_argument(
        "--threshold",
        type=per_stage(threshold),
        metavar="KIND",
        help=f"{', '.join(THRESHOLDS)}: how each step's estimate is kept in the range of an image",
    )
    group.add_argument(
        "--percentile",
        type=per_stage(float),
        metavar="P",
        help="of dynamic thresholding, 0 to 100",
    )
    group.add_argument(
        "--sampler",
        type=per_stage(str),
        metavar="NAME",
        help="ddpm, ddim, dpmpp_2m, dpmpp_2m_sde or heun (it calls the network twice a step)",
    )
    group.add_argument(
        "--time-grid",
        type=per_stage(str),
        metavar="NAME",
        help="uniform_t, uniform_logsnr, karras, trailing or leading: where the steps lie; heun "
        "needs karras",
    )
    group.add_argument(
        "--steps", type=per_stage(positive), metavar="N", help="of the sampler; time grows with it"
    )
    group.add_argument(
        "--aug-level",
        type=per_stage(float),
        metavar="LEVEL",
        help="noise put on the small image before it is enlarged, 0 (none) to 1 (only noise); "
        "more invents more detail",
    )


def settings(args: argparse.Namespace) -> dict[str, Any]:
    """The sampling settings that were given."""
    return {name: getattr(args, name) for name in SETTINGS if getattr(args, name) is not None}
