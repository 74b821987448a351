"""`imagen doctor`: whether everything works on this machine."""

from __future__ import annotations

import argparse

from imagen_jax.cli.command import Commands, command
from imagen_jax.errors import printable


def add_command(commands: Commands) -> None:
    """Adds the command to the parser of `imagen`."""
    parser = command(
        commands,
        "doctor",
        "whether everything works on this machine: versions, devices, caches, a train step",
        """
        Looks at the installed versions, the devices, the caches and the kernels, and takes a few
        train steps of a small stage. The first thing to run on a new machine, and what to put into
        a report of a fault. Ends with status 64 if something is wrong.""",
        """
        imagen doctor
        imagen doctor --address gs://my-bucket/photos
            also lists a folder there, as `imagen embed` would
        imagen doctor --multi-host
            on every host of a pod: whether they see one another""",
    )
    parser.add_argument("--address", metavar="URL", help="a folder that is to be reached, too")
    parser.add_argument(
        "--multi-host",
        nargs="?",
        const="auto",
        metavar="ID/COUNT@HOST:PORT",
        help="one of several hosts that all run this command; see imagen train --help",
    )
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> None:
    """Does what the parsed arguments say."""
    if args.multi_host is not None:
        from imagen_jax.sharding import join_hosts

        join_hosts(args.multi_host)
    from imagen_jax.plan.doctor import examine, problems

    findings = []
    for finding in examine(args.address):
        mark = " " if finding.works else "!"
        print(f"{mark} {finding.subject}: {printable(finding.text)}", flush=True)
        findings.append(finding)
    problems(findings)
    print("everything works")
