"""`imagen embed`: captions and images to shards of token states."""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence
from typing import TYPE_CHECKING

from imagen_jax.cli.command import (
    LEVELS,
    Commands,
    add_encoder_files,
    add_process,
    command,
    positive,
)
from imagen_jax.data.choices import DAMAGED_FILES, FITS, LONG_CAPTIONS, STATES
from imagen_jax.errors import UserError

if TYPE_CHECKING:
    from ml_collections import ConfigDict

    from imagen_jax.data.sources import Source

ENCODERS = ("minilm", "minilm-random", "minilm-words", "t5")
ENCODER_DTYPES = ("float32", "bfloat16")
"""Both as in text.encoder, which takes seconds to load; the first is the default."""
DEFAULT_SHARDS = 8
EMBEDDINGS = "embeddings"
"""Folder of a work directory in which training embeds a corpus."""
_OF_FILES = ("image_key", "caption_key", "damaged_files")
CORPORA = {
    "scenes": ("count", "seed"),
    "tfrecords": _OF_FILES,
    "webdataset": _OF_FILES,
    "table": ("image_key", "caption_key"),
    "tfds": ("image_key", "caption_key", "data_dir"),
}
"""Options that name a source, and so the kinds of corpora that training may be given, with the
options that not all sources have."""
TRAIN_OPTIONS = (
    "caption-key", "count", "damaged-files", "data-dir", "encoder-dtype",
    "encoder-weights", "fit", "image-key", "image-size", "long-captions", "seed", "shards",
    "states", "vocabulary",
)  # fmt: skip
"""Options that training may pass on; the others follow from its own."""


def add_command(commands: Commands) -> None:
    """Adds the command to the parser of `imagen`."""
    parser = command(
        commands,
        "embed",
        "images and captions -> shards with the captions' token states",
        """
        Reads captioned images, or draws scenes, runs their captions through the frozen language
        model, and writes images, captions and token states as shards for `imagen train`. Done
        once: training never runs the language model. What cannot be used is left out, counted by
        reason, and listed beside the shards. Interrupted, the same command goes on after the last
        complete shard.""",
        """
        imagen embed --scenes quickstart --count 20000 --output runs/quickstart/embeddings
        imagen embed --scenes demo --count 200000 --shards 64 --output runs/demo/embeddings
        imagen embed --scenes demo --count 1000 --split validation --output runs/demo/embeddings
        imagen embed --scenes emoji --count 200000 --output runs/emoji/embeddings
            with the drawings that `imagen data fetch` has fetched
        imagen embed --scenes quickstart --count 20000 --encoder minilm-random --output runs/random
            what the pretraining of the language model buys: the same model with random weights
        imagen embed --tfrecords 'laion/*.tfrecord' --image-size 256 --fit crop --states int8 \\
            --long-captions truncate --output runs/laion --encoder t5 --encoder-dtype bfloat16 \\
            --encoder-weights t5_1_1_xxl/checkpoint_1000000 --vocabulary sentencepiece.model
            what img2dataset has downloaded, by T5, to be trained with
            --set text.encoder=t5 text.width=4096; add --estimate 100000000 to see what it takes
        imagen embed --webdataset 'shards/*.tar' --image-size 256 --output runs/tars --process 3/16
            one of 16 processes, each of which writes every sixteenth shard
        imagen embed --table captions.csv --image-key path --caption-key text --image-size 64 \\
            --fit crop --output runs/mine
        imagen embed --tfds coco_captions:train --caption-key captions/text --image-size 256 \\
            --fit crop --output runs/coco""",
        when_interrupted="; the same command goes on after the last complete shard",
    )
    parser.usage = "imagen embed SOURCE --output DIR [OPTION ...]"
    _add_sources(parser)
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
        "--image-size",
        type=positive,
        default=64,
        metavar="PIXELS",
        help="side of the images, at least that of the last stage (default: %(default)s)",
    )
    parser.add_argument(
        "--fit",
        choices=FITS,
        default=FITS[0],
        help="images of another size: leave them out, or reduce larger ones and crop them to the "
        "middle (default: %(default)s)",
    )
    parser.add_argument(
        "--long-captions",
        choices=LONG_CAPTIONS,
        default=LONG_CAPTIONS[0],
        help="captions of more tokens than the language model takes: leave them out, or cut them "
        "(default: %(default)s)",
    )
    parser.add_argument(
        "--states",
        choices=STATES,
        default=STATES[0],
        help="how token states are stored; int8 is half the size (default: %(default)s)",
    )
    parser.add_argument(
        "--encoder",
        choices=ENCODERS,
        default=ENCODERS[0],
        help="frozen language model (default: %(default)s)",
    )
    add_encoder_files(parser)
    parser.add_argument(
        "--encoder-dtype",
        choices=ENCODER_DTYPES,
        default=ENCODER_DTYPES[0],
        help="of T5: what it computes in (default: %(default)s)",
    )
    parser.add_argument(
        "--shards",
        type=positive,
        help=f"number of files to divide the examples into (default: {DEFAULT_SHARDS}; of "
        "--tfrecords and --webdataset, as many as there are files, which is the most)",
    )
    add_process(parser, "writes its part of the shards, and the last to finish the manifest")
    _add_estimate(parser)
    parser.set_defaults(run=run)


