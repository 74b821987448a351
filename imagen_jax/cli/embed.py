"""`imagen embed`: captions and images to shards of token states."""

from __future__ import annotations

import argparse
import functools
from typing import TYPE_CHECKING, Any

from imagen_jax.cli.command import (
    LEVELS,
    Commands,
    above_zero,
    add_process,
    command,
    positive,
    seed,
)
from imagen_jax.cli.corpus import (
    DEFAULT_SIZE,
    OPENING,
    WHERE,
    add_embedding,
    add_opening,
    embedding_options,
    open_given,
    print_outcome,
)
from imagen_jax.cli.hosts import Share, add_multi_host, together
from imagen_jax.cli.status import show
from imagen_jax.data.choices import CAPTIONS, FITS, LONG_CAPTIONS
from imagen_jax.errors import UserError

if TYPE_CHECKING:
    from imagen_jax.data.sources import Source

ENCODERS = ("minilm", "minilm-random", "minilm-words", "t5", "t5-if")
"""As in text.encoder, which takes seconds to load; the first is the default."""


def add_command(commands: Commands) -> None:
    """Adds the command to the parser of `imagen`."""
    parser = command(
        commands,
        "embed",
        "images and captions -> shards with the captions' token states",
        """
        Reads captioned images of any common kind, or draws scenes, runs their captions through the
        frozen language model, and writes images, captions and token states as shards for `imagen
        train`. Done once: training never runs the language model. What cannot be used is left out,
        counted by reason, and listed beside the shards. Interrupted, the same command resumes after
        the last complete shard. `imagen data inspect WHERE` shows first what would be read.""",
        """
        imagen embed photos/ --output runs/mine
            images of a folder, each with its caption in a .txt file beside it, cropped to 64 x 64
        imagen embed captions.csv --image-key path --caption-key text --image-size 128 --fit crop \\
            --output runs/mine
        imagen embed 'data/train-*.parquet' --output runs/hub
        imagen embed coco/annotations/captions_train2017.json --image-size 256 --fit crop \\
            --output runs/coco
        imagen embed 'shards/{00000..00999}.tar' --image-size 256 --output runs/tars --process 3/16
            one of 16 processes, each of which writes every sixteenth shard
        imagen embed 'gs://b/tars/{00000..00999}.tar' --output gs://b/embeddings --multi-host
            on every host of a TPU pod, a GKE job or a Slurm job, each of which writes its share
        imagen embed laion/ --kind tfrecords --image-size 256 --fit crop --states int8 \\
            --long-captions truncate --output runs/laion --encoder t5 --encoder-dtype bfloat16 \\
            --encoder-weights t5_1_1_xxl/checkpoint_1000000 --vocabulary sentencepiece.model
            what img2dataset has downloaded, by T5, to be trained with
            --set text.encoder=t5 text.width=4096; add --estimate 100000000 to see what it takes
        imagen embed coco_captions:train --kind tfds --image-size 256 --fit crop --output runs/coco
        imagen embed --scenes quickstart --count 20000 --output runs/quickstart/embeddings
        imagen embed --scenes demo --count 1000 --split validation --output runs/demo/embeddings
        imagen embed --scenes emoji --count 200000 --output runs/emoji/embeddings
            with the drawings that `imagen data fetch` has fetched""",
        when_interrupted="; the same command resumes after the last complete shard",
    )
    parser.usage = "imagen embed WHERE [WHERE ...] --output DIR [OPTION ...]"
    parser.add_argument("where", metavar="WHERE", nargs="*", help=WHERE)
    parser.add_argument("--output", metavar="DIR", help="where the shards go")
    parser.add_argument(
        "--split",
        default="train",
        metavar="NAME",
        help="what the examples are for: validation is what train.validation_batches reads; added "
        "to the splits that --output has. Of --scenes, any but train has compositions that train "
        "has not (default: %(default)s)",
    )
    parser.add_argument(
        "--encoder",
        choices=ENCODERS,
        default=ENCODERS[0],
        help="frozen language model (default: %(default)s)",
    )
    add_embedding(parser)
    add_process(parser, "writes its part of the shards, and the last to finish the manifest")
    add_multi_host(parser, "embed")
    add_opening(parser.add_argument_group("how a corpus is read"))
    _add_scenes(parser.add_argument_group("built-in scenes in place of WHERE"))
    _add_estimate(parser)
    parser.set_defaults(run=run)


