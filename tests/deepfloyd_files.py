"""Tiny stages of DeepFloyd IF with random weights, and their files in diffusers' layout.

Needs neither torch nor diffusers: weights are drawn by name, so that tests and
make_deepfloyd_reference.py have the same ones.
"""

from __future__ import annotations

import json
import math
import zlib
from pathlib import Path
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


T5 = {
    "vocab_size": 80,
    "d_model": WIDTH,
    "d_kv": 8,
    "d_ff": 48,
    "num_layers": 2,
    "num_heads": 3,
    "feed_forward_proj": "gated-gelu",
}
"""Of a tiny T5, as transformers' T5Config has them."""


def t5_weights() -> dict[str, np.ndarray]:
    """Random weights of that T5's encoder by transformers' names."""
    inner = T5["d_kv"] * T5["num_heads"]
    shapes: dict[str, tuple[int, ...]] = {
        "shared.weight": (T5["vocab_size"], WIDTH),
        "encoder.final_layer_norm.weight": (WIDTH,),
        "encoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight": (32, 3),
    }
    for i in range(T5["num_layers"]):
        block = f"encoder.block.{i}.layer"
        for name in "qkv":
            shapes[f"{block}.0.SelfAttention.{name}.weight"] = (inner, WIDTH)
        shapes[f"{block}.0.SelfAttention.o.weight"] = (WIDTH, inner)
        for name in ("wi_0", "wi_1"):
            shapes[f"{block}.1.DenseReluDense.{name}.weight"] = (T5["d_ff"], WIDTH)
        shapes[f"{block}.1.DenseReluDense.wo.weight"] = (WIDTH, T5["d_ff"])
        shapes |= {f"{block}.{j}.layer_norm.weight": (WIDTH,) for j in range(2)}
    return weights(shapes)


def token_rows() -> np.ndarray:
    """Token ids [4, 77] of an empty caption, two of some words, and one without padding."""
    rows = np.zeros((4, LENGTH), np.int64)
    for row, words in zip(rows, (0, 3, 20, LENGTH - 1), strict=True):
        row[:words] = np.random.default_rng(words).integers(3, T5["vocab_size"], words)
        row[words] = 1
    return rows


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


def write_text_encoder(directory: Path) -> Path:
    """text_encoder/ and tokenizer/ of a pipeline of diffusers; returns the directory."""
    import safetensors.numpy
    from sentencepiece import SentencePieceTrainer

    captions = ["a drawing of a red circle", "two cats, flat icon", "a photo of a dog", "snow"]
    for name in ("text_encoder", "tokenizer"):
        (directory / name).mkdir()
    safetensors.numpy.save_file(t5_weights(), directory / "text_encoder" / "model.safetensors")
    config = {"model_type": "t5", "architectures": ["T5EncoderModel"]} | T5
    (directory / "text_encoder" / "config.json").write_text(json.dumps(config))
    SentencePieceTrainer.train(
        sentence_iterator=iter(captions * 20), model_prefix=str(directory / "tokenizer" / "spiece"),
        vocab_size=60, pad_id=0, eos_id=1, unk_id=2, bos_id=-1, hard_vocab_limit=False,
        minloglevel=2,
    )  # fmt: skip
    return directory


PIPELINE_SIZES = {"I": 8, "II": 32}
"""sample_size of the stages' files: those of a tiny cascade."""
PIPELINE_STEPS = {"I": 10, "II": 5}
SCHEDULER = {
    "_class_name": "DDPMScheduler",
    "beta_schedule": "squaredcos_cap_v2",
    "num_train_timesteps": 1000,
    "prediction_type": "epsilon",
    "variance_type": "learned_range",
    "thresholding": True,
    "dynamic_thresholding_ratio": 0.95,
}


def unet_weights(stage: str) -> dict[str, np.ndarray]:
    """Random weights of a tiny stage by diffusers' names."""
    stored = np.load(Path(__file__).parent / "testdata" / "deepfloyd_network.npz")
    shapes = [tuple(json.loads(str(shape))) for shape in stored[f"{stage}/shapes"]]
    return weights(dict(zip(map(str, stored[f"{stage}/names"]), shapes, strict=True)))


def write_stage(
    directory: Path, stage: str, dtype: str = "float32", variant: str = "", shards: int = 1
) -> Path:
    """unet/ and scheduler/ of a tiny stage; returns the directory."""
    import safetensors.numpy

    (directory / "unet").mkdir(parents=True, exist_ok=True)
    (directory / "scheduler").mkdir(exist_ok=True)
    config = CONFIGS[stage] | {"sample_size": PIPELINE_SIZES[stage]}
    (directory / "unet" / "config.json").write_text(json.dumps(config))
    scheduler = SCHEDULER | {"sample_max_value": {"I": 1.5, "II": 1.0}[stage]}
    (directory / "scheduler" / "scheduler_config.json").write_text(json.dumps(scheduler))
    tensors = {name: x.astype(dtype) for name, x in unet_weights(stage).items()}
    dot, stem = f".{variant}" if variant else "", "diffusion_pytorch_model"
    if shards == 1:
        safetensors.numpy.save_file(tensors, directory / "unet" / f"{stem}{dot}.safetensors")
        return directory
    placed = {}
    for i in range(shards):
        file = f"{stem}{dot}-{i + 1:05}-of-{shards:05}.safetensors"
        names = sorted(tensors)[i::shards]
        safetensors.numpy.save_file({n: tensors[n] for n in names}, directory / "unet" / file)
        placed |= dict.fromkeys(names, file)
    index = directory / "unet" / f"{stem}.safetensors.index{dot}.json"
    index.write_text(json.dumps({"metadata": {}, "weight_map": placed}))
    return directory
