"""The paper's stages against its listings (Saharia et al. 2022, appendix F)."""

from __future__ import annotations

from typing import Any

import flax.traverse_util
import jax
import pytest

from imagen_jax.checkpoints.pretrained import abstract_params
from imagen_jax.config import CONFIGS, load_config
from imagen_jax.models.efficient_unet import EfficientUNet
from imagen_jax.models.unet import UNet
from imagen_jax.stage import Stage, make_stage
from imagen_jax.train.state import count_parameters

BASE64 = {
    "embed_dim": 512, "channel_mult": (1, 2, 3, 4), "num_res_blocks": 3, "dropout": 0.0,
    "attn_resolutions": {32, 16, 8}, "text_cross_attn_res": {32, 16, 8},
    "per_head_channels": 64, "feature_pooling_type": "attention", "use_scale_shift_norm": True,
}  # fmt: skip
"""F.1, without `res_block_type: biggan`: the one that UNet has."""

BLOCKS: tuple[dict[str, Any], ...] = (
    {"channels": 128, "num_res_blocks": 2},
    {"channels": 256, "num_res_blocks": 4},
    {"channels": 512, "num_res_blocks": 8},
    {"channels": 1024, "num_res_blocks": 8, "num_attention_heads": 8},
)
SR256 = (*BLOCKS[:3], BLOCKS[3] | {"self_attention": True, "text_cross_attention": True})
SR1024 = (*BLOCKS[:3], BLOCKS[3] | {"text_cross_attention": True})
"""F.2 and F.3, without kernels of 3 x 3 and strides of 2: those that EfficientUNet has."""

TRAINING = {
    "batch_size": 2048, "steps": 2_500_000, "learning_rate": 1e-4, "warmup_steps": 10_000,
    "text_dropout": 0.1, "max_aug_level": 1.0,
}  # fmt: skip


def stage(name: str) -> Stage:
    return make_stage(load_config(name), name)


def parameters(of: Stage) -> dict[str, tuple[int, ...]]:
    flat = flax.traverse_util.flatten_dict(abstract_params(of), sep="/")
    return {name: leaf.shape for name, leaf in flat.items()}


@pytest.mark.slow
def test_base64_is_the_listing() -> None:
    network = stage("base64").network
    assert isinstance(network, UNet)
    assert len(set(network.blocks)) == 1
    resolutions = [64 // 2**i for i in range(len(network.multipliers))]
    attending = {r for r, attends in zip(resolutions, network.attention, strict=True) if attends}
    assert {
        "embed_dim": network.channels, "channel_mult": network.multipliers,
        "num_res_blocks": network.blocks[0], "dropout": network.dropout,
        "attn_resolutions": attending,
        "text_cross_attn_res": attending if network.cross_attention else set(),
        "per_head_channels": network.head_channels,
        "feature_pooling_type": network.text_pool, "use_scale_shift_norm": True,
    } == BASE64  # fmt: skip
    names = parameters(stage("base64"))
    residual = {name.rsplit("/", 3)[0] for name in names if name.endswith("/conv_out/conv/kernel")}
    assert len(residual) > 10
    for block in residual:  # scale and shift in every one
        assert f"{block}/film/dense/kernel" in names


@pytest.mark.slow
@pytest.mark.parametrize(("name", "listing"), [("sr256", SR256), ("sr1024", SR1024)])
def test_super_resolution_is_the_listing(name: str, listing: tuple[dict[str, Any], ...]) -> None:
    network = stage(name).network
    assert isinstance(network, EfficientUNet)
    found: list[dict[str, Any]] = []
    for i, channels in enumerate(network.channels):
        block: dict[str, Any] = {"channels": channels, "num_res_blocks": network.blocks[i]}
        for key, values in (
            ("self_attention", network.self_attention),
            ("text_cross_attention", network.cross_attention),
        ):
            if values[i]:
                block |= {key: True, "num_attention_heads": channels // network.head_channels}
        found.append(block)
    assert tuple(found) == listing
    assert network.scale_shift_norm
    assert network.text_pool == "attention"
    names = parameters(stage(name))
    # Every residual block has scale and shift: 2 x (2 + 4 + 8 + 8), most of them stacked.
    films = {key: shape for key, shape in names.items() if key.endswith("film/dense/kernel")}
    blocks = sum(shape[0] if "_stack/" in key else 1 for key, shape in films.items()) - 1  # the end
    assert blocks == 2 * sum(network.blocks)
    # Text keys and values join those of the image in one layer (appendix D.3.1).
    texts = {key.split("/text/")[0] for key in names if "/text/kv/" in key} - {"conditioning/pool"}
    images = {key.split("/kv/")[0] for key in names if "attention/kv/" in key}
    assert texts
    assert images == (texts if name == "sr256" else set())


@pytest.mark.parametrize("name", ["base64", "sr256", "sr1024"])
def test_training_is_the_papers(name: str) -> None:
    of = stage(name)
    assert {key: getattr(of.train, key) for key in TRAINING} == TRAINING
    assert of.train.optimizer == ("adafactor" if name == "base64" else "adam")
    assert (of.text.encoder, of.text.width) == ("t5", 4096)
    assert (of.diffusion.parametrization, of.diffusion.weighting) == ("eps", "eps")
    assert of.diffusion.time_sampling == "uniform"
    schedule = type(of.schedule).__name__
    assert schedule == ("LinearBetaSchedule" if name == "sr1024" else "CosineSchedule")
    assert of.crop == (256 if name == "sr1024" else None)
    assert (of.sample.threshold, of.sample.percentile) == ("dynamic", 99.5)
    assert of.sample.guidance > 1


@pytest.mark.slow
@pytest.mark.parametrize(("name", "millions"), [("base64", 2063), ("sr256", 576), ("sr1024", 484)])
def test_parameters_are_those_of_the_header(name: str, millions: int) -> None:
    count = count_parameters(jax.eval_shape(stage(name).init, jax.random.key(0)))
    assert round(count / 1e6) == millions
    assert f"{millions:,}M parameters" in (CONFIGS / f"{name}.py").read_text()
