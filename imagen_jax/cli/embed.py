"""`imagen embed`: captions and pictures to shards of token states."""

from __future__ import annotations

import argparse

from imagen_jax.cli.command import (
    Commands,
    add_encoder_files,
    add_scenes,
    add_seed,
    command,
    positive,
)

ENCODERS = ("minilm", "minilm-random", "t5")


def add_command(commands: Commands) -> None:
    """Adds the command to the parser of `imagen`."""
    parser = command(
        commands,
        "embed",
        "pictures and captions -> shards with the captions' token states",
        """
        Renders scenes, runs their captions through the frozen language model, and writes pictures,
        captions and token states as shards for `imagen train`. Done once: training never runs the
        language model. Interrupted, the same command goes on after the last complete shard.""",
        """
        imagen embed --scenes quickstart --count 20000 --output runs/quickstart/embeddings
        imagen embed --scenes demo --count 200000 --shards 64 --output runs/demo/embeddings
        imagen embed --scenes full --emoji emoji --count 200000 --output runs/full/embeddings
            with the emoji of `imagen data fetch --output emoji`
        imagen embed --scenes quickstart --count 20000 --encoder minilm-random --output runs/random
            what the pretraining of the language model buys: the same model with random weights
        imagen embed --scenes demo --count 200000 --output runs/t5/embeddings --encoder t5 \\
            --encoder-weights t5_1_1_xl/checkpoint_1000000 --vocabulary sentencepiece.model
            by T5, to be trained with --set text.encoder=t5 text.width=2048""",
        when_interrupted="; the same command goes on after the last complete shard",
    )
    add_scenes(parser)
    parser.add_argument("--count", type=positive, required=True, help="number of examples")
    parser.add_argument("--output", metavar="DIR", required=True, help="where the shards go")
    parser.add_argument(
        "--image-size",
        type=positive,
        default=64,
        metavar="PIXELS",
        help="side of the pictures, at least that of the last stage (default: %(default)s)",
    )
    parser.add_argument(
        "--encoder",
        choices=ENCODERS,
        default="minilm",
        help="frozen language model (default: %(default)s)",
    )
    add_encoder_files(parser)
    add_seed(parser, "of the scenes; the same seed gives the same pictures")
    parser.add_argument(
        "--shards",
        type=positive,
        default=8,
        help="number of files to divide the examples into (default: %(default)s)",
    )
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> None:
    """Does what the parsed arguments say."""
    from imagen_jax.embed import embed_scenes

    manifest = embed_scenes(
        level=args.scenes,
        count=args.count,
        size=args.image_size,
        seed=args.seed,
        encoder_name=args.encoder,
        output_dir=args.output,
        num_shards=args.shards,
        emoji=args.emoji,
        weights=args.encoder_weights,
        vocabulary=args.vocabulary,
    )
    print(f"{manifest['splits']['train']['examples']} examples in {args.output}")
