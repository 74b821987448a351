"""Several hosts that run one command together: train, or each its share of a job."""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import os
import signal
import sys
import traceback
from collections.abc import Iterator
from typing import TYPE_CHECKING

from imagen_jax.cli.command import Arguments
from imagen_jax.cli.status import one_line, status_of
from imagen_jax.errors import UserError

if TYPE_CHECKING:
    from jax.sharding import Mesh


@dataclasses.dataclass(frozen=True)
class Share:
    """The part of a job that this process does.

    Attributes:
      index: which process this is, from 0.
      count: how many there are.
      joined: True if they are hosts that know of one another; else they may run at any time.
    """

    index: int
    count: int
    joined: bool = False

    def finishes(self) -> bool:
        """Return whether this process is to write what belongs to all shares.

        Hosts that are joined wait here for one another, and it is the first.
        """
        if not self.joined:
            return True
        self.wait("shares")
        return self.index == 0

    def wait(self, name: str) -> None:
        """Wait until all hosts are here. No collective, which gives up after a while: hours may lie
        between them. Signals are heeded."""
        import jax
        from jax._src import distributed

        client = distributed.global_state.client
        assert client is not None
        client.key_value_set(f"imagen/{name}/{self.index}", "here")
        for other in range(self.count):
            while True:
                try:
                    client.blocking_key_value_get(f"imagen/{name}/{other}", 1000)
                    break
                except jax.errors.JaxRuntimeError as error:
                    if "DEADLINE_EXCEEDED" not in str(error):
                        raise


def add_multi_host(parser: Arguments, share: str) -> None:
    """Adds --multi-host; `share`: what the hosts do."""
    parser.add_argument(
        "--multi-host",
        metavar="ID/COUNT@HOST:PORT",
        nargs="?",
        const="auto",
        help=f"{share} on several hosts that all run this command, with folders that all share; "
        "without a value they find one another (TPU pods, GKE, Slurm), else: which this is, from "
        "0, of how many, and the address of the first",
    )


@contextlib.contextmanager
def together(args: argparse.Namespace) -> Iterator[Share]:
    """Give this process its share: of --multi-host, of --process, or all.

    What fails on one of several hosts ends its process at once, so that the others notice.

    Raises:
      UserError: both options, or hosts that cannot be found.
    """
    process = getattr(args, "process", (0, 1))
    if args.multi_host is None:
        yield Share(*process)
        return
    if process != (0, 1):
        raise UserError("--process is found by --multi-host itself; leave one of them out")
    import jax

    from imagen_jax.sharding import join_hosts

    join_hosts(args.multi_host)
    if callable(handler := signal.getsignal(signal.SIGTERM)):
        signal.signal(signal.SIGTERM, handler)  # JAX has put its own there
    share = Share(jax.process_index(), jax.process_count(), joined=True)
    try:
        yield share
        share.wait("job")  # the first one may still use what the others' ends would take down
    except (Exception, KeyboardInterrupt) as error:
        leave(error, args)


def own_devices() -> Mesh:
    """Return the devices of this process, which does its share alone."""
    import jax

    from imagen_jax.sharding import make_mesh

    return make_mesh(devices=jax.local_devices())


def leave(error: BaseException, args: argparse.Namespace) -> None:
    """End one of several hosts at once, so that the others notice.

    An ordinary exit first waits minutes for the other hosts, which wait for this one's part.
    """
    import jax

    here = f"host {jax.process_index()} of {jax.process_count()}"
    if isinstance(error, KeyboardInterrupt):
        print(f"\nimagen: interrupted{args.when_interrupted} ({here})", file=sys.stderr, flush=True)
        sys.stdout.flush()
        os._exit(130)
    assert isinstance(error, Exception)
    if isinstance(error, jax.errors.JaxRuntimeError):
        message = (
            f"{here} has lost another, or its device: {str(error).splitlines()[0]}; the same "
            "command on all hosts resumes"
        )
        status = 1
    elif (known := status_of(error, args)) is not None:
        message, status = f"{one_line(error)} ({here})", known
    else:
        traceback.print_exception(error)
        message, status = f"{type(error).__name__} on {here}", 1
    print(f"imagen: error: {message}", file=sys.stderr, flush=True)
    sys.stdout.flush()
    os._exit(status)
