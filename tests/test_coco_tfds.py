"""Captions of a TensorFlow dataset, chosen for evaluation."""

from __future__ import annotations

from pathlib import Path

import pytest
from corpus_files import CAPTIONS, SIZE, pixels, write_tfds

from imagen_jax.eval import coco
from imagen_jax.eval.images import read_image


def test_captions_of_a_dataset_are_chosen_for_evaluation(tmp_path: Path) -> None:
    write_tfds(tmp_path)
    captions = coco.read_tfds("pairs:train", str(tmp_path), 3, 0)
    assert captions == coco.read_tfds("pairs:train", str(tmp_path), 3, 0)
    assert [len(captions.chosen), len(captions.rest)] == [3, 1]
    every = [c.image for c in captions.chosen] + captions.rest
    read = sorted(read_image(image, SIZE, "exact").tobytes() for image in every)
    assert read == sorted(pixels(n).tobytes() for n in range(4))
    for caption, image in captions.chosen:
        (n,) = (n for n in range(4)
                if (pixels(n) == read_image(image, SIZE, "exact")).all())  # fmt: skip
        assert caption == CAPTIONS[n]
    with pytest.raises(ValueError, match="'pairs' is not of the form NAME:SPLIT"):
        coco.read_tfds("pairs", str(tmp_path), 3, 0)
