"""Import of DeepFloyd IF's safety_checker/ and watermarker/, in diffusers' layout."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from imagen_jax.checkpoints.diffusers_files import Lazy, Tensors, open_weights, write_tensors
from imagen_jax.checkpoints.safety import CHECKER, WATERMARK, Safety
from imagen_jax.errors import UserError
from imagen_jax.files import atomic_path, read_json

CHECKER_FOLDER, WATERMARK_FOLDER = "safety_checker", "watermarker"
PREPROCESSOR = Path("feature_extractor", "preprocessor_config.json")
MARK = "watermark_image"
SIDE = 62
"""Pixels per side of the watermark."""
UNREAD = ("vision_model.vision_model.embeddings.position_ids",)
"""Tensors of older files that are no weights: 0, 1, 2 and so on."""
VISION = {
    "hidden_size": 768,
    "intermediate_size": 3072,
    "projection_dim": 512,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "image_size": 224,
    "patch_size": 32,
}
"""Sizes in vision_config, with the values of transformers for what a config leaves out."""
ACTIVATIONS = ("quick_gelu", "gelu")
PREPROCESSING = {
    "do_center_crop": True,
    "do_normalize": True,
    "do_resize": True,
    "image_mean": [0.48145466, 0.4578275, 0.40821073],
    "image_std": [0.26862954, 0.26130258, 0.27577711],
    "resample": 3,
}
"""Of CLIP: bicubic, the middle square, mean and deviation of its training images."""


class SafetyParts:
    """Safety checker and watermark, as far as the folders of an import have them.

    Attributes:
      safety: what the cascade gets, with names for paths; None if there is neither.
    """

    def __init__(self, folders: Sequence[Path], variant: str | None) -> None:
        """Opens and checks the files.

        Args:
          folders: folders of pipelines; each of both is taken from the first that has it.
          variant: variant of the weights, where they have it.

        Raises:
          UserError: files are missing, damaged, quantised or pickled, or of something else.
        """
        self._checker, self._mark = (
            next((root / name for root in folders if (root / name).is_dir()), None)
            for name in (CHECKER_FOLDER, WATERMARK_FOLDER)
        )
        heads, activation = 1, ""
        checker = mark = None
        if self._checker is not None:
            self._weights, heads, activation = _open_checker(self._checker, variant)
            checker = Path(CHECKER)
        if self._mark is not None:
            self._image = _read_mark(self._mark, variant)
            mark = Path(WATERMARK)
        self.safety = Safety(checker, heads, activation, mark) if checker or mark else None

    def said(self) -> str:
        """Return in one line what was found."""
        checker = f"found in {self._checker}" if self._checker else "not found, images go unchecked"
        mark = f"found in {self._mark}" if self._mark else "not found, images get none"
        return f"safety checker: {checker}; watermark: {mark}"

    def names(self) -> list[str]:
        """Return the names of the files that `write` makes."""
        return [] if self.safety is None else [path.name for path in self.safety.files]

    def write(self, paths: Sequence[Path]) -> None:
        """Write the files of the cascade.

        Args:
          paths: for each of `names`.
        """
        for path in paths:
            with atomic_path(path) as temporary, open(temporary, "wb") as file:
                if path.name == CHECKER:
                    write_tensors(file, _lazy(self._weights))
                else:
                    Image.fromarray(self._image, "RGBA").save(file, "PNG")


def _lazy(weights: Tensors) -> Iterator[Lazy]:
    for name in sorted(weights.shapes):
        read = functools.partial(weights.read_finite, name)
        yield name, weights.dtype(name), weights.shapes[name], read


def _open_checker(folder: Path, variant: str | None) -> tuple[Tensors, int, str]:
    """Return weights, heads and activation of a safety checker."""
    where = folder / "config.json"
    vision = read_json(where, "config of a safety checker").get("vision_config")
    if not isinstance(vision, dict):
        raise UserError(f"{where} has no vision_config; IF's safety checker is a CLIP with heads")
    sizes = {name: vision.get(name, value) for name, value in VISION.items()}
    for name, value in sizes.items():
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            raise UserError(f"{where}: {name} is {value!r}; it must be a whole number from 1")
    activation = vision.get("hidden_act", ACTIVATIONS[0])
    if activation not in ACTIVATIONS:
        raise UserError(f"{where}: hidden_act is {activation!r}; choices: {', '.join(ACTIVATIONS)}")
    if sizes["hidden_size"] % sizes["num_attention_heads"]:
        raise UserError(f"{where}: hidden_size is no multiple of num_attention_heads")
    _check_preprocessing(folder.parent / PREPROCESSOR, sizes["image_size"])
    weights = open_weights(folder, variant, stem="model", fall_back=True, unread=UNREAD)
    wanted = _shapes(sizes)
    wrong = [
        f"{name} {list(shape)} has no place" if name not in wanted
        else f"{name} is {list(shape)}, not {list(wanted[name])}"
        for name, shape in weights.shapes.items() if wanted.get(name) != shape
    ] + [f"nothing for {name}" for name in wanted if name not in weights.shapes]  # fmt: skip
    if wrong:
        raise UserError(
            f"the weights in {folder} do not fit its config.json ({len(wrong)} differences): "
            + "; ".join(wrong[:5])
        )
    return weights, sizes["num_attention_heads"], activation


def _shapes(sizes: Mapping[str, int]) -> dict[str, tuple[int, ...]]:
    """Return the shapes of all weights of a safety checker."""
    width, inner, features, layers, _, side, patch = sizes.values()

    def dense(name: str, out: int, of: int) -> dict[str, tuple[int, ...]]:
        return {f"{name}.weight": (out, of), f"{name}.bias": (out,)}

    def norm(name: str) -> dict[str, tuple[int, ...]]:
        return {f"{name}.weight": (width,), f"{name}.bias": (width,)}

    tower = "vision_model.vision_model"
    shapes: dict[str, tuple[int, ...]] = {
        f"{tower}.embeddings.class_embedding": (width,),
        f"{tower}.embeddings.patch_embedding.weight": (width, 3, patch, patch),
        f"{tower}.embeddings.position_embedding.weight": ((side // patch) ** 2 + 1, width),
        "vision_model.visual_projection.weight": (features, width),
    }
    shapes |= norm(f"{tower}.pre_layrnorm") | norm(f"{tower}.post_layernorm")
    shapes |= dense("p_head", 1, features) | dense("w_head", 1, features)
    for i in range(layers):
        layer = f"{tower}.encoder.layers.{i}"
        shapes |= norm(f"{layer}.layer_norm1") | norm(f"{layer}.layer_norm2")
        for name in ("q", "k", "v", "out"):
            shapes |= dense(f"{layer}.self_attn.{name}_proj", width, width)
        shapes |= dense(f"{layer}.mlp.fc1", inner, width)
        shapes |= dense(f"{layer}.mlp.fc2", width, inner)
    return shapes


def _check_preprocessing(path: Path, side: int) -> None:
    """Raise UserError if images are brought to the checker in another way than to CLIP."""
    if not path.is_file():
        return
    found = read_json(path, "config of a feature extractor")
    square = {"height": side, "width": side}
    choices: dict[str, tuple[Any, ...]] = {key: (value,) for key, value in PREPROCESSING.items()}
    choices["size"] = (side, {"shortest_edge": side})
    choices["crop_size"] = (side, square)
    for key, values in choices.items():
        if (value := found.get(key, values[0])) not in values:
            raise UserError(f"{path}: {key} is {value!r}, and CLIP's is {values[-1]!r}")


def _read_mark(folder: Path, variant: str | None) -> np.ndarray:
    """Return a watermark as RGBA, [62, 62, 4] uint8."""
    weights = open_weights(folder, variant, fall_back=True, dtypes=("F16", "F32", "U8"))
    if weights.shapes != {MARK: (SIDE, SIDE, 4)}:
        raise UserError(
            f"the file in {folder} holds {weights.shapes}; a watermark is {MARK} "
            f"[{SIDE}, {SIDE}, 4]"
        )
    values = weights.read_finite(MARK)
    if values.min() < 0 or values.max() > 255:
        raise UserError(f"the watermark in {folder} has values that are not in 0 ... 255")
    return values.astype(np.uint8)
