"""`imagen export`: a trained cascade, to pass on as weights or as compiled programs."""

from __future__ import annotations

import argparse
from pathlib import Path

from imagen_jax.buckets import BucketPath
from imagen_jax.cli.command import Commands, add_lora, command, number
from imagen_jax.cli.settings import add_settings, settings
from imagen_jax.errors import UserError


def add_command(commands: Commands) -> None:
    """Adds the command to the parser of `imagen`."""
    parser = command(
        commands,
        "export",
        "a trained cascade -> weights to pass on, or programs that run without this code",
        """
        With --format safetensors, writes the averaged (EMA) weights of every stage as
        <stage>.safetensors, and the config and the record of the text encoder as cascade.json.
        Optimiser state and history stay behind. Whatever takes --workdir also takes such a
        directory. With --format lora, writes the change of the weights that stages were trained
        with (train.lora_rank) as one small file; --lora adds such changes to the weights that are
        written. With --format compiled, writes the sampler of every stage as a program
        (StableHLO, by jax.export) for any batch size, its weights, and a script of a few lines that
        runs it with jax, numpy and safetensors alone. Such a program becomes machine code: run only
        those of people whose programs you would run. Weights are data.""",
        """
        imagen export --workdir runs/quickstart --output my_cascade
        imagen export --workdir /mnt/runs/animals --output /mnt/share/animals --dtype float32
        imagen export --format compiled --output compiled --steps base=32,sr=8
            of the demo cascade; see compiled/base.json and compiled/run_exported.py
        imagen export --format lora --workdir runs/mine --output mine.safetensors
        imagen export --workdir deepfloyd --lora mine.safetensors --output deepfloyd_mine
        imagen export --workdir runs/demo --output imagen_jax/demo
            makes it what imagen sample takes without --workdir""",
    )
    parser.add_argument(
        "--workdir",
        metavar="DIR",
        help="work directory of imagen train (default: the pretrained demo cascade)",
    )
    parser.add_argument(
        "--output",
        required=True,
        metavar="PATH",
        help="where the cascade goes; of --format lora, a new .safetensors file",
    )
    parser.add_argument(
        "--format",
        choices=("safetensors", "lora", "compiled"),
        default="safetensors",
        help="what is written (default: %(default)s)",
    )
    parser.add_argument(
        "--ema-decay",
        type=number,
        metavar="DECAY",
        help="which average of the weights: one of train.extra_ema_decays of the stages' config "
        "(default: the one of train.ema_decay)",
    )
    parser.add_argument(
        "--best",
        action="store_true",
        help="of the best checkpoints (train.keep_best, best_metric), not the newest",
    )
    parser.add_argument(
        "--dtype",
        choices=("float16", "float32"),
        help="of the weights in safetensors; compiled programs have float32 (default: float16)",
    )
    parser.add_argument(
        "--platforms",
        nargs="+",
        choices=("cpu", "cuda", "rocm", "tpu"),
        default=[],
        help="that compiled programs are for (default: the one of this machine)",
    )
    add_lora(parser)
    add_settings(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> None:
    """Does what the parsed arguments say."""
    if args.format == "safetensors":
        if args.platforms or settings(args):
            raise UserError("weights know no platforms and settings; give --format compiled")
        from imagen_jax.checkpoints.cascades import export_cascade

        dtype = args.dtype or "float16"
        paths = export_cascade(
            args.workdir, args.output, args.ema_decay, dtype, args.best, args.lora
        )
    elif args.format == "lora":
        given = (args.ema_decay, args.best, args.platforms, args.lora, settings(args))
        if any(given):
            raise UserError("--format lora takes --workdir, --output and --dtype alone")
        if args.workdir is None:
            raise UserError("--format lora needs the --workdir that the change was trained in")
        from imagen_jax.checkpoints.lora import export_lora

        paths = [export_lora(args.workdir, args.output, args.dtype or "float16")]
    else:
        if args.dtype:
            raise UserError("compiled programs have float32 weights; leave out --dtype")
        from imagen_jax.cascade.compiled import export_stages
        from imagen_jax.cascade.stages import stage_settings
        from imagen_jax.checkpoints.cascades import open_cascade

        cascade = open_cascade(args.workdir, args.ema_decay, args.best, args.lora)
        of_stages = stage_settings(cascade.stages, settings(args))
        paths = export_stages(cascade, args.output, of_stages, args.platforms)
    for path in paths:
        print(with_size(path))


def with_size(path: Path) -> str:
    """Return a file that was written, on this machine with its size."""
    size = "" if isinstance(path, BucketPath) else f"{path.stat().st_size / 2**20:8.2f} MiB  "
    return f"{size}{path}"
