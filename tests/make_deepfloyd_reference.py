"""Writes tests/testdata/deepfloyd_*: what diffusers makes of tiny stages of DeepFloyd IF.

The stored files were made with diffusers 0.42.1 and torch 2.13.0 (CPU), in an environment of its
own:

    pip install torch==2.13.0 diffusers==0.42.1 transformers
    python tests/make_deepfloyd_reference.py

deepfloyd_network.npz holds outputs and gradients of the U-Nets, deepfloyd_keys.json.gz names and
shapes of all parameters at the published sizes, deepfloyd_diffusion.npz steps of the scheduler,
deepfloyd_text.npz states of captions, and deepfloyd_pipelines.npz what the pipelines make.
"""

from __future__ import annotations

import gzip
import json
import math
import pathlib
import sys
from typing import Any

import deepfloyd_files as files
import diffusers
import numpy as np
import torch
import transformers
from diffusers import (
    DDPMScheduler,
    IFPipeline,
    IFSuperResolutionPipeline,
    UNet2DConditionModel,
)
from diffusers.pipelines.deepfloyd_if import timesteps

TESTDATA = pathlib.Path(__file__).parent / "testdata"
FULL_SIZE: dict[str, dict[str, Any]] = {
    "I-XL": {"block_out_channels": [704, 1408, 2112, 2816], "cross_attention_dim": 2816},
    "I-L": {"block_out_channels": [320, 640, 960, 1280], "cross_attention_dim": 1280},
    "I-M": {"block_out_channels": [192, 384, 576, 768], "cross_attention_dim": 768},
    "II-L": {"block_out_channels": [160, 320, 640, 960, 1280], "cross_attention_dim": 1280},
    "II-M": {"block_out_channels": [96, 192, 384, 576, 768], "cross_attention_dim": 768},
}


def full_size(name: str) -> dict[str, Any]:
    """config.json of a published stage; L and M of both stages are inferred from their sizes."""
    down = ["ResnetDownsampleBlock2D", "SimpleCrossAttnDownBlock2D"]
    up = ["SimpleCrossAttnUpBlock2D", "ResnetUpsampleBlock2D"]
    stage = name.split("-")[0]
    first, attending = (1, 3) if stage == "I" else (3, 2)
    config = files.CONFIGS[stage] | FULL_SIZE[name]
    config |= {
        "sample_size": 64 if stage == "I" else 256,
        "layers_per_block": 3 if stage == "I" else [2, 2, 3, 5, 5],
        "down_block_types": [*down[:1] * first, *down[1:] * attending],
        "up_block_types": [*up[:1] * attending, *up[1:] * first],
        "attention_head_dim": 64,
        "addition_embed_type_num_heads": 64,
        "encoder_hid_dim": 4096,
    }
    if stage == "II":
        config["time_embedding_dim"] = FULL_SIZE[name]["cross_attention_dim"]
    return config


def make_network(config: dict[str, Any]) -> UNet2DConditionModel:
    """The network that a config.json describes."""
    said = {key: value for key, value in config.items() if not key.startswith("_")}
    return UNet2DConditionModel(**said)


def random_network(stage: str) -> UNet2DConditionModel:
    """A tiny stage with all of its parameters drawn by name."""
    network = make_network(files.CONFIGS[stage])
    shapes = {name: tuple(value.shape) for name, value in network.state_dict().items()}
    drawn = {name: torch.from_numpy(x) for name, x in files.weights(shapes).items()}
    network.load_state_dict(drawn)
    return network.eval()


def images(x: np.ndarray) -> torch.Tensor:
    """[b, h, w, c] to torch's [b, c, h, w]."""
    return torch.from_numpy(np.moveaxis(x, -1, 1).copy())


