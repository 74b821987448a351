"""The estimate of `imagen plan --effort full` beside times that were measured and published.

    python -m benchmarks.published_steps            # installs diffusers into runs/calibration
    python -m benchmarks.published_steps v5e:1x1-1  # one row

Hugging Face measured Stable Diffusion XL's Flax pipeline (https://huggingface.co/blog/sdxl_jax, 3
October 2023, JAX 0.4.16) on four chips of v5e and of v4, with one and two images for each chip, all
told: text encoders, 20 guided steps of the U-Net and the decoder, 1,024 x 1,024 pixels. Here the
guided step alone is compiled for one such chip, with what is installed and all in bfloat16 (that
page's activations are in float32), so that 20 estimated steps are less than the whole would be.
A row takes a quarter of an hour on two cores; docs/paper-scale.md has what was run.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from imagen_jax.chips import configure_jax

PACKAGES = Path(__file__).parents[1] / "runs" / "calibration"
REQUIREMENTS = ("diffusers==0.30.3", "huggingface_hub==0.25.2", "importlib_metadata", "zipp",
                "regex", "requests", "urllib3", "charset_normalizer", "idna", "certifi",
                "filelock", "safetensors")  # fmt: skip
MEASURED = {
    ("v5e:1x1", 1): 2.33,
    ("v5e:1x1", 2): 4.99,
    ("v4:1x1x1", 1): 2.16,
    ("v4:1x1x1", 2): 4.17,
}
"""Topology of one chip, and images of it -> seconds of four chips that each make so many."""
STEPS = 20


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    names = [f"{topology}-{images}" for topology, images in MEASURED]
    parser.add_argument("rows", nargs="*", metavar="ROW", help=f"of {', '.join(names)}")
    rows = parser.parse_args().rows or names
    if unknown := set(rows) - set(names):
        parser.error(f"no row {unknown.pop()!r}; rows: {', '.join(names)}")
    configure_jax()
    if not (PACKAGES / "installed").exists():
        subprocess.run([sys.executable, "-m", "venv", PACKAGES], check=True)
        pip = [PACKAGES / "bin" / "python", "-m", "pip", "install", "--quiet", "--no-deps"]
        subprocess.run([*pip, *REQUIREMENTS], check=True)
        (PACKAGES / "installed").touch()
    (packages,) = PACKAGES.resolve().glob("lib/python*/site-packages")
    sys.path.append(str(packages))  # behind our own, which it shares JAX with
    print(f"{'':<12}{'a step':>10}{'20 steps':>10}{'measured':>10}{'of it':>7}", flush=True)
    for (topology, images), measured in MEASURED.items():
        if f"{topology}-{images}" in rows:
            step = guided_step(topology, images)
            print(
                f"{topology + ', ' + str(images):<12}{step * 1e3:7.0f} ms{STEPS * step:8.2f} s"
                f"{measured:8.2f} s{STEPS * step / measured:7.0%}",
                flush=True,
            )


def guided_step(topology: str, images: int) -> float:
    """Estimated seconds of a guided step on one chip."""
    from diffusers.models.unets.unet_2d_condition_flax import FlaxUNet2DConditionModel

    from imagen_jax import sharding
    from imagen_jax.plan import hlo
    from imagen_jax.plan.estimate import estimate
    from imagen_jax.plan.jobs import where_to
    from imagen_jax.plan.programs import compile_for

    bfloat16: Any = jnp.bfloat16
    unet = FlaxUNet2DConditionModel(
        sample_size=128,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        block_out_channels=(320, 640, 1280),
        attention_head_dim=(5, 10, 20),
        transformer_layers_per_block=(1, 2, 10),
        cross_attention_dim=2048,
        use_linear_projection=True,
        split_head_dim=True,
        addition_embed_type="text_time",
        addition_time_embed_dim=256,
        projection_class_embeddings_input_dim=2816,
        dtype=bfloat16,
    )
    target = where_to(topology)
    assert target.chip is not None
    mesh = sharding.make_mesh({}, target.devices)
    place = sharding.replicated(mesh)

    def shape(*dims: int) -> Any:
        return jax.ShapeDtypeStruct(dims, bfloat16, sharding=place)

    def guided(params: Any, x: Any, text: Any, pooled: Any, sizes: Any) -> Any:
        added = {"text_embeds": pooled, "time_ids": sizes}
        time = jnp.ones(len(x), "int32")
        return unet.apply({"params": params}, x, time, text, added).sample

    params = jax.tree.map(
        lambda leaf: shape(*leaf.shape), jax.eval_shape(unet.init_weights, jax.random.key(0))
    )
    both = 2 * images
    inputs = (shape(both, 4, 128, 128), shape(both, 77, 2048), shape(both, 1280), shape(both, 6))
    with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):
        lowered = jax.jit(guided).lower(params, *inputs)
    found = estimate(hlo.parse(compile_for(mesh, lowered, "full").as_text()), target.chip)
    assert found is not None
    return found.seconds


if __name__ == "__main__":
    main()
