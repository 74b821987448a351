"""`imagen plan`: what a stage needs of the machines it shall run on."""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import signal
import sys
from collections.abc import Iterator

from imagen_jax.cli.command import Commands, above_zero, add_config, command, positive
from imagen_jax.errors import UserError
from imagen_jax.extras import require
from imagen_jax.files import atomic_path, new_file


def add_command(commands: Commands) -> None:
    """Adds the command to the parser of `imagen`."""
    parser = command(
        commands,
        "plan",
        "memory, time and cost of a stage on machines that one does not have yet",
        """
        Compiles the program that a stage would run, for TPUs or GPUs by their own compilers and
        without having one, and reports whether it fits, what takes the memory, and how long a step
        takes at best: a bound from the chips' published rates, which no real step reaches. With
        --effort full a plan for TPUs also says how long the compiler's own cost model expects a
        step to take, and where that time goes. The exit status is 0 if it fits and 1 if not.""",
        """
        imagen plan --config configs/base64.py --topology v4:8x8x4
        imagen plan --config configs/sr256.py --topology v4:4x4x8 --remat blocks \\
            --json plan.json --chart plan.png
        imagen plan --config configs/base64.py --topology v5p:4x4x8 --effort full --chip-price 4.20
        imagen plan --config configs/base64.py --topology v5p:4x4x4 --search --remat products
        imagen plan --config configs/sr1024.py --topology v4:2x2x1 --job sample --batch 4
        imagen plan --config configs/base64.py --topology v4:2x2x1 --job embed --batch 512
        imagen plan --config configs/base64_small.py --topology h100:8 --batch 256
        imagen plan --config quickstart --stage base
            this machine, as it is""",
    )
    add_config(parser)
    parser.add_argument(
        "--topology",
        metavar="NAME",
        help="TPU generation and shape in chips: v4:8x8x4, v5e:4x4, v5p:4x4x4, v6e:8x8, "
        "tpu7x:4x4x4; or GPUs of a host: h100:8, a100:8 (default: this machine's devices)",
    )
    parser.add_argument(
        "--slices", type=positive, default=1, help="slices, or hosts, of that topology (default: 1)"
    )
    parser.add_argument(
        "--job",
        choices=("train", "sample", "embed"),
        default="train",
        help="the train step, the whole sampler, or T5's encoder over captions (default: train)",
    )
    parser.add_argument(
        "--mesh",
        metavar="AXIS=SIZE",
        nargs="+",
        help="sizes of the axes slice, data, fsdp, spatial and tensor; -1 takes the remaining "
        "devices (default: the config's)",
    )
    parser.add_argument(
        "--batch", type=positive, help="examples of a step or call, over all devices"
    )
    parser.add_argument("--remat", help="none, products or blocks (default: the config's)")
    parser.add_argument("--accumulation", type=positive, help="parts of a step's batch")
    parser.add_argument(
        "--effort",
        choices=("quick", "full"),
        default="quick",
        help="of the TPU compiler: quick answers in a minute or two and counts up to twice the "
        "traffic with the main memory; full compiles what training runs, estimates its time, and "
        "takes four times as long (default: quick)",
    )
    parser.add_argument(
        "--chip-price", type=above_zero, help="price of a chip-hour, to say what the job costs"
    )
    parser.add_argument("--json", metavar="FILE", help="also write every figure there")
    parser.add_argument("--chart", metavar="FILE", help="also draw memory and time there (PNG)")
    parser.add_argument(
        "--search",
        action="store_true",
        help="try meshes, rematerialisation and accumulation of the train step, except what is "
        "given, and rank them, with --effort full by the estimated time; minutes for each; Ctrl-C "
        "ranks what is there",
    )
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Does what the parsed arguments say; returns 0 if it fits, else 1."""
    import os

    from imagen_jax.config import load_config

    if args.search and args.job != "train":
        raise UserError(f"--search ranks train steps; it is not for --job {args.job}")
    figures = None if args.json is None else new_file(args.json)
    chart = None if args.chart is None else new_file(args.chart, ".png")
    if chart is not None:
        require("plan", "imagen plan --chart")
    config = load_config(args.config, args.overrides)
    if args.topology is not None:
        os.environ.setdefault("JAX_PLATFORMS", "cpu")  # what is compiled for is elsewhere
    from imagen_jax.plan.jobs import make_job, where_to
    from imagen_jax.plan.report import format_plan, make_plan
    from imagen_jax.plan.search import format_ranking, search

    target = where_to(args.topology, args.slices)
    effort = args.effort if target.tpu else "full"
    job = make_job(
        config,
        args.stage,
        target,
        job=args.job,
        mesh=args.mesh,
        batch=args.batch,
        remat=args.remat,
        accumulation=args.accumulation,
        effort=effort,
    )
    if args.search:
        plans, failed = search(
            job.stage,
            target,
            effort,
            fixed=[n for n in ("mesh", "remat", "accumulation") if getattr(args, n) is not None],
        )
        print(format_ranking(plans, failed))
        if not plans:
            raise UserError("nothing could be compiled")
        plan = plans[0]
    else:
        print(f"compiling {job.stage.name} for {target.name}: minutes", file=sys.stderr)
        with _ended_by_interrupts():
            program = job.compile()
        plan = make_plan(program, target.chip, target.slice_devices)
        plan = dataclasses.replace(plan, price=args.chip_price)
        print(format_plan(plan))
    if figures is not None:
        with atomic_path(figures, new=True) as temporary:
            temporary.write_text(plan.to_json() + "\n", "utf-8")
    if chart is not None:
        from imagen_jax.plan.chart import draw

        with atomic_path(chart, new=True) as temporary:
            draw(plan, temporary)
    return 0 if plan.fits else 1


@contextlib.contextmanager
def _ended_by_interrupts() -> Iterator[None]:
    """Let Ctrl-C, SIGTERM and SIGHUP end the process at once: a compiler returns to Python, where
    they would be an exception, only when it is done."""
    before = {
        number: signal.signal(number, signal.SIG_DFL)
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
        if signal.getsignal(number) is not signal.SIG_IGN  # by nohup
    }
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
