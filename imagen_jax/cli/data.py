"""`imagen data`: the built-in images, and what is in embedding directories."""

from __future__ import annotations

import argparse
import textwrap

from imagen_jax.cli.command import Commands, add_scenes, add_seed, command, positive
from imagen_jax.cli.corpus import (
    DEFAULT_SIZE,
    WHERE,
    add_opening,
    add_size,
    holds_embeddings,
    open_given,
)
from imagen_jax.cli.status import show
from imagen_jax.data.choices import FITS
from imagen_jax.errors import UserError
from imagen_jax.files import atomic_path, new_file


def add_command(commands: Commands) -> None:
    """Adds the command to the parser of `imagen`."""
    parser = command(
        commands,
        "data",
        "look at images: built-in or embedded ones; fetch more of them",
        """
        The built-in scenes, sprites on coloured backgrounds with captions of a small grammar; and
        reports on what was embedded.""",
        """
        imagen data show --scenes quickstart --output sheet.png
        imagen data show --scenes demo --split heldout --output heldout.png
        imagen data fetch
        imagen data words
        imagen data inspect runs/quickstart/embeddings --output report.html""",
    )
    actions = parser.add_subparsers(metavar="ACTION", required=True)
    show = command(
        actions,
        "show",
        "a contact sheet with captions",
        "Writes a contact sheet of scenes with their captions.",
        """
        imagen data show --scenes quickstart --output sheet.png
        imagen data show --scenes full --split heldout --count 12 --size 256 --output heldout.png
        imagen data show --scenes demo --seed 3 --output other.png""",
    )
    add_scenes(show)
    show.add_argument("--output", metavar="PNG", required=True, help="the file to write")
    show.add_argument(
        "--count", type=positive, default=24, help="number of scenes (default: %(default)s)"
    )
    show.add_argument(
        "--split",
        choices=("train", "heldout"),
        default="train",
        help="compositions for training, or those kept from it (default: %(default)s)",
    )
    show.add_argument(
        "--size",
        type=positive,
        default=128,
        metavar="PIXELS",
        help="side of each image, at most 1024 (default: %(default)s)",
    )
    add_seed(show, "of the scenes")
    show.set_defaults(run=_show)
    fetch = command(
        actions,
        "fetch",
        "the full sets of emoji art",
        """
        Fetches the full sets of emoji art in both styles, Noto (Apache-2.0) and Fluent flat (MIT),
        of which a small choice comes with this package, into the cache of this machine
        (~/.cache/imagen-jax). Needs npm and a network.""",
        """
        imagen data fetch
        imagen data show --scenes emoji --output sheet.png
        imagen embed --scenes emoji --count 200000 --output runs/emoji/embeddings""",
    )
    fetch.set_defaults(run=_fetch)
    words = command(
        actions,
        "words",
        "the words that a cascade was trained with",
        """
        Lists what a cascade trained on scenes knows by name: things, colours, backgrounds, styles,
        relations, sizes and counts. Other words may do, as far as the language model takes them
        for these.""",
        """
        imagen data words
        imagen data words --workdir runs/demo""",
    )
    words.add_argument(
        "--workdir",
        metavar="DIR",
        help="of `imagen train`, or an exported cascade (default: the pretrained demo cascade)",
    )
    words.set_defaults(run=_words)
    inspect = command(
        actions,
        "inspect",
        "a look at a corpus, or a report on an embedding directory",
        """
        Says what a corpus is taken for, and what embedding it would give: counts, sizes, formats,
        captions of an image, colour profiles, what would be left out and why; with --output also
        examples as training would see them. Of what `imagen embed` wrote it writes a report:
        counts, sizes, what was left out and why, lengths of captions, and examples. One HTML file,
        for any browser.""",
        """
        imagen data inspect photos/
        imagen data inspect captions.csv --image-size 128 --output look.html
        imagen data inspect runs/quickstart/embeddings --output report.html""",
    )
    inspect.add_argument(
        "where", metavar="WHERE", nargs="+", help=f"what `imagen embed` wrote, or a corpus: {WHERE}"
    )
    inspect.add_argument(
        "--output", metavar="HTML", help="the file to write; of embeddings it must be given"
    )
    inspect.add_argument(
        "--count",
        type=positive,
        default=1000,
        help="of a corpus: most examples to look at (default: %(default)s)",
    )
    add_size(inspect)
    add_opening(inspect.add_argument_group("how a corpus is read"))
    inspect.set_defaults(run=_inspect)


def _show(args: argparse.Namespace) -> None:
    from imagen_jax.data.scenes.levels import get_level
    from imagen_jax.data.scenes.sheet import contact_sheet

    output = new_file(args.output, ".png")
    level = get_level(args.scenes)
    sheet = contact_sheet(level, args.split, args.seed, args.count, args.size)
    with atomic_path(output, new=True) as temporary:
        sheet.save(temporary, format="png")
    print(f"{args.count} scenes in {args.output}")


def _fetch(args: argparse.Namespace) -> None:
    from imagen_jax.data.scenes.art import fetch_full_set, fetched_set

    try:
        counts = fetch_full_set()
    except RuntimeError as error:  # npm is missing or has failed: for the user to mend
        raise UserError(error) from error
    drawn = ", ".join(f"{count} of {style}" for style, count in counts.items())
    print(f"emoji in {fetched_set()}: {drawn}")


def _words(args: argparse.Namespace) -> None:
    from imagen_jax.checkpoints.cascades import open_cascade
    from imagen_jax.data.scenes.hints import words_of_source

    words = words_of_source(open_cascade(args.workdir).source.get("train", {}))
    if words is None:
        raise UserError("this cascade was not trained on scenes; the words it knows are not listed")
    for kind, listed in vars(words).items():
        if listed:
            print(f"{kind} ({len(listed)}):")
            print(
                textwrap.fill(", ".join(listed), 100, initial_indent="  ", subsequent_indent="  ")
            )


def _inspect(args: argparse.Namespace) -> None:
    from imagen_jax.extras import require

    require("train", "imagen data inspect")
    output = None if args.output is None else new_file(args.output)
    if args.kind is not None or not holds_embeddings(args.where):
        from imagen_jax.data.preview import lines_of, preview, write_preview

        fit = args.fit or (FITS[1] if args.image_size is None else FITS[0])
        corpus = open_given(args, args.where, "train", tell=False)
        found = preview(corpus, args.image_size or DEFAULT_SIZE, fit, args.count)
        show("\n".join(lines_of(found)))
        if output is not None:
            write_preview(found, output)
            print(f"examples in {args.output}")
        return
    from imagen_jax.data.report import write_report

    if output is None:
        raise UserError("--output is missing: the HTML file with the report on these embeddings")
    read = write_report(args.where[0], output)
    print(f"{args.output}: from {read} examples")
