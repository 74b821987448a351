"""`imagen train`: shards to checkpoints of one stage."""

from __future__ import annotations

import argparse
import os
import shlex
import sys
from typing import TYPE_CHECKING

from imagen_jax.cli.command import Commands, add_config, command
from imagen_jax.cli.corpus import (
    EMBEDDING,
    OPENING,
    add_embedding,
    add_opening,
    embedding_options,
    is_corpus,
    open_given,
    print_outcome,
)
from imagen_jax.cli.hosts import add_multi_host, leave
from imagen_jax.errors import UserError
from imagen_jax.files import only_writer, output_folder
from imagen_jax.paths import as_path

EMBEDDINGS = "embeddings"
"""Folder of a work directory in which training embeds a corpus."""

if TYPE_CHECKING:
    from ml_collections import ConfigDict


def add_command(commands: Commands) -> None:
    """Adds the command to the parser of `imagen`."""
    parser = command(
        commands,
        "train",
        "shards -> checkpoints of one stage of the cascade",
        """
        Trains one stage of the cascade that a config describes. Checkpoints, sample grids and
        curves for TensorBoard go to WORKDIR/STAGE. Stages train independently and in any order.
        Interrupted, the same command resumes from the last checkpoint. On SIGTERM it writes one and
        ends with status 75; on SIGUSR1 it writes a profiler trace of a few steps.""",
        """
        imagen train --config configs/quickstart.py --stage base \\
            --data runs/quickstart/embeddings --workdir runs/quickstart
        imagen train --config quickstart --stage sr \\
            --data runs/quickstart/embeddings --workdir runs/quickstart
        imagen train --config quickstart --stage base \\
            --data runs/quickstart/embeddings --workdir runs/short \\
            --set stages.base.train.steps=200 stages.base.train.batch_size=16
        imagen train --config quickstart --stage base --workdir runs/mine \\
            --data captions.csv --image-key path --long-captions truncate
            a small corpus, embedded first into runs/mine/embeddings as `imagen embed` does
        imagen train --config quickstart --stage base --multi-host \\
            --data /bucket/embeddings --workdir /bucket/run
            on every host of a TPU pod, a GKE job or a Slurm job; the folders are shared by all
        imagen train --config quickstart --stage base --init-from runs/quickstart \\
            --data runs/mine/embeddings --workdir runs/mine
            fine-tune on other images
        tensorboard --logdir runs/quickstart
            follow the loss and the images in a browser""",
    )
    add_config(parser)
    parser.add_argument(
        "--data",
        metavar="DIR",
        nargs="+",
        required=True,
        help="what `imagen embed` wrote; several of them with their rates, DIR=RATE,DIR=RATE; or, "
        "on one host, a corpus as `imagen embed` takes it, which is embedded into "
        f"WORKDIR/{EMBEDDINGS} first",
    )
    parser.add_argument(
        "--workdir", metavar="DIR", required=True, help="holds one folder for each stage"
    )
    parser.add_argument(
        "--init-from",
        metavar="DIR",
        help="fine-tune: start a new stage from the averaged weights that another cascade has of "
        "it: a work directory, an exported cascade, or demo, the cascade that comes along",
    )
    parser.add_argument(
        "--fall-back",
        action="store_true",
        help="where the newest checkpoint is damaged: set it aside, and resume from the newest "
        "one that is whole (default: an error)",
    )
    add_multi_host(parser, "train")
    group = parser.add_argument_group(
        "where --data is a corpus",
        "it is embedded with the config's encoder, and images are as large as those of the\n"
        "config's last stage unless --image-size is given",
    )
    add_embedding(group)
    add_opening(group)
    parser.set_defaults(run=run, own_signals=True)


