"""A tiny random safety checker and a watermark of DeepFloyd IF, as their files hold them."""

from __future__ import annotations

import json
from pathlib import Path

import deepfloyd_files as files
import numpy as np
import safetensors.numpy

from imagen_jax.eval.features.clip import MEAN, STDDEV

WIDTH, INNER, FEATURES, SIDE, PATCH, LAYERS, HEADS = 24, 32, 12, 32, 8, 2, 3
CONFIG = {
    "vision_config": {
        "hidden_size": WIDTH, "intermediate_size": INNER, "projection_dim": FEATURES,
        "num_hidden_layers": LAYERS, "num_attention_heads": HEADS, "image_size": SIDE,
        "patch_size": PATCH,
    }
}  # fmt: skip
TOWER = "vision_model.vision_model"


def checker_weights() -> dict[str, np.ndarray]:
    """Random weights of a tiny safety checker, by diffusers' names; its heads have no bias."""
    shapes: dict[str, tuple[int, ...]] = {
        f"{TOWER}.embeddings.class_embedding": (WIDTH,),
        f"{TOWER}.embeddings.patch_embedding.weight": (WIDTH, 3, PATCH, PATCH),
        f"{TOWER}.embeddings.position_embedding.weight": ((SIDE // PATCH) ** 2 + 1, WIDTH),
        "vision_model.visual_projection.weight": (FEATURES, WIDTH),
        "p_head.weight": (1, FEATURES), "w_head.weight": (1, FEATURES),
    }  # fmt: skip
    norms = ["pre_layrnorm", "post_layernorm"]
    dense = {}
    for i in range(LAYERS):
        norms += [f"encoder.layers.{i}.layer_norm{j}" for j in (1, 2)]
        layer = f"encoder.layers.{i}"
        dense |= {f"{layer}.self_attn.{n}_proj": (WIDTH, WIDTH) for n in ("q", "k", "v", "out")}
        dense |= {f"{layer}.mlp.fc1": (INNER, WIDTH), f"{layer}.mlp.fc2": (WIDTH, INNER)}
    for name in norms:
        shapes |= {f"{TOWER}.{name}.weight": (WIDTH,), f"{TOWER}.{name}.bias": (WIDTH,)}
    for name, shape in dense.items():
        shapes |= {f"{TOWER}.{name}.weight": shape, f"{TOWER}.{name}.bias": shape[:1]}
    return files.weights(shapes) | {f"{h}_head.bias": np.zeros(1, np.float32) for h in "pw"}


def mark() -> np.ndarray:
    """A watermark: opaque red, and half transparent on the right."""
    pixels = np.zeros((62, 62, 4), np.uint8)
    pixels[..., 0], pixels[..., 3] = 200, 255
    pixels[:, 31:, 3] = 128
    return pixels


def write_safety(root: Path, weights: dict[str, np.ndarray], dtype: str = "float32") -> None:
    """safety_checker/, feature_extractor/ and watermarker/ of a pipeline."""
    for name in ("safety_checker", "feature_extractor", "watermarker"):
        (root / name).mkdir()
    (root / "safety_checker" / "config.json").write_text(json.dumps(CONFIG))
    ids = {f"{TOWER}.embeddings.position_ids": np.arange(17)[None]}
    stored = {name: x.astype(dtype) for name, x in weights.items()} | ids
    safetensors.numpy.save_file(stored, root / "safety_checker" / "model.safetensors")
    extractor = {"size": {"shortest_edge": SIDE}, "crop_size": SIDE, "resample": 3,
                 "image_mean": list(MEAN), "image_std": list(STDDEV)}  # fmt: skip
    path = root / "feature_extractor" / "preprocessor_config.json"
    path.write_text(json.dumps(extractor))
    safetensors.numpy.save_file(
        {"watermark_image": mark()}, root / "watermarker" / "diffusion_pytorch_model.safetensors"
    )
