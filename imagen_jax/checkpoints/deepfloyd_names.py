"""DeepFloyd IF's U-Nets in diffusers' layout, in terms of DeepFloydUNet: its fields and names."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from imagen_jax.errors import UserError

STATED: dict[str, Any] = {
    "_class_name": "UNet2DConditionModel",
    "act_fn": "gelu",
    "addition_embed_type": "text",
    "cross_attention_norm": "group_norm",
    "mid_block_type": "UNetMidBlock2DSimpleCrossAttn",
    "resnet_time_scale_shift": "scale_shift",
}
"""Values in config.json that all IF stages share."""

UNSTATED: dict[str, Any] = {
    "attention_type": "default",
    "center_input_sample": False,
    "class_embeddings_concat": False,
    "conv_in_kernel": 3,
    "conv_out_kernel": 3,
    "downsample_padding": 1,
    "dual_cross_attention": False,
    "flip_sin_to_cos": True,
    "freq_shift": 0,
    "mid_block_only_cross_attention": None,
    "norm_eps": 1e-5,
    "norm_num_groups": 32,
    "only_cross_attention": False,
    "time_cond_proj_dim": None,
    "time_embedding_type": "positional",
    "timestep_post_act": None,
}
"""Defaults of diffusers, which IF keeps: config.json states them, or leaves them out."""

DOWN = {"ResnetDownsampleBlock2D": False, "SimpleCrossAttnDownBlock2D": True}
UP = {"ResnetUpsampleBlock2D": False, "SimpleCrossAttnUpBlock2D": True}
"""Types of blocks -> True if they have attention."""

MODULES = {
    "conv_in": "conv_in/conv",
    "conv_norm_out": "norm_out",
    "conv_out": "conv_out/conv",
    "encoder_hid_proj": "conditioning/text_in/dense",
    "time_embedding.linear_1": "conditioning/time_in/dense",
    "time_embedding.linear_2": "conditioning/time_out/dense",
    "class_embedding.linear_1": "conditioning/noise_in/dense",
    "class_embedding.linear_2": "conditioning/noise_out/dense",
    "add_embedding.norm1": "conditioning/pool/norm_in/norm",
    "add_embedding.norm2": "conditioning/pool/norm_out/norm",
    "add_embedding.pool.q_proj": "conditioning/pool/q/dense",
    "add_embedding.pool.k_proj": "conditioning/pool/k/dense",
    "add_embedding.pool.v_proj": "conditioning/pool/v/dense",
    "add_embedding.proj": "conditioning/pool/out/dense",
    # in residual blocks
    "norm1": "norm_in",
    "conv1": "conv_in/conv",
    "time_emb_proj": "film/dense",
    "norm2": "norm_out",
    "conv2": "conv_out/conv",
    "conv_shortcut": "shortcut/conv",
    # in attention
    "group_norm": "norm",
    "norm_cross": "text_norm",
    "to_q": "q/dense",
    "to_k": "k/dense",
    "to_v": "v/dense",
    "add_k_proj": "text_k/dense",
    "add_v_proj": "text_v/dense",
    "to_out.0": "out/dense",
}
"""Modules of diffusers -> ours; what comes before them in blocks is in our_name."""

BLOCK = re.compile(
    r"(down|up)_blocks\.(\d+)\.(resnets|attentions|downsamplers|upsamplers)\.(\d+)\.(.+)"
)
MIDDLE = re.compile(r"mid_block\.(resnets|attentions)\.(\d+)\.(.+)")


def our_name(name: str, axes: int, levels: int) -> str | None:
    """DeepFloydUNet's name of a tensor of diffusers; None where it has none.

    Args:
      name: such as "down_blocks.1.attentions.0.to_q.weight".
      axes: axes of the tensor.
      levels: resolutions of the network.
    """
    if name == "add_embedding.pool.positional_embedding":
        return "conditioning/pool/position"
    module, _, leaf = name.rpartition(".")
    leaf = {"weight": "kernel" if axes > 1 else "scale", "bias": "bias"}.get(leaf, "")
    prefix = ""
    if match := BLOCK.fullmatch(module):
        way, block, kind, index, module = match.groups()
        level = int(block) if way == "down" else levels - 1 - int(block)
        part = {"resnets": "residual", "attentions": "attention"}.get(kind)
        if part is not None:
            prefix = f"{way}_{level}_{index}/{part}/"
        elif index != "0" or kind != f"{way}samplers":
            return None
        else:
            prefix = f"{way}_{level + (way == 'down')}_resample/"
    elif match := MIDDLE.fullmatch(module):
        kind, index, module = match.groups()
        prefix = f"middle_{index}/" if kind == "resnets" else "middle_attention/"
        if kind == "attentions" and index != "0":
            return None
    if not leaf or module not in MODULES:
        return None
    return f"{prefix}{MODULES[module]}/{leaf}"


def network_fields(config: Mapping[str, Any], where: str) -> dict[str, Any]:
    """Fields of DeepFloydUNet from diffusers' config.json of an IF stage.

    Args:
      config: content of the file.
      where: the file, for messages.

    Raises:
      UserError: a key is missing, or the network is none of IF's; names the key.
    """

    def wrong(key: str, value: Any, wanted: str) -> UserError:
        return UserError(
            f"{where}: {key} is {value!r}, and DeepFloyd IF's U-Nets have {wanted}; is this the "
            "unet/config.json of stage I or II?"
        )

    for key, value in {**STATED, **UNSTATED}.items():
        if (found := config.get(key, UNSTATED.get(key))) != value:
            raise wrong(key, found, repr(value))

    def read(key: str, kinds: type | tuple[type, ...]) -> Any:
        value = config.get(key)
        if not isinstance(value, kinds) or isinstance(value, bool):
            raise wrong(key, value, "a value there")
        return value

    channels = read("block_out_channels", list)
    levels = len(channels)

    def per_level(key: str, value: Any) -> tuple[int, ...]:
        values = value if isinstance(value, list) else [value] * levels
        if len(values) != levels or not all(isinstance(x, int) and x > 0 for x in values):
            raise wrong(key, value, f"a whole number for each of {levels} resolutions")
        return tuple(values)

    down, up = read("down_block_types", list), read("up_block_types", list)
    if not set(down) <= set(DOWN) or len(down) != levels:
        raise wrong("down_block_types", down, f"one of {', '.join(DOWN)} for each resolution")
    attention = tuple(DOWN[kind] for kind in down)
    if not set(up) <= set(UP) or tuple(UP[kind] for kind in reversed(up)) != attention:
        raise wrong("up_block_types", up, "the mirror image of down_block_types")
    pixels, made = read("in_channels", int), read("out_channels", int)
    noise = config.get("class_embed_type")
    if (pixels, noise) not in ((3, None), (6, "timestep")):
        raise wrong("class_embed_type", noise, "null with 3 in_channels, or 'timestep' with 6")
    if made != 6:
        raise wrong("out_channels", made, "6: eps and the variance")
    once = config.get("resnet_skip_time_act", False)
    if config.get("time_embedding_act_fn") != ("gelu" if once else None):
        raise wrong(
            "time_embedding_act_fn", config.get("time_embedding_act_fn"),
            "'gelu' where resnet_skip_time_act is true, else null",
        )  # fmt: skip
    scale = config.get("resnet_out_scale_factor", 1.0)
    if config.get("mid_block_scale_factor", 1) != scale:
        raise wrong(
            "mid_block_scale_factor", config.get("mid_block_scale_factor"),
            f"resnet_out_scale_factor, {scale}",
        )  # fmt: skip
    heads = set(per_level("attention_head_dim", config.get("attention_head_dim")))
    if len(heads) != 1:
        raise wrong("attention_head_dim", config["attention_head_dim"], "one for all")
    return {
        "channels": tuple(channels),
        "blocks": per_level("layers_per_block", config.get("layers_per_block")),
        "attention": attention,
        "features": config.get("time_embedding_dim") or 4 * channels[0],
        "text_channels": read("cross_attention_dim", int),
        "head_channels": heads.pop(),
        "groups": UNSTATED["norm_num_groups"],
        "pool_heads": config.get("addition_embed_type_num_heads", 64),
        "out_scale": float(scale),
    }