def network_case(stage: str) -> dict[str, np.ndarray]:
    """Output, and gradients of its product with fixed random numbers, in float64."""
    network, given = random_network(stage).double(), files.inputs(stage)
    x = images(given["x"]).double()
    if stage == "II":
        x = torch.cat([x, images(given["low_res"]).double()], dim=1)
    text = torch.from_numpy(given["text"]).double().requires_grad_()
    x.requires_grad_()
    levels = torch.from_numpy(given["noise_level"]) if stage == "II" else None
    step = torch.from_numpy(given["step"])
    output = network(x, step, text, class_labels=levels, return_dict=False)[0]
    direction = files.normal(f"{stage} direction", *output.permute(0, 2, 3, 1).shape)
    (output * images(direction).double()).sum().backward()
    arrays = {
        "names": np.array(list(network.state_dict())),
        "shapes": np.array([json.dumps(list(v.shape)) for v in network.state_dict().values()]),
        "output": np.moveaxis(output.detach().numpy(), 1, -1),
        "gradient of x": np.moveaxis(x.grad.numpy(), 1, -1),
        "gradient of text": text.grad.numpy(),
    }
    for name, parameter in network.named_parameters():
        gradient = parameter.grad.numpy()
        arrays[f"probes of {name}"] = files.probes(name, gradient)
        arrays[f"largest of {name}"] = np.abs(gradient).max()
    return narrow({f"{stage}/{name}": value for name, value in arrays.items()})


def make_scheduler(cap: float) -> DDPMScheduler:
    """IF's scheduler; cap is 1.5 in stage I and 1.0 in stage II. In float64: diffusers' own float32
    table is off by 5e-4 in logsnr at the clean end."""
    scheduler = DDPMScheduler(
        num_train_timesteps=1000,
        beta_schedule="squaredcos_cap_v2",
        variance_type="learned_range",
        clip_sample=True,
        thresholding=True,
        dynamic_thresholding_ratio=0.95,
        sample_max_value=cap,
    )
    angles = (torch.arange(1001, dtype=torch.float64) / 1000 + 0.008) / 1.008 * math.pi / 2
    kept = torch.cos(angles) ** 2
    exact = torch.clamp(1.0 - kept[1:] / kept[:-1], max=0.999)
    assert torch.allclose(exact.float(), scheduler.betas, rtol=1e-3, atol=1e-6)
    scheduler.betas = exact
    scheduler.alphas = 1.0 - scheduler.betas
    scheduler.alphas_cumprod = torch.cumprod(scheduler.alphas, dim=0)
    return scheduler


def step_case(cap: float, every: int, **spacing: Any) -> dict[str, np.ndarray]:
    """Some of the steps of a run, each from the scheduler's own state."""
    scheduler = make_scheduler(cap)
    scheduler.set_timesteps(**spacing)
    x = images(files.normal(f"start {spacing}", 2, 6, 6, 3)).double()
    rows: dict[str, list[np.ndarray]] = {}
    for i, step in enumerate(scheduler.timesteps.tolist()):
        output = torch.cat(list(map(torch.from_numpy, files.predict(x.numpy(), step))), dim=1)
        noise = torch.randn(
            x.shape, generator=torch.Generator().manual_seed(i), dtype=torch.float64
        )
        done = scheduler.step(output, step, x, generator=torch.Generator().manual_seed(i))
        row = {"x": x, "x0": done.pred_original_sample, "noise": noise, "next": done.prev_sample}
        if i % every == 0 or i == len(scheduler.timesteps) - 1:
            rows.setdefault("place", []).append(np.array(i))
            for name, value in row.items():
                rows.setdefault(name, []).append(np.moveaxis(value.numpy(), 1, -1))
        x = done.prev_sample
    arrays = {name: np.stack(values) for name, values in rows.items()}
    return arrays | {"timesteps": scheduler.timesteps.numpy()}


def diffusion() -> dict[str, np.ndarray]:
    """Steps of stage I and II, all respacings, noised and enlarged images."""
    cases = {
        "leading100": step_case(1.5, 10, num_inference_steps=100),
        "fast27": step_case(1.5, 1, timesteps=timesteps.fast27_timesteps),
        "smart50": step_case(1.0, 5, timesteps=timesteps.smart50_timesteps),
    }
    arrays = {f"{case}/{name}": x for case, rows in cases.items() for name, x in rows.items()}
    for name, taken in vars(timesteps).items():
        if name.endswith("_timesteps"):
            arrays[f"respacing/{name.removesuffix('_timesteps')}"] = np.array(taken)
    x, noise = (images(files.normal(name, 4, 5, 5, 3)).double() for name in ("x0", "noise"))
    levels = torch.tensor([0, 250, 600, 999])
    noised = make_scheduler(1.0).add_noise(x, noise, levels)
    small = images(files.normal("small", 2, 4, 6, 3))
    enlarged = torch.nn.functional.interpolate(
        small.double(), size=(16, 24), mode="bilinear", align_corners=True
    )
    return arrays | {
        "alphas_cumprod": DDPMScheduler(beta_schedule="squaredcos_cap_v2").alphas_cumprod.numpy(),
        "add_noise/levels": levels.numpy(),
        "add_noise/noised": np.moveaxis(noised.numpy(), 1, -1),
        "enlarged": np.moveaxis(enlarged.numpy(), 1, -1),
    }