def _add_scenes(group: Any) -> None:
    group.add_argument("--scenes", choices=LEVELS, help="how rich the images are")
    group.add_argument("--count", type=positive, help="with --scenes: number of examples")
    group.add_argument(
        "--seed",
        type=seed,
        help="with --scenes: the same seed gives the same images (default: 0)",
    )


def _add_estimate(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--estimate",
        type=positive,
        metavar="N",
        help="write nothing; say what N examples would take, from the first 512",
    )
    parser.add_argument(
        "--chip-tflops",
        type=above_zero,
        default=275.0,
        help="with --estimate: peak of the chip in bfloat16 (default: %(default)s, TPU v4)",
    )
    parser.add_argument(
        "--utilisation",
        type=above_zero,
        default=0.4,
        help="with --estimate: share of the peak that is reached (default: %(default)s)",
    )
    parser.add_argument(
        "--chip-price",
        type=above_zero,
        default=3.22,
        help="with --estimate: USD for an hour of the chip (default: %(default)s)",
    )


def run(args: argparse.Namespace) -> None:
    """Does what the parsed arguments say."""
    from imagen_jax.extras import require

    require("train", "imagen embed")
    if args.output is None and not args.estimate:
        raise UserError("--output is missing: where the shards go")
    source = _source(args)
    with together(args) as share:
        _embed(args, source, share)


def _embed(args: argparse.Namespace, source: Source, share: Share) -> None:
    """Embed this process's share of the shards."""
    from imagen_jax.embed import default_shards, embed
    from imagen_jax.text.encoder import load_encoder

    encoder = load_encoder(args.encoder, args.encoder_weights, args.vocabulary, args.encoder_dtype)
    options = embedding_options(args)
    if args.image_size is None and args.scenes is None:
        options.setdefault("fit", "crop")
        if options["fit"] == "crop":
            print(
                f"no --image-size: images are reduced and cropped to {DEFAULT_SIZE} x "
                f"{DEFAULT_SIZE} pixels"
            )
    size = args.image_size or DEFAULT_SIZE
    if args.estimate:
        from imagen_jax.embed.estimate import Chip, estimate, report
        from imagen_jax.embed.prepare import Handling

        chip = Chip(args.chip_tflops, args.utilisation, args.chip_price)
        handling = Handling(
            size,
            options.get("fit", FITS[0]),
            options.get("long_captions", LONG_CAPTIONS[0]),
            captions=options.get("captions", CAPTIONS[0]),
        )
        show(report(estimate(source, encoder, handling, args.estimate, chip), chip))
        return
    shards = options.setdefault("num_shards", default_shards(source))
    write = functools.partial(
        embed,
        source,
        args.output,
        encoder=encoder,
        image_size=size,
        split=args.split,
        shards=range(share.index, shards, share.count),
        **options,
    )
    manifest = write() if share.index < shards else None  # or there is nothing for this process
    if share.joined:
        if not share.finishes():
            return
        manifest = write()  # writes the manifest of all shards, if no host has seen them all
    if manifest is None:
        print(f"shards of this process are in {args.output}; others are not finished")
        return
    print_outcome(manifest, args.split, args.output)


def _source(args: argparse.Namespace) -> Source:
    """The corpus to embed."""
    if (args.scenes is None) == (not args.where):
        raise UserError(
            "give a corpus, as in imagen embed photos/, or --scenes LEVEL, and not both"
        )
    of_other = ("count", "seed") if args.scenes is None else OPENING
    for name in of_other:
        if getattr(args, name) is not None:
            belongs = "--scenes" if args.scenes is None else "a corpus"
            raise UserError(f"--{name.replace('_', '-')} belongs to {belongs}")
    if args.scenes is None:
        return open_given(args, args.where, args.split)
    from imagen_jax.data.sources import SceneSource

    if args.count is None:
        raise UserError("--scenes needs --count, the number of scenes")
    compositions = "train" if args.split == "train" else "heldout"
    return SceneSource(
        args.scenes,
        compositions,
        args.seed or 0,
        args.count,
        args.image_size or DEFAULT_SIZE,
    )