def _add_sources(parser: argparse.ArgumentParser) -> None:
    sources = parser.add_mutually_exclusive_group(required=True)
    sources.add_argument(
        "--scenes", choices=LEVELS, help="built-in scenes: how rich the images are"
    )
    sources.add_argument(
        "--tfrecords", metavar="PATTERN", help="TFRecord files, as img2dataset writes them"
    )
    sources.add_argument("--webdataset", metavar="PATTERN", help="tar files of WebDataset")
    sources.add_argument(
        "--table", metavar="FILE", help=".csv or .parquet with columns of captions and images"
    )
    sources.add_argument(
        "--tfds", metavar="NAME:SPLIT", help="a prepared dataset of TensorFlow Datasets"
    )
    parser.add_argument("--count", type=positive, help="with --scenes: number of examples")
    parser.add_argument(
        "--seed",
        type=int,
        help="with --scenes: the same seed gives the same images (default: 0)",
    )
    parser.add_argument(
        "--image-key",
        metavar="NAME",
        help="feature, extension or column of images (default: jpg, jpeg, png, webp or image; of "
        "--table and --tfds, image)",
    )
    parser.add_argument(
        "--caption-key",
        metavar="NAME",
        help="feature, extension or column of captions (default: txt, caption or text; of --table "
        "and --tfds, caption)",
    )
    parser.add_argument(
        "--data-dir", metavar="DIR", help="with --tfds: where the dataset was prepared"
    )
    parser.add_argument(
        "--damaged-files",
        choices=DAMAGED_FILES,
        help="with --tfrecords and --webdataset: stop at a damaged file, or leave out the rest of "
        "it, counted and listed; a job that has stopped goes on where it is given then "
        f"(default: {DAMAGED_FILES[0]})",
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
        type=float,
        default=275.0,
        help="with --estimate: peak of the chip in bfloat16 (default: %(default)s, TPU v4)",
    )
    parser.add_argument(
        "--utilisation",
        type=float,
        default=0.4,
        help="with --estimate: share of the peak that is reached (default: %(default)s)",
    )
    parser.add_argument(
        "--chip-price",
        type=float,
        default=3.22,
        help="with --estimate: USD for an hour of the chip (default: %(default)s)",
    )


def run(args: argparse.Namespace) -> None:
    """Does what the parsed arguments say."""
    from imagen_jax.extras import require

    require("train", "imagen embed")
    process, processes = args.process
    if args.output is None and not args.estimate:
        raise UserError("--output is missing: where the shards go")
    source, shards = _source(args)
    from imagen_jax.embed import embed
    from imagen_jax.text.encoder import load_encoder

    encoder = load_encoder(args.encoder, args.encoder_weights, args.vocabulary, args.encoder_dtype)
    if args.estimate:
        from imagen_jax.embed.estimate import Chip, estimate, report
        from imagen_jax.embed.shard import Handling

        chip = Chip(args.chip_tflops, args.utilisation, args.chip_price)
        handling = Handling(args.image_size, args.fit, args.long_captions)
        print(report(estimate(source, encoder, handling, args.estimate, chip), chip))
        return
    manifest = embed(
        source,
        encoder,
        args.output,
        split=args.split,
        image_size=args.image_size,
        num_shards=shards,
        shards=range(process, shards, processes),
        states=args.states,
        fit=args.fit,
        long_captions=args.long_captions,
    )
    if manifest is None:
        print(f"shards of this process are in {args.output}; others are not finished")
        return
    split = manifest["splits"][args.split]
    print(f"{split['examples']} examples in {args.output}")
    for what in ("dropped", "changed"):
        for reason, number in sorted(split[what].items()):
            print(f"  {what}: {number} {reason}")


