"""`imagen export`: the weights of a trained cascade, small enough to pass on."""

from __future__ import annotations

import argparse

from imagen_jax.cli.command import Commands, command


def add_command(commands: Commands) -> None:
    """Adds the command to the parser of `imagen`."""
    parser = command(
        commands,
        "export",
        "a trained cascade -> a small directory to pass on",
        """
        Writes the newest averaged (EMA) weights of every stage as <stage>.safetensors in float16,
        and the config and the record of the text encoder as cascade.json. Optimiser state and
        history stay behind. Whatever takes --workdir also takes such a directory.""",
        """
        imagen export --workdir runs/quickstart --output my_cascade
        imagen export --workdir /mnt/runs/animals --output /mnt/share/animals
        imagen export --workdir runs/demo --output imagen_jax/demo
            makes it what imagen sample takes without --workdir""",
    )
    parser.add_argument(
        "--workdir", required=True, metavar="DIR", help="work directory of imagen train"
    )
    parser.add_argument("--output", required=True, metavar="DIR", help="where the cascade goes")
    parser.add_argument(
        "--ema-decay",
        type=float,
        metavar="DECAY",
        help="which average of the weights: one of train.extra_ema_decays of the stages' config "
        "(default: the one of train.ema_decay)",
    )
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> None:
    """Does what the parsed arguments say."""
    from imagen_jax.pretrained import export_cascade

    paths = export_cascade(args.workdir, args.output, args.ema_decay)
    for path in paths:
        print(f"{path.stat().st_size / 2**20:8.2f} MiB  {path}")
