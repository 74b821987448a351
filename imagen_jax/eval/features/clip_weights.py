"""Reads CLIP from a directory in the layout of Hugging Face or of open_clip.

  config.json              model.safetensors              transformers' CLIPModel
  open_clip_config.json    open_clip_model.safetensors    open_clip
and in both tokenizer.json, the tokenizer.
"""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from imagen_jax.errors import UserError
from imagen_jax.eval.features.clip import ACTIVATIONS, Params, Sizes
from imagen_jax.eval.features.tensors import read_tensors
from imagen_jax.files import read_json
from imagen_jax.paths import as_path
from imagen_jax.text.tokenizer import read_tokenizer

TOKENIZER = "tokenizer.json"
LAYOUTS: dict[str, tuple[str, ...]] = {
    "config.json": ("model.safetensors", "pytorch_model.bin"),
    "open_clip_config.json": ("open_clip_model.safetensors", "open_clip_pytorch_model.bin"),
}
"""Config -> names of weights beside it, in order of preference."""


class Clip(NamedTuple):
    """CLIP as read.

    Attributes:
      name: such as clip-vit-l-14, of the sizes of its vision transformer.
      params, sizes: arguments of clip.encode_images.
      image_size: side of the images.
      length: tokens of a text.
      tokenize: texts -> ids [n, length] int32.
      sha256: of the file of weights.
    """

    name: str
    params: Params
    sizes: Sizes
    image_size: int
    length: int
    tokenize: Callable[[Sequence[str]], np.ndarray]
    sha256: str


def read_clip(directory: str | Path) -> Clip:
    """Reads weights, sizes and tokenizer.

    Raises:
      UserError: a file is missing; names what is looked for; weights of another network or layout.
    """
    directory = as_path(directory)
    for config_name, weight_names in LAYOUTS.items():
        paths = [directory / name for name in weight_names if (directory / name).is_file()]
        if (directory / config_name).is_file() and paths:
            break
    else:
        wanted = "; or ".join(f"{c} and {' or '.join(w)}" for c, w in LAYOUTS.items())
        raise UserError(f"{directory} holds no CLIP: looked for {wanted}")
    config = read_json(directory / config_name, "config of CLIP")
    tensors, digest = read_tensors(paths[0])
    read = _Reader(tensors, paths[0])
    params, sizes = (_read_hf if config_name == "config.json" else _read_open_clip)(read, config)
    if sizes.activation not in ACTIVATIONS:
        raise UserError(
            f"{directory / config_name}: activation {sizes.activation!r} is not known; choices: "
            f"{', '.join(ACTIVATIONS)}"
        )
    position, patch = params["vision"]["position"], params["vision"]["patch"].shape[0]
    size = patch * round((len(position) - 1) ** 0.5)
    length = len(params["text"]["position"])
    width = position.shape[-1]
    tower = {768: "b", 1024: "l", 1280: "h", 1408: "g", 1664: "bigg"}.get(width, f"w{width}")
    name = f"clip-vit-{tower}-{patch}" + ("" if size == 224 else f"-{size}")
    tokenize = _tokenizer(directory, length, len(params["text"]["token"]))
    return Clip(name, params, sizes, size, length, tokenize, digest)


class _Reader:
    """Tensors by name, in float32; dense kernels as [in, out]."""

    def __init__(self, tensors: Mapping[str, np.ndarray], path: Path):
        self._tensors, self._path = tensors, path

    def __call__(self, name: str) -> np.ndarray:
        if name not in self._tensors:
            raise UserError(f"{self._path} has no tensor {name!r}: no CLIP ViT of this layout")
        return np.asarray(self._tensors[name], np.float32)

    def __contains__(self, name: str) -> bool:
        return name in self._tensors

    def dense(self, name: str) -> tuple[np.ndarray, np.ndarray]:
        return self(f"{name}.weight").T, self(f"{name}.bias")

    def norm(self, name: str) -> tuple[np.ndarray, np.ndarray]:
        return self(f"{name}.weight"), self(f"{name}.bias")


def _blocks(read: _Reader, prefix: str, block: Callable[[str], Params], probe: str) -> list[Params]:
    count = 0
    while f"{prefix}.{count}.{probe}" in read:
        count += 1
    if count == 0:
        read(f"{prefix}.0.{probe}")  # says what is missing
    return [block(f"{prefix}.{i}") for i in range(count)]


def read_image_tower(tensors: Mapping[str, np.ndarray], path: Path) -> Params:
    """Params of clip.encode_images alone, from tensors named as transformers names them.

    Args:
      tensors: by name, such as "vision_model.embeddings.class_embedding".
      path: their file, for messages.

    Raises:
      UserError: one is missing.
    """
    return {"vision": _read_hf_vision(_Reader(tensors, path))}


def _read_hf_block(read: _Reader, name: str) -> Params:
    attention = f"{name}.self_attn"
    return {
        "norm_attention": read.norm(f"{name}.layer_norm1"),
        "q": read.dense(f"{attention}.q_proj"),
        "k": read.dense(f"{attention}.k_proj"),
        "v": read.dense(f"{attention}.v_proj"),
        "out": read.dense(f"{attention}.out_proj"),
        "norm_mlp": read.norm(f"{name}.layer_norm2"),
        "wi": read.dense(f"{name}.mlp.fc1"),
        "wo": read.dense(f"{name}.mlp.fc2"),
    }