def is_corpus(data: str) -> bool:
    """Whether `imagen train --data` names a corpus, KIND:WHERE, and nothing embedded."""
    kind, colon, _ = data.partition(":")
    return bool(colon) and kind in CORPORA and not os.path.isdir(data)


def training_arguments(
    data: str, options: Sequence[str], config: ConfigDict, workdir: str
) -> list[str]:
    """The command that embeds a corpus for training, after `imagen`.

    Images are as large as those of the config's last stage, so that all stages read them.

    Args:
      data: the corpus, KIND:WHERE with KIND one of CORPORA.
      options: more of the command, KEY=VALUE with KEY one of TRAIN_OPTIONS.
      config: of the cascade; has the encoder and the sizes of its stages.
      workdir: embeddings go to <workdir>/embeddings.

    Raises:
      UserError: an option that is not one of those.
    """
    for option in options:
        key, equals, _ = option.partition("=")
        if not equals or key not in TRAIN_OPTIONS:
            raise UserError(
                f"--embed {option!r} must be KEY=VALUE with KEY one of: {', '.join(TRAIN_OPTIONS)}"
            )
    kind, _, where = data.partition(":")
    size = max(stage.resolution for stage in config.stages.values())
    return [
        "embed", f"--{kind}={where}", f"--encoder={config.text.encoder}", f"--image-size={size}",
        f"--output={os.path.join(workdir, EMBEDDINGS)}", *(f"--{option}" for option in options),
    ]  # fmt: skip


def embed_for_training(arguments: Sequence[str]) -> str:
    """Embeds what `training_arguments` say, or what is left of it, and returns the directory."""
    parser = argparse.ArgumentParser(prog="imagen")
    add_command(parser.add_subparsers())
    args = parser.parse_args(arguments)
    run(args)
    return args.output


def _source(args: argparse.Namespace) -> tuple[Source, int]:
    """The source that was named, and the number of its shards."""
    kind = next(kind for kind in CORPORA if getattr(args, kind) is not None)
    for option in sorted({option for options in CORPORA.values() for option in options}):
        if getattr(args, option) is not None and option not in CORPORA[kind]:
            having = ", ".join(f"--{k}" for k, options in CORPORA.items() if option in options)
            raise UserError(f"--{option.replace('_', '-')} belongs to {having}, not to --{kind}")
    if args.scenes is not None:
        from imagen_jax.data.sources import SceneSource

        if args.count is None:
            raise UserError("--scenes needs --count, the number of scenes")
        compositions = "train" if args.split == "train" else "heldout"
        scenes = SceneSource(args.scenes, compositions, args.seed or 0, args.count, args.image_size)
        return scenes, args.shards or DEFAULT_SHARDS
    if args.table is not None:
        from imagen_jax.data.tables import Table

        table = Table(args.table, args.image_key or "image", args.caption_key or "caption")
        return table, args.shards or DEFAULT_SHARDS
    from imagen_jax.data import corpora

    if args.tfds is not None:
        name, colon, split = args.tfds.rpartition(":")
        if not colon:
            raise UserError(f"--tfds is {args.tfds!r}; it must be NAME:SPLIT, such as coco:train")
        dataset = corpora.TensorFlowDataset(
            name, split, args.image_key or "image", args.caption_key or "caption", args.data_dir
        )
        return dataset, args.shards or DEFAULT_SHARDS
    tar = args.webdataset is not None
    files = corpora.Files(
        "webdataset" if tar else "tfrecords",
        args.webdataset if tar else args.tfrecords,
        corpora.read_tar if tar else corpora.read_tfrecord,
        [args.image_key] if args.image_key else corpora.IMAGE_KEYS,
        [args.caption_key] if args.caption_key else corpora.CAPTION_KEYS,
        args.damaged_files or DAMAGED_FILES[0],
    )
    return files, args.shards or len(files.files)
