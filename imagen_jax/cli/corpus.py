"""Arguments about a corpus, which several commands have."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from imagen_jax.buckets import SCHEME
from imagen_jax.cli.command import Arguments, add_encoder_files, positive
from imagen_jax.cli.status import show
from imagen_jax.data.choices import (
    CAPTIONS,
    CORPUS_KINDS,
    DAMAGED_FILES,
    FITS,
    LONG_CAPTIONS,
    STATES,
)
from imagen_jax.paths import as_path

if TYPE_CHECKING:
    from imagen_jax.data.corpora import Corpus

DEFAULT_SIZE = 64
"""As in embed.job."""
ENCODER_DTYPES = ("float32", "bfloat16")
"""As in text.encoder, which takes seconds to load; the first is the default."""
WHERE = (
    "a file, a folder, a pattern or several of them: images with captions in .txt or .json files "
    "beside them, Hugging Face's imagefolder, CSV, TSV, JSON, JSON lines, parquet, Arrow, COCO's "
    "annotations, tars of WebDataset, TFRecords, prepared datasets of TensorFlow Datasets; here or "
    "at an address that fsspec reads (gs://, s3://, https://)"
)
OPENING = (
    "kind", "image_key", "caption_key", "image_folder", "source_split", "encoding",
    "damaged_files", "data_dir",
)  # fmt: skip
"""Arguments that say how a corpus is read."""
EMBEDDING = ("fit", "long_captions", "captions", "states", "shards")
"""Arguments that say how it is embedded."""


def add_opening(group: Arguments) -> None:
    """Adds the arguments of OPENING; what is not given is None."""
    group.add_argument(
        "--kind",
        metavar="KIND",
        choices=CORPUS_KINDS,
        help="what the corpus is, where it is not recognised: "
        f"{', '.join(CORPUS_KINDS)} (which takes NAME:SPLIT)",
    )
    group.add_argument(
        "--image-key",
        metavar="NAME",
        help="column, key, feature or suffix of images (default: the first usual one, such as "
        "image, jpg, file_name)",
    )
    group.add_argument(
        "--caption-key",
        metavar="NAME",
        help="the same of captions; / goes into nested ones, as in captions/text (default: the "
        "first usual one, such as caption, txt, text)",
    )
    group.add_argument(
        "--image-folder",
        metavar="DIR",
        help="of tables: what paths of images are relative to (default: the table's folder)",
    )
    group.add_argument(
        "--source-split",
        metavar="NAME",
        help="of a corpus that has several splits: the one to read (default: train)",
    )
    group.add_argument(
        "--encoding",
        metavar="NAME",
        help="of captions and tables, such as utf-16, cp1252 or gbk (default: utf-8)",
    )
    group.add_argument(
        "--damaged-files",
        choices=DAMAGED_FILES,
        help="stop at damage in a file, or leave out what cannot be read, counted and listed; a "
        f"job that has stopped resumes where it is given then (default: {DAMAGED_FILES[0]})",
    )
    group.add_argument(
        "--data-dir", metavar="DIR", help="of kind tfds: where the dataset was prepared"
    )


def add_size(group: Arguments) -> None:
    """Adds --image-size and --fit."""
    group.add_argument(
        "--image-size",
        type=positive,
        metavar="PIXELS",
        help="side of the images, at least that of the last stage (default: 64, or that of the "
        "config's last stage, and then images are fitted by crop)",
    )
    group.add_argument(
        "--fit",
        choices=FITS,
        help="images of another size: leave them out, or reduce larger ones and crop them to the "
        "middle (default: crop without --image-size, else exact)",
    )


def add_embedding(group: Arguments) -> None:
    """Adds the arguments of EMBEDDING, --image-size and those of the text encoder's files."""
    add_size(group)
    group.add_argument(
        "--long-captions",
        choices=LONG_CAPTIONS,
        help="captions of more tokens than the language model takes: leave them out, or cut them "
        f"(default: {LONG_CAPTIONS[0]})",
    )
    group.add_argument(
        "--captions",
        choices=CAPTIONS,
        help="several captions of one image: an example each, or one example, of which training "
        f"draws another caption in every epoch (default: {CAPTIONS[0]})",
    )
    group.add_argument(
        "--states",
        choices=STATES,
        help=f"how token states are stored; int8 is half the size (default: {STATES[0]})",
    )
    group.add_argument(
        "--shards",
        type=positive,
        help="number of files to divide the examples into (default: one for 10,000 examples; of "
        "tars and TFRecords, as many as there are files, which is the most)",
    )
    add_encoder_files(group)
    group.add_argument(
        "--encoder-dtype",
        choices=ENCODER_DTYPES,
        default=ENCODER_DTYPES[0],
        help="of T5: what it computes in (default: %(default)s)",
    )


def is_corpus(where: Sequence[str]) -> bool:
    """Is it a corpus that `imagen train` is given, and nothing embedded?"""
    from imagen_jax.data.corpora import looks_like_corpus

    first = where[0]
    if "=" in first and all(
        holds_embeddings([part.rpartition("=")[0]]) for part in first.split(",")
    ):
        return False  # a mixture of them
    is_folder = _of_paths(first) and as_path(first).is_dir()
    return not holds_embeddings(where) if is_folder else looks_like_corpus(first)


def holds_embeddings(where: Sequence[str]) -> bool:
    """Is it a folder that `imagen embed` has written to?"""
    embedded = ("manifest.json", "progress")
    return _of_paths(where[0]) and any((as_path(where[0]) / name).exists() for name in embedded)


def _of_paths(where: str) -> bool:
    """Is it of this machine or of a bucket? Corpora may be elsewhere."""
    return "://" not in where or where.startswith((SCHEME, "file://"))


def open_given(
    args: argparse.Namespace, where: list[str], default_split: str, tell: bool = True
) -> Corpus:
    """The corpus that arguments name.

    Args:
      args: with the arguments of OPENING.
      where: places, or NAME:SPLIT of kind tfds.
      default_split: split to read from a corpus that has several.
      tell: say what it was taken for.
    """
    from imagen_jax.data.corpora import open_corpus

    options = {name: getattr(args, name) for name in OPENING if getattr(args, name) is not None}
    options["split"] = options.pop("source_split", default_split)
    corpus = open_corpus(where, **options)
    if tell:
        show(f"reading {corpus.summary}")
    return corpus


def embedding_options(args: argparse.Namespace) -> dict[str, Any]:
    """Options of `embed` that were given."""
    given = {name: getattr(args, name) for name in EMBEDDING if getattr(args, name) is not None}
    if "shards" in given:
        given["num_shards"] = given.pop("shards")
    return given


def print_outcome(manifest: dict[str, Any], split: str, output: str) -> None:
    """Says what was embedded, left out and changed, and what is all alike."""
    from imagen_jax.data.advice import advice_on
    from imagen_jax.embed.outcome import alike

    entry = manifest["splits"][split]
    print(f"{entry['examples']} examples in {output}")
    for what in ("dropped", "changed"):
        for reason, number in sorted(entry[what].items(), key=lambda item: -item[1]):
            advice = advice_on(reason)
            show(f"  {what}: {number} {reason}" + (f" ({advice})" if advice else ""))
    for remark in alike(output, entry):
        print(f"  note: {remark}")
