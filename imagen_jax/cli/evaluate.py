"""`imagen evaluate`: how well images match their prompts, and how near they come to real ones."""

from __future__ import annotations

import argparse

from imagen_jax.cli import evaluate_features, evaluate_protocols
from imagen_jax.cli.command import Commands, add_seed, add_workdir, command, positive
from imagen_jax.cli.settings import add_settings, settings

SPLITS = ("train", "heldout", "unseen")


def add_command(commands: Commands) -> None:
    """Adds the command to the parser of `imagen`."""
    parser = command(
        commands,
        "evaluate",
        "how well a cascade's images match prompts, and how near they come to real ones",
        """
        Protocols that sample a cascade and measure what comes out (scenes, prompts, coco, sweep),
        votes of people on two cascades (vote, votes), and distances between images from anywhere
        (features, compare). docs/evaluation.md says what every number means.""",
        """
        imagen evaluate scenes --workdir runs/quickstart --output runs/quickstart/evaluation
        imagen evaluate prompts --output runs/prompts
        imagen evaluate sweep --sweep base.guidance=1,2,4 --output runs/sweep
        imagen evaluate compare samples real_images --size 64""",
    )
    actions = parser.add_subparsers(metavar="ACTION", required=True)
    _add_scenes(actions)
    evaluate_protocols.add_actions(actions)
    evaluate_features.add_actions(actions)


def _add_scenes(actions: Commands) -> None:
    parser = command(
        actions,
        "scenes",
        "how often images of built-in scenes show what the prompts say",
        """
        Samples captions whose layout is known, finds the objects in the images by template
        matching, and compares: object, colour, count, relation, style, background and all at once,
        for compositions seen in training and held out from it. Real images (the ceiling) and
        shuffled captions (the floor) are scored beside them.""",
        """
        imagen evaluate scenes --workdir runs/quickstart --output runs/quickstart/evaluation
        imagen evaluate scenes --count 256
        imagen evaluate scenes --splits unseen --guidance 5
            crimson discs and puppies: what the frozen language model knows of them""",
        evaluate_protocols.RESUMES,
    )
    add_workdir(parser)
    parser.add_argument(
        "--count",
        type=positive,
        default=64,
        help="images of each split and number of objects (default: %(default)s)",
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
        help="where the scores and images go (default: %(default)s)",
    )
    parser.set_defaults(run=_scenes)


def _scenes(args: argparse.Namespace) -> None:
    from imagen_jax.eval.scenes import evaluate_scenes

    evaluate_scenes(
        workdir=args.workdir,
        count=args.count,
        splits=tuple(args.splits),
        seed=args.seed,
        output_dir=args.output,
        encoder_weights=args.encoder_weights,
        vocabulary=args.vocabulary,
        settings=settings(args),
    )
