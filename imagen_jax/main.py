"""The command `imagen`: parses arguments and hands them to the function that does the work.

Nothing heavy is imported before a command is chosen, so that help and mistakes answer at once, and
so that sampling never loads TensorFlow.
"""

from __future__ import annotations

import argparse
import atexit
import contextlib
import gc
import os
import signal
import sys
import traceback
import warnings
from collections.abc import Sequence
from typing import Any

import imagen_jax
from imagen_jax.caches import cache_directory, drop_broken_programs
from imagen_jax.cli import data, demo, doctor, embed, evaluate, export, imports, plan, sample, train
from imagen_jax.cli.command import unindent
from imagen_jax.cli.signals import signals
from imagen_jax.cli.status import (
    MISTAKE,
    Parser,
    empty_option,
    missing_device,
    one_line,
    status_of,
    unknown_options,
)
from imagen_jax.errors import printable
from imagen_jax.extras import libtpu_without_tpu

UNREAD = 141
"""Exit status of a program that writes to a pipe that nobody reads: 128 + SIGPIPE."""


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command.

    Args:
      argv: the arguments after the program's name; those of the process by default.

    Returns:
      The exit status: 0 done; 1 the machine refuses (a full disk), told in one line, or the answer
      is no (`imagen plan`: it does not fit); 64 a mistake in the arguments or the files that they
      name, told in one line; 75 training was told to stop, and the same command resumes it; 130
      interrupted, by Ctrl-C or, but for training, SIGTERM or SIGHUP; 141 the reader of the output,
      such as head, has closed it.

    Raises:
      Exception: a defect, which keeps its traceback and ends the process with status 1.
    """
    _keep_output_writable()
    try:
        try:
            return _run(argv)
        finally:
            _end_at_once(argv)
            sys.stdout.flush()
    except BrokenPipeError:
        # Whoever read the output has closed it, as head does.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return UNREAD
    except OSError as error:  # of help, or of the last that was printed
        nothing = argparse.Namespace()
        if (status := status_of(error, nothing)) is None:
            raise
        print(f"imagen: error: {one_line(error, nothing)}", file=sys.stderr)
        return status


def _run(argv: Sequence[str] | None) -> int:
    args, unknown = make_parser().parse_known_args(argv)
    if hasattr(sys.stdout, "reconfigure"):  # in order with what goes to stderr, in logs too
        sys.stdout.reconfigure(line_buffering=True)
    if unknown:
        args.parser.error(unknown_options(unknown, args))
    if empty := empty_option(args):
        args.parser.error(empty)
    debug = args.debug or os.environ.get("IMAGEN_DEBUG", "") not in ("", "0")
    _set_environment(debug)
    _collect_garbage_rarely()
    warnings.formatwarning = _warn_in_one_line
    try:
        _import(args.modules)
        with contextlib.nullcontext() if args.own_signals else signals():
            return args.run(args) or 0
    except BrokenPipeError:
        raise
    except KeyboardInterrupt as interrupt:
        _end_at_once(argv)
        print(f"\nimagen: interrupted{str(interrupt) or args.when_interrupted}", file=sys.stderr)
        return 130
    except Exception as error:
        status, message = status_of(error, args), one_line(error, args)
        if status is None and (missing := missing_device()):
            status, message = MISTAKE, missing
        if status is None:
            raise
        if debug:
            traceback.print_exc()
        print(f"imagen: error: {message}", file=sys.stderr)
        return status


def _end_at_once(argv: Sequence[str] | None) -> None:
    """Let Ctrl-C end a process that is about to end anyway, without tracebacks of its cleaning up.

    Args:
      argv: as for main; a process that goes on after main keeps its signals.
    """
    if argv is None:
        signal.signal(signal.SIGINT, signal.SIG_DFL)


def make_parser() -> argparse.ArgumentParser:
    """The parser of all commands; `run` of what it returns is the handler of the chosen one."""
    parser = Parser(
        prog="imagen",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        description=unindent("""
            Text to image by a cascade of diffusion models on a frozen language model.

            The way from captions to images, in the order of the commands:
              embed     captions and images -> shards of token states, done once
              train     shards -> checkpoints of one stage; stages train in any order
              sample    prompts -> images; without training, from the cascade that comes along
              demo      the same in the browser, as a page on this machine
              evaluate  a cascade -> what its images are worth: alignment, distances, votes
              export    a trained cascade -> a small directory of its weights, to pass on
              import    weights that others trained (DeepFloyd IF) -> such a directory
              plan      a config -> its memory and time on machines one does not have yet
              doctor    whether everything works on this machine
              data      look at the built-in images, or fetch more of them"""),
        epilog=unindent("""
            examples:
              imagen sample "a red apple left of a dog on a blue background"
              imagen data show --scenes quickstart --output sheet.png
              imagen train --help

            paths:
              gs://BUCKET/FOLDER
                  a folder in Google Cloud Storage, for whatever a command reads or writes

            environment:
              IMAGEN_DEBUG=1
                  shows the traceback of every error, and the logs of the libraries
              JAX_COMPILATION_CACHE_DIR
                  where compiled programs are kept, so that a command starts faster the
                  second time (default: ~/.cache/imagen-jax)
              CXX
                  the C++ compiler for kernels on CPUs (default: c++, g++ or clang++)"""),
    )
    parser.add_argument(
        "--version", action="version", version=f"imagen-jax {imagen_jax.__version__}"
    )
    parser.set_defaults(debug=False, when_interrupted="", modules=[], own_signals=False)
    commands = parser.add_subparsers(metavar="COMMAND", required=True)
    for module in (embed, train, sample, demo, evaluate, export, imports, plan, doctor, data):
        module.add_command(commands)
    return parser


def _import(modules: Sequence[str]) -> None:
    """Imports modules of the user's own."""
    if modules and os.getcwd() not in sys.path:
        sys.path.append(os.getcwd())  # last: a file here must not stand for an installed module
    for name in modules:
        from imagen_jax.config import import_module

        import_module(name, f"--import is {name!r}")