def run(args: argparse.Namespace) -> int:
    """Does what the parsed arguments say, and returns the exit status."""
    from imagen_jax.config import load_config
    from imagen_jax.extras import import_tensorflow, require

    require("train", "imagen train")
    if args.multi_host not in (None, "auto"):
        from imagen_jax.sharding import parse_hosts

        parse_hosts(args.multi_host)
    args.workdir = str(output_folder(args.workdir))
    config = load_config(args.config, args.overrides)  # a mistake in it answers before JAX loads
    from imagen_jax.stage import make_stage

    args.stage = make_stage(config, args.stage).name  # and these before TensorFlow does
    data = _embedded(args, config)
    import_tensorflow()
    if args.multi_host is not None:
        from imagen_jax.sharding import join_hosts

        join_hosts(args.multi_host)
    from imagen_jax.train.interruption import PREEMPTED, Preempted
    from imagen_jax.train.loop import train

    try:
        train(
            config,
            args.stage,
            data,
            args.workdir,
            init_from=args.init_from,
            fall_back=args.fall_back,
        )
    except Preempted as stop:
        print(f"imagen: {stop}; the same command resumes from there", file=sys.stderr)
        return PREEMPTED
    except Exception as error:
        if args.multi_host is None:
            raise
        leave(error, args)
    except KeyboardInterrupt:
        raise KeyboardInterrupt(_what_is_kept(args.workdir, args.stage, config)) from None
    return 0


def _what_is_kept(workdir: str, stage: str | None, config: ConfigDict) -> str:
    """Message after Ctrl-C."""
    from imagen_jax.checkpoints.reading import checkpoint_steps, stage_directory

    name = stage or next(iter(config.stages))
    steps = checkpoint_steps(stage_directory(workdir, name))
    if not steps:
        return " before the first checkpoint: nothing is kept"
    return f"; the same command resumes from the checkpoint of step {steps[-1]}"


def _embedded(args: argparse.Namespace, config: ConfigDict) -> str:
    """The embeddings to train on; of a corpus, they are made first."""
    if not is_corpus(args.data) and args.kind is None:
        given = [name for name in (*OPENING, *EMBEDDING) if getattr(args, name) is not None]
        if given or len(args.data) > 1:
            name = f"--{given[0].replace('_', '-')}" if given else "several --data"
            raise UserError(
                f"{name} belongs to a corpus, and {args.data[0]!r} is none: there is no such file, "
                "or it is a directory of embeddings"
            )
        plain = "=" not in args.data[0] and not args.modules
        if plain and not as_path(args.data[0]).exists():
            raise UserError(
                f"--data is {args.data[0]!r}, and there is no such file or directory; give a "
                "corpus or what `imagen embed` wrote"
            )
        return args.data[0]
    directory = as_path(args.workdir) / args.stage
    if directory.is_dir():  # another training there is told before hours of embedding
        with only_writer(directory, "imagen train"):
            pass
    output = os.path.join(args.workdir, EMBEDDINGS)
    size = args.image_size or max(stage.resolution for stage in config.stages.values())
    if args.multi_host is not None:
        options = {name: getattr(args, name) for name in (*OPENING, *EMBEDDING)}
        given = [f"--{k.replace('_', '-')}={v}" for k, v in options.items() if v is not None]
        line = ["imagen", "embed", *args.data, f"--encoder={config.text.encoder}",
                f"--image-size={size}", "--fit=crop", f"--output={output}", *given]  # fmt: skip
        raise UserError(
            f"--data {args.data[0]} is a corpus, which training embeds on one host only; before "
            f"training on several, run: {shlex.join(line)} (on several hosts, each with its "
            f"--process ID/COUNT), then train with --data {output}"
        )
    from imagen_jax.embed import embed
    from imagen_jax.stage import make_stage
    from imagen_jax.text.encoder import load_encoder

    make_stage(config, args.stage)  # a mistake in it answers before hours of embedding
    corpus = open_given(args, args.data, "train")
    encoder = load_encoder(
        config.text.encoder, args.encoder_weights, args.vocabulary, args.encoder_dtype
    )
    options = embedding_options(args)
    if args.image_size is None:
        options.setdefault("fit", "crop")
    args.when_interrupted = "; the same command resumes after the last complete shard"
    manifest = embed(
        corpus,
        output,
        encoder=encoder,
        image_size=size,
        max_tokens=config.text.max_length,
        **options,
    )
    assert manifest is not None  # this process writes all shards
    args.when_interrupted = ""
    print_outcome(manifest, "train", output)
    return output