def _read_hf_vision(read: _Reader) -> Params:
    name, block = "vision_model", functools.partial(_read_hf_block, read)
    return {
        "patch": read(f"{name}.embeddings.patch_embedding.weight").transpose(2, 3, 1, 0),
        "class": read(f"{name}.embeddings.class_embedding"),
        "position": read(f"{name}.embeddings.position_embedding.weight"),
        "norm_in": read.norm(f"{name}.pre_layrnorm"),
        "blocks": _blocks(read, f"{name}.encoder.layers", block, "layer_norm1.weight"),
        "norm_out": read.norm(f"{name}.post_layernorm"),
        "projection": read("visual_projection.weight").T,
    }


def _read_hf(read: _Reader, config: Mapping[str, Any]) -> tuple[Params, Sizes]:
    text, block = "text_model", functools.partial(_read_hf_block, read)
    params = {
        "vision": _read_hf_vision(read),
        "text": {
            "token": read(f"{text}.embeddings.token_embedding.weight"),
            "position": read(f"{text}.embeddings.position_embedding.weight"),
            "blocks": _blocks(read, f"{text}.encoder.layers", block, "layer_norm1.weight"),
            "norm_out": read.norm(f"{text}.final_layer_norm"),
            "projection": read("text_projection.weight").T,
        },
    }
    # What a config of transformers leaves out has the value of CLIP ViT-B/32.
    of_vision, of_text = (config.get(f"{tower}_config") or {} for tower in ("vision", "text"))
    activations = {tower.get("hidden_act", "quick_gelu") for tower in (of_vision, of_text)}
    if len(activations) > 1:
        raise UserError(f"the two towers have different activations: {sorted(activations)}")
    heads = of_vision.get("num_attention_heads", 12), of_text.get("num_attention_heads", 8)
    return params, Sizes(*heads, activations.pop())


def _read_open_clip(read: _Reader, config: Mapping[str, Any]) -> tuple[Params, Sizes]:
    def block(name: str) -> Params:
        kernels = np.split(read(f"{name}.attn.in_proj_weight"), 3)
        biases = np.split(read(f"{name}.attn.in_proj_bias"), 3)
        return {
            "norm_attention": read.norm(f"{name}.ln_1"),
            **{key: (w.T, b) for key, w, b in zip("qkv", kernels, biases, strict=True)},
            "out": read.dense(f"{name}.attn.out_proj"),
            "norm_mlp": read.norm(f"{name}.ln_2"),
            "wi": read.dense(f"{name}.mlp.c_fc"),
            "wo": read.dense(f"{name}.mlp.c_proj"),
        }

    params: dict[str, Any] = {
        "vision": {
            "patch": read("visual.conv1.weight").transpose(2, 3, 1, 0),
            "class": read("visual.class_embedding"),
            "position": read("visual.positional_embedding"),
            "norm_in": read.norm("visual.ln_pre"),
            "blocks": _blocks(read, "visual.transformer.resblocks", block, "ln_1.weight"),
            "norm_out": read.norm("visual.ln_post"),
            "projection": read("visual.proj"),
        },
        "text": {
            "token": read("token_embedding.weight"),
            "position": read("positional_embedding"),
            "blocks": _blocks(read, "transformer.resblocks", block, "ln_1.weight"),
            "norm_out": read.norm("ln_final"),
            "projection": read("text_projection"),
        },
    }
    model = config["model_cfg"]
    head_width = model["vision_cfg"].get("head_width", 64)
    vision_heads = params["vision"]["position"].shape[-1] // head_width
    activation = "quick_gelu" if model.get("quick_gelu") else "gelu"
    return params, Sizes(vision_heads, model["text_cfg"]["heads"], activation)


def _tokenizer(
    directory: Path, length: int, vocabulary: int
) -> Callable[[Sequence[str]], np.ndarray]:
    path = directory / TOKENIZER
    if not path.is_file():
        raise UserError(f"{directory} has no {TOKENIZER}, CLIP's tokenizer")
    tokenizer = read_tokenizer(path)
    if tokenizer.get_vocab_size() > vocabulary:
        raise UserError(
            f"{path} has {tokenizer.get_vocab_size()} tokens, but the network knows {vocabulary}: "
            "they do not belong together"
        )

    def tokenize(texts: Sequence[str]) -> np.ndarray:
        """Ids [n, length]; behind the end of a text stand zeros. Of a longer text, for the rest of
        which CLIP has no positions, the first tokens and the end are taken, and a warning is given.
        """
        ids = np.zeros((len(texts), length), np.int32)
        longer = 0
        for i, encoding in enumerate(tokenizer.encode_batch(list(texts))):
            row = encoding.ids
            if len(row) > length:
                longer += 1
                row = [*row[: length - 1], row[-1]]
            ids[i, : len(row)] = row
        if longer:
            warnings.warn(
                f"CLIP reads the first {length} tokens of a text; {longer} of {len(texts)} are "
                "longer",
                stacklevel=3,
            )
        return ids

    return tokenize
