"""`imagen evaluate`: how well pictures match their prompts."""

from __future__ import annotations

import argparse

from imagen_jax.cli.command import (
    Commands,
    add_seed,
    add_settings,
    add_workdir,
    command,
    positive,
    settings,
)

SPLITS = ("train", "heldout", "unseen")


def add_command(commands: Commands) -> None:
    """Adds the command to the parser of `imagen`."""
    parser = command(
        commands,
        "evaluate",
        "how often a cascade's pictures show what the prompts say",
        """
        Samples captions whose layout is known, finds the objects in the pictures by template
        matching, and compares: object, colour, count, relation, style, background and all at once,
        for compositions seen in training and held out from it. Real pictures (the ceiling) and
        shuffled captions (the floor) are scored beside them.""",
        """
        imagen evaluate --workdir runs/quickstart --output runs/quickstart/evaluation
        imagen evaluate --count 256
        imagen evaluate --splits unseen --guidance 5
            crimson discs and puppies: what the frozen language model knows of them""",
    )
    add_workdir(parser)
    parser.add_argument(
        "--count",
        type=positive,
        default=64,
        help="pictures of each split and number of objects (default: %(default)s)",
    )
    parser.add_argument(
        "--splits",
        nargs="+",
        choices=SPLITS,
        default=["train", "heldout"],
        help="compositions seen in training, kept from it, or said in words that training never "
        "saw (default: train heldout)",
    )
    add_seed(parser, "of captions and noise")
    add_settings(parser)
    parser.add_argument(
        "--output",
        metavar="DIR",
        default="evaluation",
        help="where the scores and pictures go (default: %(default)s)",
    )
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> None:
    """Does what the parsed arguments say."""
    from imagen_jax.eval.run import evaluate

    evaluate(
        workdir=args.workdir,
        count=args.count,
        splits=tuple(args.splits),
        seed=args.seed,
        output_dir=args.output,
        encoder_weights=args.encoder_weights,
        vocabulary=args.vocabulary,
        **settings(args),
    )
