"""A peer's network for unet_speed.py, in the peers' environment: reads "train" or "sample" from
standard input, does that step, and writes the seconds that it took."""

from __future__ import annotations

import contextlib
import json
import sys
import time
import types
from typing import Any, ClassVar

import torch
from torch.utils.flop_counter import FlopCounterMode

UNUSED = (
    "torchvision", "torchvision.transforms", "kornia", "kornia.augmentation", "imagen_pytorch.t5",
    "imagen_pytorch.trainer", "imagen_pytorch.configs", "imagen_pytorch.utils",
)  # fmt: skip
SIZE, TOKENS, WIDTH = 64, 64, 512
BATCH = {"train": 8, "sample": 4}


class _Absent(types.ModuleType):
    """A package whose every attribute is an empty class, to call or to inherit from."""

    __path__: ClassVar[list[str]] = []

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return type(name, (), {"__init__": lambda self, *args, **kwargs: None})


def imagen_pytorch() -> tuple[Any, Any]:
    """imagen-pytorch's Unet and how it is called."""
    # Its trainer, data and T5 want packages that its U-Net does not use, some of which do not load
    # beside this build of torch.
    for name in UNUSED:
        sys.modules[name] = _Absent(name)
    from imagen_pytorch import Unet

    network = Unet(
        dim=96,
        dim_mults=(1, 2, 3, 4),
        num_resnet_blocks=2,
        layer_attns=(False, True, True, True),
        layer_cross_attns=(False, True, True, True),
        attn_dim_head=32,
        attn_heads=6,
        text_embed_dim=WIDTH,
        cond_dim=WIDTH,
        max_text_len=TOKENS,
        memory_efficient=False,
        cond_on_text=True,
    )

    def call(x: Any, t: Any, text: Any) -> Any:
        return network(x, t, text_embeds=text)

    return network, call


def diffusers() -> tuple[Any, Any]:
    """The U-Net of DeepFloyd IF in diffusers, and how it is called."""
    from diffusers import UNet2DConditionModel

    network = UNet2DConditionModel(
        sample_size=SIZE,
        in_channels=3,
        out_channels=3,
        block_out_channels=(96, 192, 288, 384),
        layers_per_block=2,
        down_block_types=("ResnetDownsampleBlock2D", *["SimpleCrossAttnDownBlock2D"] * 3),
        mid_block_type="UNetMidBlock2DSimpleCrossAttn",
        up_block_types=(*["SimpleCrossAttnUpBlock2D"] * 3, "ResnetUpsampleBlock2D"),
        attention_head_dim=32,
        cross_attention_dim=WIDTH,
        encoder_hid_dim=WIDTH,
        encoder_hid_dim_type="text_proj",
        resnet_time_scale_shift="scale_shift",
        act_fn="silu",
        norm_num_groups=32,
    )

    def call(x: Any, t: Any, text: Any) -> Any:
        return network(x, t, encoder_hidden_states=text).sample

    return network, call


def deepfloyd() -> tuple[Any, Any]:
    """The first stage of DeepFloyd IF, with the fields of its config.json."""
    from diffusers import UNet2DConditionModel

    network = UNet2DConditionModel(
        sample_size=SIZE,
        in_channels=3,
        out_channels=6,
        block_out_channels=(128, 256, 384, 512),
        layers_per_block=3,
        down_block_types=("ResnetDownsampleBlock2D", *["SimpleCrossAttnDownBlock2D"] * 3),
        mid_block_type="UNetMidBlock2DSimpleCrossAttn",
        up_block_types=(*["SimpleCrossAttnUpBlock2D"] * 3, "ResnetUpsampleBlock2D"),
        attention_head_dim=64,
        cross_attention_dim=512,
        cross_attention_norm="group_norm",
        encoder_hid_dim=WIDTH,
        encoder_hid_dim_type="text_proj",
        addition_embed_type="text",
        addition_embed_type_num_heads=64,
        resnet_time_scale_shift="scale_shift",
        act_fn="gelu",
        norm_num_groups=32,
        mid_block_scale_factor=1.0,
    )

    def call(x: Any, t: Any, text: Any) -> Any:
        return network(x, t, encoder_hidden_states=text).sample[:, :3]

    return network, call


MAKERS = {
    "imagen-pytorch": imagen_pytorch,
    "diffusers": diffusers,
    "diffusers-deepfloyd": deepfloyd,
}


def main() -> None:
    """Serves steps until standard input ends."""
    with contextlib.redirect_stdout(sys.stderr):  # imagen-pytorch gives advice
        network, call = MAKERS[sys.argv[1]]()
    adam = torch.optim.Adam(network.parameters(), 1e-4)

    def inputs(what: str) -> tuple[Any, ...]:
        batch = BATCH[what]
        x = torch.randn(batch, 3, SIZE, SIZE)
        return x, torch.full((batch,), 500.0), torch.randn(batch, TOKENS, WIDTH)

    def train(x: Any, t: Any, text: Any) -> None:
        loss = ((call(x, t, text) - x) ** 2).mean()
        adam.zero_grad()
        loss.backward()
        adam.step()

    @torch.no_grad()
    def sample(x: Any, t: Any, text: Any) -> None:
        both = call(torch.cat([x, x]), torch.cat([t, t]), torch.cat([text, torch.zeros_like(text)]))
        with_text, without = both.chunk(2)
        (without + 3.0 * (with_text - without)).clamp(-1, 1)

    steps = {"train": train, "sample": sample}
    flops = {}
    for what, step in steps.items():
        with FlopCounterMode(display=False) as counter:
            step(*inputs(what))
        flops[what] = counter.get_total_flops()
    parameters = sum(p.numel() for p in network.parameters())
    print(json.dumps({"parameters": parameters, "flops": flops}), flush=True)
    for line in sys.stdin:
        what = line.strip()
        arguments = inputs(what)
        start = time.perf_counter()
        steps[what](*arguments)
        print(json.dumps(time.perf_counter() - start), flush=True)


if __name__ == "__main__":
    main()