def _set_environment(debug: bool) -> None:
    """Settings that the libraries read when they are imported; what the user set goes first."""
    if debug:
        os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "0")
    else:
        os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
        os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "0")  # only reads data, and is quiet so
        sys.unraisablehook = _unraisable
    if libtpu_without_tpu():
        os.environ.setdefault("JAX_PLATFORMS", "cpu")
    os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(cache_directory("compiled")))
    # Also the many that compile within a second, which is the default bound.
    os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")


def _keep_output_writable() -> None:
    """Let nothing that cannot be written end the work: letters that the locale lacks are escaped,
    and output that was closed before the start (by a daemon) goes nowhere."""
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:
            setattr(sys, name, open(os.devnull, "w"))  # noqa: SIM115
        elif hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")


_FORMATTED = warnings.formatwarning


def _warn_in_one_line(
    message: Warning | str, category: type[Warning], *where: Any, **line: Any
) -> str:
    """Return a warning for the user without a file and a line of code, others as ever."""
    if category is UserWarning:
        text = drop_broken_programs(str(message)) or str(message)
        return f"imagen: warning: {printable(text)}\n"
    return _FORMATTED(message, category, *where, **line)


def _unraisable(found: Any) -> None:
    """Show an exception that nobody can catch, but not those of TensorStore's threads after a
    checkpoint that could not be written: its error says all."""
    if str(found.exc_value) != "Event loop is closed":
        sys.__unraisablehook__(found)


def _collect_garbage_rarely() -> None:
    """Most of the objects that libraries and traced programs consist of live to the end, and there
    are millions: looking them through as often as Python does by default slows every start.
    """
    gc.set_threshold(100_000, 50, 100)
    atexit.register(gc.freeze)  # or all are looked through once more, only to end


if __name__ == "__main__":
    sys.exit(main())
