"""`imagen sample`: prompts to images, and images to images. Imports neither TensorFlow nor
seqio."""

from __future__ import annotations

import argparse
import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from imagen_jax.cli.command import (
    Commands,
    add_lora,
    add_workdir,
    command,
    number,
    positive,
    seed,
)
from imagen_jax.cli.hosts import Share, add_multi_host, own_devices, together
from imagen_jax.cli.settings import SETTINGS, add_settings, add_sweep, axes, per_stage, settings
from imagen_jax.cli.signals import signals
from imagen_jax.errors import UserError
from imagen_jax.files import only_writer, output_folder, read_text

if TYPE_CHECKING:
    import numpy as np

    from imagen_jax.cascade import Cascade, Folder, Request


def add_command(commands: Commands) -> None:
    """Adds the command to the parser of `imagen`."""
    parser = command(
        commands,
        "sample",
        "prompts -> images; or an image edited, enlarged or repeated",
        """
        Makes images of prompts: one labelled grid, and one file for each image that says in its
        metadata how it was made. metadata.csv has their prompts, so that the folder is a corpus.
        Without --workdir the pretrained demo cascade is used. What is not said here is taken from
        the config of the cascade. Nothing is overwritten; Ctrl-C keeps the images that are done,
        and the same command resumes.
        """,
        """
        imagen sample "a drawing of a red apple left of a dog on a blue background" --per-prompt 4
        imagen sample --prompts prompts.txt --negative "a flat icon" --guidance base=4 --size 64x96
        imagen sample "a green star" --sweep guidance=1,2,4,8 --sweep threshold=none,static,dynamic
            the same noise under all of these settings, as one grid
        imagen sample "a flat icon of a red car" --image photo.png --mask mask.png --crop
            repaints what is white in the mask; --strength 0.3 in its place keeps only the rough
            shapes, and --image alone enlarges a small image
        imagen sample --from samples/0003.png --output again
            the same image again, from what its file says
        imagen sample --prompts prompts.txt --output /shared/samples --multi-host
            on every host of a TPU pod, a GKE job or a Slurm job, each of which makes its share""",
    )
    parser.add_argument("prompt", nargs="*", help="what the image shows; quote each prompt")
    parser.add_argument(
        "--prompts",
        metavar="FILE",
        help="more prompts, one on each line; lines that begin with # are comments",
    )
    parser.add_argument(
        "--negative", metavar="TEXT", help="what the images are guided away from, needs guidance"
    )
    parser.add_argument("--per-prompt", type=positive, metavar="N", help="images of each prompt, "
                        "of seeds that follow one another (default: 1)")  # fmt: skip
    parser.add_argument(
        "--seed",
        type=seed,
        help="of the noise; the same seed gives the same image (default: 0)",
    )
    parser.add_argument(
        "--size",
        type=size,
        metavar="SIDE|HEIGHTxWIDTH",
        help="of the images, in pixels (default: what the cascade was trained for)",
    )
    parser.add_argument(
        "--blend-with",
        metavar="PROMPT",
        help="also the texts between each prompt and this one, of as many tokens",
    )
    parser.add_argument(
        "--blends",
        type=positive,
        metavar="N",
        help="images from one prompt to the other (default: 5)",
    )
    add_sweep(parser, "all of these values, from the same noise; twice for rows and columns")
    parser.add_argument(
        "--from",
        dest="repeated",
        metavar="IMAGE",
        help="make this image again, from its metadata; what was edited must be given again",
    )
    _add_editing(parser)
    add_settings(parser)
    where = parser.add_argument_group("where, and on what")
    add_workdir(where)
    add_lora(where)
    where.add_argument(
        "--output",
        metavar="DIR",
        help="folder of the images; one with images of another run is refused (default: samples, "
        "or samples-2 and so on where that is taken)",
    )
    where.add_argument(
        "--format",
        choices=("png", "webp"),
        default="png",
        help="of their files, both without loss (default: %(default)s)",
    )
    where.add_argument(
        "--batch-size",
        type=positive,
        metavar="N",
        help="most images made at once (default: 16 on each device, fewer of more than 256 pixels)",
    )
    add_multi_host(where, "share the images out")
    where.add_argument(
        "--dtype",
        choices=("float32", "bfloat16"),
        help="of weights and activations (default: float32 weights, activations as in the config)",
    )
    where.add_argument(
        "--low-memory",
        action="store_true",
        help="load the text encoder and each stage when its turn comes, and free it after",
    )
    where.add_argument(
        "--no-safety-checker",
        action="store_true",
        help="leave out the safety checker of a cascade that has one, as those of imagen import "
        "deepfloyd; what you show to others is then yours to check",
    )
    parser.set_defaults(run=run)