def text_states() -> np.ndarray:
    """States of padded captions, as IF's pipelines compute them: all of them are used."""
    network = transformers.T5EncoderModel(transformers.T5Config(**files.T5, dropout_rate=0.0))
    drawn = {name: torch.from_numpy(x) for name, x in files.t5_weights().items()}
    missing, unexpected = network.load_state_dict(drawn, strict=False)
    assert not unexpected
    assert set(missing) <= {"encoder.embed_tokens.weight"}
    ids = torch.from_numpy(files.token_rows())
    with torch.no_grad():
        states = network.eval()(ids, attention_mask=(ids != 0).long()).last_hidden_state
    return states.numpy()


def pipelines() -> dict[str, np.ndarray]:
    """Both pipelines one after another from states of captions, and all the noise they draw."""
    states = torch.from_numpy(text_states())
    caption, empty = states[1:3], states[:1].expand(2, -1, -1)
    nothing = dict.fromkeys(("tokenizer", "text_encoder", "safety_checker"))
    nothing |= {"feature_extractor": None, "watermarker": None, "requires_safety_checker": False}
    arrays, image = {}, None
    for stage, pipeline in (("I", IFPipeline), ("II", IFSuperResolutionPipeline)):
        size, steps = files.PIPELINE_SIZES[stage], files.PIPELINE_STEPS[stage]
        scheduler = DDPMScheduler(
            **{key: value for key, value in files.SCHEDULER.items() if not key.startswith("_")},
            sample_max_value={"I": 1.5, "II": 1.0}[stage],
        )
        parts = {"unet": random_network(stage), "scheduler": scheduler} | nothing
        given = {"guidance_scale": {"I": 7.0, "II": 4.0}[stage], "num_inference_steps": steps}
        if stage == "II":
            parts["image_noising_scheduler"] = DDPMScheduler(beta_schedule="squaredcos_cap_v2")
            given |= {"image": image, "noise_level": 250}
        image = pipeline(**parts)(
            prompt_embeds=caption,
            negative_prompt_embeds=empty,
            height=size,
            width=size,
            generator=torch.Generator().manual_seed(5),
            output_type="pt",
            **given,
        ).images
        again = torch.Generator().manual_seed(5)
        draws = steps + (stage == "II")  # the last step draws none
        noise = [torch.randn(2, 3, size, size, generator=again) for _ in range(draws)]
        arrays[f"{stage}/noise"] = np.moveaxis(torch.stack(noise).numpy(), 2, -1)
        arrays[f"{stage}/images"] = np.moveaxis(image.numpy(), 1, -1)
    return arrays


def narrow(arrays: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The same with float64 stored as float32."""
    return {k: x.astype(np.float32) if x.dtype == np.float64 else x for k, x in arrays.items()}


def keys() -> dict[str, Any]:
    """config.json, names and shapes at the published sizes, of networks without memory."""
    result = {}
    for name in FULL_SIZE:
        config = full_size(name)
        with torch.device("meta"):
            network = make_network(config)
        shapes = {key: list(value.shape) for key, value in network.state_dict().items()}
        result[name] = {"config": config, "shapes": shapes}
    return result


def main() -> None:
    """Makes all files."""
    versions = {lib.__name__: lib.__version__ for lib in (diffusers, torch, transformers)}
    np.savez_compressed(
        TESTDATA / "deepfloyd_network.npz",
        versions=np.array(json.dumps(versions)),
        **network_case("I"),
        **network_case("II"),
    )
    np.savez_compressed(TESTDATA / "deepfloyd_pipelines.npz", **pipelines())
    np.savez_compressed(TESTDATA / "deepfloyd_text.npz", states=text_states())
    np.savez_compressed(TESTDATA / "deepfloyd_diffusion.npz", **narrow(diffusion()))
    listed = json.dumps(keys()).encode()
    (TESTDATA / "deepfloyd_keys.json.gz").write_bytes(gzip.compress(listed, mtime=0))
    for path in sorted(TESTDATA.glob("deepfloyd_*")):
        sys.stdout.write(f"{path}: {path.stat().st_size} bytes\n")


if __name__ == "__main__":
    main()
