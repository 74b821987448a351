"""Captions of a validation set with their images: COCO's, or any in its form."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from imagen_jax.errors import UserError
from imagen_jax.files import given_file, parse_json
from imagen_jax.paths import as_path, those_there

PAPER_COUNT = 30_000
PAPER_GUIDANCE = 1.35
"""Of the base stage in zero-shot FID-30K; Saharia et al. 2022, table 1."""


class Captioned(NamedTuple):
    """A caption with its image: a file, or one as it is encoded."""

    caption: str
    image: Path | bytes


class Captions(NamedTuple):
    """Prompts to sample and their reference set.

    Attributes:
      chosen: as many captions as asked for, of different images, in the order of sampling.
      rest: images whose captions were not chosen, in random order: for real against real.
    """

    chosen: list[Captioned]
    rest: list[Path | bytes]


def read_annotations(path: str | Path, images: str | Path, count: int, seed: int) -> Captions:
    """Captions from a file in the form of captions_val2014.json.

    Images are put in random order; each of the first `count` gives its caption of the smallest
    id.

    Args:
      path: JSON with "images" (id, file_name) and "annotations" (image_id, id, caption).
      images: folder of the files.
      count: captions.
      seed: seed of the order.

    Raises:
      UserError: the file or one of the images is missing; another form, or fewer images with
        captions.
    """
    folder = as_path(images)
    with given_file(path, "file of captions") as local:
        content = parse_json(local.read_text(encoding="utf-8"), path)
    try:
        names = {int(image["id"]): str(image["file_name"]) for image in content["images"]}
        first: dict[int, tuple[int, str]] = {}
        for annotation in content["annotations"]:
            image, found = int(annotation["image_id"]), (int(annotation["id"]),
                                                         str(annotation["caption"]))  # fmt: skip
            first[image] = min(first.get(image, found), found)
        captioned = [
            Captioned(" ".join(text.split()), folder / names[image])
            for image, (_, text) in sorted(first.items())
        ]
    except (KeyError, TypeError) as error:
        raise UserError(
            f"{path} is not of the form of COCO's captions_val2014.json: {error!r}"
        ) from error
    images_of = [c.image for c in captioned if isinstance(c.image, Path)]
    there = those_there(images_of)
    missing = [path for path in images_of if path not in there]
    if missing:
        raise UserError(f"{len(missing)} images of {path} are missing: {missing[0]}")
    return choose(captioned, count, seed)


def read_tfds(name_and_split: str, data_dir: str | None, count: int, seed: int) -> Captions:
    """Captions from a prepared dataset of TensorFlow Datasets with "image" and "captions/text".

    Args:
      name_and_split: such as coco_captions/2014:val.
      data_dir: folder of the prepared dataset; None for TFDS's default.
      count, seed: as read_annotations.

    Raises:
      UserError: no such dataset, or fewer examples.
    """
    from imagen_jax.data.corpora.captions import captions_of
    from imagen_jax.data.corpora.tfds import TensorFlowDataset

    name, _, split = name_and_split.rpartition(":")
    if not name:
        raise UserError(f"{name_and_split!r} is not of the form NAME:SPLIT")
    dataset = TensorFlowDataset(name, split, "image", "captions/text", data_dir)
    rows = ((row.image, captions_of(row.captions)) for row in dataset.rows(0, len(dataset)))
    captioned = [
        Captioned(" ".join(captions[0].split()), image) for image, captions in rows if captions
    ]
    return choose(captioned, count, seed)


def choose(captioned: Sequence[Captioned], count: int, seed: int) -> Captions:
    """The first `count` in random order, and the images of the others.

    Raises:
      UserError: there are not so many, or a chosen caption is empty.
    """
    if not 2 <= count <= len(captioned):
        raise UserError(f"{count} captions of {len(captioned)}; choose 2 to {len(captioned)}")
    order = np.random.default_rng(seed).permutation(len(captioned))
    chosen = [captioned[int(i)] for i in order[:count]]
    if empty := sum(not example.caption for example in chosen):
        raise UserError(f"{empty} of the chosen captions are empty")
    return Captions(chosen, [captioned[int(i)].image for i in order[count:]])