def _add_editing(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("editing and enlarging")
    group.add_argument("--image", metavar="FILE", help="an image; by itself, it is enlarged")
    group.add_argument(
        "--strength",
        type=per_stage(number),
        metavar="S",
        help="img2img strength in (0, 1]: near 0 keeps the image, 1 ignores it",
    )
    group.add_argument("--mask", metavar="FILE", help="repaint the image where this one is white")
    group.add_argument(
        "--resamples",
        type=positive,
        metavar="N",
        help="with a mask: walks of every step; more fits better, and takes longer (default: 1)",
    )
    group.add_argument(
        "--crop",
        action="store_true",
        help="cut image and mask to the middle part that has the shape of --size",
    )
    group.add_argument(
        "--start-stage", metavar="NAME", help="the first that runs (default: the first that can)"
    )


def size(text: str) -> int | tuple[int, int]:
    """Type of --size: a side, or HEIGHTxWIDTH."""
    match = re.fullmatch(r"(\d+)(?:x(\d+))?", text)
    if match is None:
        raise argparse.ArgumentTypeError(f"must be SIDE or HEIGHTxWIDTH in pixels, got {text!r}")
    return int(match[1]) if match[2] is None else (int(match[1]), int(match[2]))


def run(args: argparse.Namespace) -> None:
    """Do what the parsed arguments say."""
    prompts = [] if args.repeated else read_prompts(args.prompt, args.prompts)
    if args.repeated:
        _check_nothing_else(args)
    if args.multi_host is not None and (args.output is None or args.low_memory):
        raise UserError("--multi-host needs --output, one folder for all hosts, and excludes "
                        "--low-memory: hosts read checkpoints together")  # fmt: skip
    image, mask = _read_images(args)
    with together(args) as share:
        _sample(args, share, prompts, image, mask)


def _sample(
    args: argparse.Namespace,
    share: Share,
    prompts: Sequence[str],
    image: np.ndarray | None,
    mask: np.ndarray | None,
) -> None:
    """Make this process's share of the images, and the first one the grid of all."""
    if args.output is not None and not share.joined and output_folder(args.output).is_dir():
        with only_writer(args.output, "imagen sample"):
            pass  # another run there is told before weights are loaded
    from imagen_jax.cascade import Cascade, Folder, count_black, read_record, repeat

    record = read_record(args.repeated) if args.repeated else {}
    cascade = Cascade.load(
        args.workdir,
        args.encoder_weights,
        args.vocabulary,
        lora=args.lora,
        dtype=record.get("dtype") if args.repeated else args.dtype,
        low_memory=args.low_memory,
        lazy=True,
        mesh=own_devices() if share.joined else None,
        safety_checker=not args.no_safety_checker,
    )
    if args.repeated:
        requests = [repeat(cascade, record, image, mask)]
    else:
        requests = _requests(args, cascade, prompts, image, mask)
    if args.output is None:
        folder = Folder.unused("samples", requests, args.format)
    else:
        folder = Folder(args.output, requests, args.format, (share.index, share.count))
    with folder:
        cascade.load_rest()
        with signals() as ending:
            try:
                folder.make(cascade, batch_size=args.batch_size)
            except KeyboardInterrupt:
                ending.set()
                args.when_interrupted = folder.interrupted()
                raise
        if not share.finishes():
            print(f"{len(folder.written)} images of this host are done")
            return
        folder.save_captions()
        grids = _draw(args, folder, prompts)
    resumed = len(folder.paths) - len(folder.written)
    there = f", {resumed} of them from before" * (resumed > 0 and not share.joined)
    if len(folder.paths) == 1:
        print(f"1 image in {folder.directory}{there}, with its prompt in {grids}")
    else:
        print(f"{len(folder.paths)} images in {folder.directory}{there}, together in {grids}")
    if any(black := folder.black()):
        print(count_black(black))


def _requests(
    args: argparse.Namespace,
    cascade: Cascade,
    prompts: Sequence[str],
    image: np.ndarray | None,
    mask: np.ndarray | None,
) -> list[Request]:
    """Return what is asked for: one request, or with --sweep one for each image."""
    asked: dict[str, Any] = {
        "negative_prompts": args.negative,
        "size": args.size,
        "strength": args.strength,
        "resamples": args.resamples,
        "start_stage": args.start_stage,
        "seed": args.seed,
        "image": image,
        "mask": mask,
    }
    given = {name: value for name, value in asked.items() if value is not None}
    given.update(settings(args))
    if not args.sweep:
        blends = blended(prompts, args.blend_with, args.blends)
        return [cascade.request(blends, per_prompt=args.per_prompt or 1, **given)]
    from imagen_jax.cascade import combinations
    from imagen_jax.cascade.sweep import check_not_given

    if args.blend_with or args.per_prompt:
        raise UserError("--sweep makes one image of each prompt and setting; leave out "
                        "--blend-with and --per-prompt")  # fmt: skip
    if len(args.sweep) > 2:
        raise UserError(f"--sweep was given {len(args.sweep)} times; a grid has rows and columns")
    check_not_given(axes(args), given)
    return [
        cascade.request([prompt], **given | combination.settings)
        for prompt in prompts
        for combination in combinations(axes(args))
    ]


def _draw(args: argparse.Namespace, folder: Folder, prompts: Sequence[str]) -> Path:
    """Write the grid, or with --sweep one for each prompt; return the path of the last."""
    if not args.sweep:
        return folder.save_grid()
    from imagen_jax.cascade import combinations
    from imagen_jax.cascade.sweep import label_of

    labels = [label_of(combination.values) for combination in combinations(axes(args))]
    for i in range(len(prompts)):
        name = "grid.png" if len(prompts) == 1 else f"grid_{i:04d}.png"
        path = folder.draw_grid(name, i * len(labels), labels, len(axes(args)[-1].values))
    return path


def blended(prompts: Sequence[str], other: str | None, count: int | None) -> list[Any]:
    """The prompts, or for each of them `count` blends from it to the other one.

    Raises:
      UserError: a count without another prompt, or below 2.
    """
    if other is None:
        if count is not None:
            raise UserError("--blends needs --blend-with")
        return list(prompts)
    from imagen_jax.cascade import Blend

    count = 5 if count is None else count
    if count < 2:
        raise UserError(f"--blends must be at least 2, from one prompt to the other; got {count}")
    return [Blend(p, other, i / (count - 1)) for p in prompts for i in range(count)]


def _read_images(args: argparse.Namespace) -> tuple[np.ndarray | None, np.ndarray | None]:
    if args.mask and not args.image:
        raise UserError("--mask says where --image is repainted, but there is no --image")
    if args.crop and not args.image:
        raise UserError("--crop is of --image, but there is no --image")
    if not args.image:
        return None, None
    from imagen_jax.cascade import crop_to, read_image, read_mask

    image = read_image(args.image)
    mask = read_mask(args.mask) if args.mask else None
    if mask is not None and mask.shape != image.shape[:2]:
        raise UserError(
            f"the mask has {mask.shape[0]} x {mask.shape[1]} pixels, the image {image.shape[0]} x "
            f"{image.shape[1]}; they must be of one size"
        )
    if args.crop:
        shape = args.size if isinstance(args.size, tuple) else (1, 1)
        image = crop_to(image, shape)
        mask = None if mask is None else crop_to(mask, shape)
    return image, mask


def _check_nothing_else(args: argparse.Namespace) -> None:
    """An image is repeated as it was: other arguments would change it."""
    names = (
        "prompt", "prompts", "negative", "per_prompt", "seed", "size", "blend_with", "blends",
        "sweep", "strength", "resamples", "start_stage", "dtype", *SETTINGS,
    )  # fmt: skip
    given = [name for name in names if getattr(args, name) not in (None, [])]
    if given:
        flags = ["--" + name.replace("_", "-") if name != "prompt" else "prompts" for name in given]
        shown = ", ".join(flags)
        raise UserError(f"--from repeats an image as it was made; leave out {shown}")


def read_prompts(prompts: Sequence[str], file: str | None) -> list[str]:
    """Prompts of the command line, then those of a file: one a line, without blank lines and those
    that begin with #.

    Raises:
      UserError: a prompt without a word, no prompt at all, or a file that is not there or no text.
    """
    prompts = [prompt.strip() for prompt in prompts]
    if "" in prompts:
        raise UserError(f"prompt {prompts.index('') + 1} is empty: say what the image shows")
    if file is not None:
        lines = [line.strip() for line in re.split("[\r\n]+", read_text(file, "list of prompts"))]
        prompts += [line for line in lines if line and not line.startswith("#")]
    if file is not None and not prompts:
        raise UserError(f"{file} has no prompts: it is to have one on each line")
    if not prompts:
        raise UserError('no prompt: give one or more, as in imagen sample "a red apple"')
    return prompts
