"""`imagen evaluate prompts`, `coco`, `sweep`: protocols that sample a cascade and report on it."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any

from imagen_jax.cli.command import (
    Commands,
    add_process,
    add_seed,
    add_workdir,
    command,
    positive,
)
from imagen_jax.cli.evaluate_features import add_network, load_network
from imagen_jax.cli.hosts import Share, add_multi_host, own_devices, together
from imagen_jax.cli.settings import add_settings, add_sweep, axes, settings
from imagen_jax.cli.status import show
from imagen_jax.errors import UserError
from imagen_jax.paths import as_path

if TYPE_CHECKING:
    from imagen_jax.cascade import Cascade, Settings
    from imagen_jax.eval.measure import Instruments
    from imagen_jax.eval.protocols import Work

RESUMES = "; the same command resumes here"


def add_actions(actions: Commands) -> None:
    """Adds the actions to the parser of `imagen evaluate`."""
    _add_prompts(actions)
    _add_coco(actions)
    _add_sweep(actions)


def _add_prompts(actions: Commands) -> None:
    parser = command(
        actions,
        "prompts",
        "images of a set of prompts by category, with scores, as a page",
        """
        Samples DrawBench, PartiPrompts, or, by default, a suite of its own in DrawBench's eleven
        categories for cascades that were trained on the built-in scenes, and writes report.html:
        scores and images of every category. Of the scenes, what an image shows is read from it;
        of other prompts, CLIP tells how well they match, where its weights are given.""",
        """
        imagen evaluate prompts --output runs/prompts
        imagen evaluate prompts --workdir runs/mine --per-category 32 --output runs/mine/prompts
        imagen evaluate prompts --drawbench DrawBench.csv --per-prompt 4 --clip clip-vit-large \\
            --workdir runs/tpu --output runs/tpu/drawbench
        imagen evaluate prompts --parti PartiPrompts.tsv --workdir runs/tpu --output runs/parti""",
        RESUMES,
    )
    suites = parser.add_mutually_exclusive_group()
    suites.add_argument("--drawbench", metavar="CSV", help="DrawBench, with Prompts and Category")
    suites.add_argument("--parti", metavar="TSV", help="PartiPrompts, with Prompt and Category")
    parser.add_argument(
        "--per-category",
        type=positive,
        default=16,
        metavar="N",
        help="prompts of each category of the suite for scenes (default: %(default)s)",
    )
    parser.add_argument(
        "--per-prompt",
        type=positive,
        default=1,
        metavar="N",
        help="images of each prompt (default: %(default)s)",
    )
    _add_common(parser, "runs/prompts")
    add_multi_host(parser, "share the images out")
    add_settings(parser)
    parser.set_defaults(run=_prompts)


def _add_coco(actions: Commands) -> None:
    parser = command(
        actions,
        "coco",
        "distance from the images of a captioned validation set, as in the paper",
        """
        The paper's zero-shot protocol: 30,000 captions of COCO's validation set, guidance 1.35 of
        the base stage, distance from the images of these captions. It is an FID only with the
        weights of Inception (--network inception-v3 --weights FILE). All images are kept; a
        command that was killed resumes, and several processes may share the work.""",
        """
        imagen evaluate coco --annotations captions_val2014.json --images val2014 \\
            --network inception-v3 --weights pt_inception-2015-12-05-6726825d.pth \\
            --workdir runs/tpu --output runs/tpu/coco
        imagen evaluate coco --tfds coco_captions/2014:restval --data-dir tfds --count 5000 \\
            --workdir runs/tpu --output runs/tpu/coco5k
        imagen evaluate coco --annotations captions.json --images . --process 3/16 \\
            --workdir runs/tpu --output shared/coco
            one of 16 processes; the last to finish computes the scores
        imagen evaluate coco --annotations captions.json --images . --multi-host \\
            --workdir run --output coco
            on every host of a TPU pod, a GKE job or a Slurm job""",
        RESUMES,
    )
    _add_captions(parser, required=True)
    parser.add_argument(
        "--count",
        type=positive,
        default=30_000,
        help="captions; distances of other numbers are not comparable (default: %(default)s)",
    )
    _add_common(parser, "runs/coco")
    add_multi_host(parser, "share the images out")
    add_settings(parser, guidance="1.35 for the base stage, the config's for others")
    parser.set_defaults(run=_coco)


def _add_sweep(actions: Commands) -> None:
    parser = command(
        actions,
        "sweep",
        "distance against alignment over sampling settings: tables, curves, what is best",
        """
        Samples the same captions from the same noise under all combinations of the values given,
        and writes sweep.csv and sweep.png: distance from real images against alignment, with the
        settings that none beats in both. What was sampled is kept: a sweep that was killed resumes,
        and one with more values adds to what is there. Captions are of built-in scenes, or of a
        validation set; of the latter, alignment is the CLIP score.""",
        """
        imagen evaluate sweep --sweep base.guidance=1,2,4,8 --output runs/sweep
        imagen evaluate sweep --sweep base.guidance=1,2,4,8 --sweep threshold=none,static,dynamic
        imagen evaluate sweep --sweep aug_level=0,0.05,0.2 --sweep 'sampler=ddim,ddim(eta=1)'
        imagen evaluate sweep --sweep base.guidance=1,1.35,2,4 --count 5000 --images val2014 \\
            --annotations captions_val2014.json --clip clip-vit-large --workdir runs/tpu""",
        RESUMES,
    )
    _add_captions(parser, required=False)
    parser.add_argument(
        "--split",
        choices=("train", "heldout"),
        default="heldout",
        help="of scenes: compositions seen in training, or kept from it (default: %(default)s)",
    )
    parser.add_argument(
        "--count",
        type=positive,
        default=128,
        help="images of each combination (default: %(default)s)",
    )
    add_sweep(
        parser,
        "all of these values of a setting of one stage, or of all; several times for all "
        "combinations, of which each has a directory",
        required=True,
    )
    parser.add_argument(
        "--along",
        metavar="[STAGE.]NAME",
        help="the setting that a curve joins (default: the first of several values)",
    )
    _add_common(parser, "runs/sweep")
    parser.set_defaults(run=_sweep)


def _add_captions(parser: argparse.ArgumentParser, required: bool) -> None:
    sources = parser.add_mutually_exclusive_group(required=required)
    sources.add_argument(
        "--annotations",
        metavar="JSON",
        help="captions, as COCO's captions_val2014.json has them",
    )
    sources.add_argument(
        "--tfds", metavar="NAME:SPLIT", help="a prepared dataset with image and captions/text"
    )
    parser.add_argument(
        "--images", metavar="DIR", help="with --annotations: the files that they name"
    )
    parser.add_argument(
        "--data-dir", metavar="DIR", help="with --tfds: where the dataset was prepared"
    )


def _add_common(parser: argparse.ArgumentParser, output: str) -> None:
    add_workdir(parser)
    add_network(parser)
    parser.add_argument(
        "--clip",
        metavar="DIR",
        help="CLIP as Hugging Face or open_clip store it, with tokenizer.json: adds the CLIP score",
    )
    add_seed(parser, "of captions and noise")
    add_process(parser, "samples its part, and the last to finish computes the scores")
    parser.add_argument(
        "--output",
        metavar="DIR",
        default=output,
        help="where images, scores and report go (default: %(default)s)",
    )


def _load(args: argparse.Namespace, distances: bool = True) -> tuple[Cascade, Instruments]:
    from imagen_jax.cascade import Cascade
    from imagen_jax.eval.features.clip_weights import read_clip
    from imagen_jax.eval.measure import Instruments

    clip = None if args.clip is None else read_clip(args.clip)
    network = load_network(args) if distances else None
    mesh = own_devices()
    cascade = Cascade.load(args.workdir, args.encoder_weights, args.vocabulary, mesh=mesh)
    return cascade, Instruments(network, clip)


def _run(
    args: argparse.Namespace,
    loaded: tuple[Cascade, Instruments],
    work: Work,
    chosen: Settings,
    share: Share,
) -> None:
    from imagen_jax.eval.job import Unfinished
    from imagen_jax.eval.protocols import run
    from imagen_jax.eval.summary import summary

    cascade, instruments = loaded

    def score() -> dict[str, Any] | None:
        try:
            return run(
                cascade, work, instruments, args.output,
                seed=args.seed, process=(share.index, share.count), settings=chosen,
            )  # fmt: skip
        except Unfinished as unfinished:
            print(unfinished)
            return None

    if share.joined:
        score()
        if not share.finishes():
            return
    if (record := score()) is None:
        return
    show(summary(record["scores"]))
    print(f"\nreport: {args.output}/report.html")


def _prompts(args: argparse.Namespace) -> None:
    with together(args) as share:
        _evaluate_prompts(args, share)


def _evaluate_prompts(args: argparse.Namespace, share: Share) -> None:
    from imagen_jax.eval import prompts, protocols

    loaded = _load(args, distances=args.drawbench is None and args.parti is None)
    if args.drawbench is not None:
        work = protocols.suite_work(prompts.read_drawbench(args.drawbench), args.per_prompt)
    elif args.parti is not None:
        work = protocols.suite_work(prompts.read_parti(args.parti), args.per_prompt)
    else:
        cascade = loaded[0]
        level = protocols.level_of(cascade)
        work = protocols.scene_suite_work(
            level, args.per_category, args.per_prompt, args.seed, cascade.size
        )
    _run(args, loaded, work, settings(args), share)


def _captions_work(args: argparse.Namespace, side: int) -> Work:
    from imagen_jax.eval import coco, protocols

    if args.annotations is not None:
        if args.images is None:
            raise UserError("--annotations needs --images, the folder of the files it names")
        captions = coco.read_annotations(args.annotations, args.images, args.count, args.seed)
    else:
        captions = coco.read_tfds(args.tfds, args.data_dir, args.count, args.seed)
    return protocols.coco_work(captions, side)


def _coco(args: argparse.Namespace) -> None:
    with together(args) as share:
        _evaluate_coco(args, share)


def _evaluate_coco(args: argparse.Namespace, share: Share) -> None:
    from imagen_jax.eval.coco import PAPER_GUIDANCE

    loaded = _load(args)
    cascade = loaded[0]
    chosen = settings(args)
    chosen.setdefault("guidance", {cascade.stages[0].name: PAPER_GUIDANCE})
    _run(args, loaded, _captions_work(args, cascade.size), chosen, share)


def _sweep(args: argparse.Namespace) -> None:
    from imagen_jax.eval import protocols
    from imagen_jax.eval.sweep import CHART, TABLE, sweep
    from imagen_jax.eval.sweep_chart import draw
    from imagen_jax.extras import require

    require("plan", "imagen evaluate sweep")
    cascade, instruments = _load(args)
    if args.annotations is not None or args.tfds is not None:
        work = _captions_work(args, cascade.size)
    else:
        level = protocols.level_of(cascade)
        work = protocols.scene_caption_work(level, args.split, args.count, args.seed, cascade.size)
    varied = axes(args)
    names = [axis.name for axis in varied]
    along = args.along or next((a.name for a in varied if len(a.values) > 1), names[0])
    if along not in names:
        raise UserError(f"--along {along} is not swept over; choices: {', '.join(names)}")
    rows = sweep(
        cascade, work, instruments, args.output, varied, seed=args.seed, process=args.process
    )
    if not rows:
        print("no combination is done yet")
        return
    draw(rows, along, names, as_path(args.output) / CHART)
    print(f"{len(rows)} combinations in {args.output}/{TABLE}, curves in {args.output}/{CHART}")
