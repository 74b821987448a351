"""Tiny stages of DeepFloyd IF with random weights, and their files in diffusers' layout.

Needs neither torch nor diffusers: weights are drawn by name, so that tests and
make_deepfloyd_reference.py have the same ones.
"""

from __future__ import annotations

import math
import zlib
from typing import Any

import numpy as np

LENGTH, WIDTH = 77, 32
COMMON: dict[str, Any] = {
    "_class_name": "UNet2DConditionModel",
    "_diffusers_version": "0.42.1",
    "act_fn": "gelu",
    "addition_embed_type": "text",
    "cross_attention_norm": "group_norm",
    "encoder_hid_dim": WIDTH,
    "encoder_hid_dim_type": "text_proj",
    "flip_sin_to_cos": True,
    "freq_shift": 0,
    "mid_block_type": "UNetMidBlock2DSimpleCrossAttn",
    "norm_eps": 1e-5,
    "norm_num_groups": 32,
    "only_cross_attention": False,
    "out_channels": 6,
    "resnet_time_scale_shift": "scale_shift",
}
CONFIGS: dict[str, dict[str, Any]] = {
    "I": COMMON
    | {
        "in_channels": 3,
        "sample_size": 16,
        "block_out_channels": [32, 64, 96],
        "layers_per_block": 1,
        "down_block_types": ["ResnetDownsampleBlock2D", *["SimpleCrossAttnDownBlock2D"] * 2],
        "up_block_types": [*["SimpleCrossAttnUpBlock2D"] * 2, "ResnetUpsampleBlock2D"],
        "cross_attention_dim": 64,
        "attention_head_dim": 16,
        "addition_embed_type_num_heads": 4,
    },
    "II": COMMON
    | {
        "in_channels": 6,
        "sample_size": 16,
        "block_out_channels": [32, 64, 64],
        "layers_per_block": [1, 2, 1],
        "down_block_types": [*["ResnetDownsampleBlock2D"] * 2, "SimpleCrossAttnDownBlock2D"],
        "up_block_types": ["SimpleCrossAttnUpBlock2D", *["ResnetUpsampleBlock2D"] * 2],
        "cross_attention_dim": 64,
        "attention_head_dim": 16,
        "addition_embed_type_num_heads": 4,
        "class_embed_type": "timestep",
        "mid_block_scale_factor": math.sqrt(2.0),
        "resnet_out_scale_factor": math.sqrt(2.0),
        "resnet_skip_time_act": True,
        "time_embedding_act_fn": "gelu",
        "time_embedding_dim": 96,
    },
}
"""config.json of a tiny stage I and II, with every type of block that IF has."""


def normal(name: str, *shape: int) -> np.ndarray:
    """Standard normal numbers, always the same for a name."""
    generator = np.random.default_rng(zlib.crc32(name.encode()))
    return generator.standard_normal(shape, np.float32)


def weights(shapes: dict[str, tuple[int, ...]]) -> dict[str, np.ndarray]:
    """Random weights by diffusers' names; none has the value that it is initialised with."""
    result = {}
    for name, shape in shapes.items():
        drawn = normal(name, *shape)
        if len(shape) > 1 and name.endswith("weight"):
            drawn *= math.prod(shape[1:]) ** -0.5
        else:
            drawn = 0.3 * drawn + (1.0 if name.endswith("weight") else 0.0)
        result[name] = drawn
    return result


def inputs(stage: str) -> dict[str, np.ndarray]:
    """Inputs of a network: two examples, their steps, noise levels and text."""
    size = CONFIGS[stage]["sample_size"]
    return {
        "x": normal(f"{stage} x", 2, size, size, 3),
        "low_res": normal(f"{stage} low_res", 2, size, size, 3),
        "step": np.array([37, 810]),
        "noise_level": np.array([250, 0]),
        "text": normal(f"{stage} text", 2, LENGTH, WIDTH),
    }


def predict(x: np.ndarray, step: int) -> tuple[np.ndarray, np.ndarray]:
    """(eps, v) of a smooth function that is no network of anything: errors cannot cancel in it."""
    return 0.6 * x + 0.3 * np.sin(2.0 * x + 0.01 * step), np.sin(3.0 * x - 0.005 * step)


def probes(name: str, gradient: np.ndarray) -> np.ndarray:
    """Up to 16 entries of a gradient, and 4 random projections of about their size."""
    flat = gradient.reshape(-1).astype(np.float64)
    generator = np.random.default_rng(zlib.crc32(f"probes of {name}".encode()))
    entries = flat[generator.choice(flat.size, min(flat.size, 16), replace=False)]
    directions = generator.standard_normal((4, flat.size)) / math.sqrt(flat.size)
    return np.concatenate([entries, directions @ flat])
