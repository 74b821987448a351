"""`imagen sample`: prompts to pictures. Imports neither TensorFlow nor seqio."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from imagen_jax.cli.command import (
    Commands,
    add_seed,
    add_settings,
    add_workdir,
    command,
    positive,
    settings,
)


def add_command(commands: Commands) -> None:
    """Adds the command to the parser of `imagen`."""
    parser = command(
        commands,
        "sample",
        "prompts -> pictures",
        """
        Makes pictures of prompts: one labelled grid and one PNG for each picture, with prompt, seed
        and settings in its metadata. Without --workdir the pretrained demo cascade is used. What is
        not said here is taken from the config of the cascade.""",
        """
        imagen sample "a drawing of a red apple left of a dog on a blue background"
        imagen sample "a drawing of a rocket above a sunflower" --per-prompt 4 --seed 7
        imagen sample --workdir runs/quickstart --prompts prompts.txt --output pictures
        imagen sample "a green star" --guidance 8 --threshold static --steps 64
            more weight on the text than usual; compare with --threshold dynamic""",
    )
    parser.add_argument("prompt", nargs="*", help="what the picture shows; quote each prompt")
    parser.add_argument("--prompts", metavar="FILE", help="more prompts, one on each line")
    add_workdir(parser)
    parser.add_argument(
        "--output",
        metavar="DIR",
        default="samples",
        help="where the pictures go (default: %(default)s)",
    )
    parser.add_argument(
        "--per-prompt",
        type=positive,
        default=1,
        metavar="N",
        help="pictures of each prompt (default: %(default)s)",
    )
    add_seed(parser, "of the noise; the same seed gives the same pictures")
    add_settings(parser)
    parser.add_argument(
        "--size",
        type=positive,
        metavar="PIXELS",
        help="side of the pictures, to be sure: an error if the cascade makes another",
    )
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> None:
    """Does what the parsed arguments say."""
    prompts = read_prompts(args.prompt, args.prompts)
    from imagen_jax.cascade import Cascade, save_samples

    cascade = Cascade.load(args.workdir, args.encoder_weights, args.vocabulary)
    samples = cascade.sample(
        prompts,
        seed=args.seed,
        per_prompt=args.per_prompt,
        size=args.size,
        **settings(args),
    )
    grid, *pictures = save_samples(samples, args.output)
    print(f"{len(pictures)} pictures in {args.output}, together in {grid}")


def read_prompts(prompts: Sequence[str], file: str | None) -> list[str]:
    """Prompts of the command line, then those of a file: one a line; blank lines do not count.

    Raises:
      ValueError: a prompt without a word, or no prompt at all.
      FileNotFoundError: there is no such file.
    """
    prompts = [prompt.strip() for prompt in prompts]
    if "" in prompts:
        raise ValueError(f"prompt {prompts.index('') + 1} is empty: say what the picture shows")
    if file is not None:
        lines = Path(file).read_text(encoding="utf-8").splitlines()
        prompts += [line.strip() for line in lines if line.strip()]
    if not prompts:
        raise ValueError('no prompt: give one or more, as in imagen sample "a red apple"')
    return prompts
