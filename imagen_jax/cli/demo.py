"""`imagen demo`: a cascade in the browser. Imports neither TensorFlow nor seqio."""

from __future__ import annotations

import argparse

from imagen_jax.cli.command import Commands, add_workdir, command, whole


def add_command(commands: Commands) -> None:
    """Adds the command to the parser of `imagen`."""
    parser = command(
        commands,
        "demo",
        "a page in the browser: images as they are made, edited, enlarged and kept",
        """
        Serves a page on this machine alone, until Ctrl-C. It needs no internet. Without --workdir,
        the pretrained demo cascade is used.""",
        """
        imagen demo --open
        imagen demo --workdir runs/mine --port 8000
        imagen demo --host 0.0.0.0
            for everyone who can reach this machine: there is no password
        imagen demo --host 0.0.0.0 --allow-host lab.example
            the same, by a name that the machine does not know of itself""",
    )
    parser.add_argument(
        "--host",
        default="127.0.0.1",
        metavar="ADDRESS",
        help="to listen on (default: %(default)s, which only this machine reaches)",
    )
    parser.add_argument(
        "--allow-host",
        action="append",
        default=[],
        metavar="NAME",
        help="with --host: answer requests for this name of the machine, too; may be repeated. "
        "Addresses and the machine's own names are always answered, others never: a web site could "
        "point a name of its own here",
    )
    parser.add_argument(
        "--port", type=port, default=7860, help="0 is any that is free (default: %(default)s)"
    )
    parser.add_argument("--open", action="store_true", help="also open the page in a browser")
    add_workdir(parser)
    parser.set_defaults(run=run, own_signals=True)


def port(text: str) -> int:
    """Type of --port."""
    number = whole(text)
    if not 0 <= number < 2**16:
        raise argparse.ArgumentTypeError(f"must be from 0 to {2**16 - 1}, got {number}")
    return number


def run(args: argparse.Namespace) -> None:
    """Does what the parsed arguments say."""
    from imagen_jax.extras import require

    require("page", "imagen demo")
    from imagen_jax.page.process import Sampler

    sampler = Sampler(args.workdir, args.encoder_weights, args.vocabulary, args.modules)
    from imagen_jax.page.log import log_in_lines
    from imagen_jax.page.server import listen, serve

    listening = listen(args.host, args.port)
    if not args.debug:
        log_in_lines()
    serve(sampler, listening, args.host, allowed=args.allow_host, open_browser=args.open)
