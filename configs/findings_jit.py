"""A base stage of 32 pixels by the paper's U-Net, and by a transformer over patches as its peer.

Run:       bash launch/findings.sh jit
Hardware:  2 CPU cores
Data:      as configs/findings.py
Result:    docs/findings.md

The stage `base` has the U-Net, the stage `jit` a JiT of about as many FLOPs a step. Both minimise
the error of v; the U-Net predicts v, and the transformer x0, as its paper has it. Nothing is
sampled.
"""

from ml_collections import ConfigDict

from imagen_jax.config import load_config


def get_config() -> ConfigDict:
    config = ConfigDict(load_config("findings"))
    base = config.stages.base
    base.train.steps = 400
    base.resolution = base.schedule.image_size = 32
    base.diffusion = ConfigDict(
        {"parametrization": "v", "weighting": "v", "time_sampling": "stratified"}
    )
    shared = {"text_layers": 0, "dtype": "float32", "text_pool": "attention", "head_channels": 32}
    base.network = ConfigDict(
        {
            "kind": "unet",
            "channels": 16,
            "multipliers": (1, 2, 4),
            "blocks": (1, 1, 2),
            "attention": (False, False, True),
            "text_channels": 96,
            "dropout": 0.0,
            "attention_positions": True,
        }
        | shared
    )
    jit = ConfigDict(base.to_dict())
    jit.network = ConfigDict(
        {"kind": "jit", "patch": 4, "width": 128, "depth": 5, "bottleneck": 32} | shared
    )
    jit.diffusion.parametrization = "x0"
    config.stages = ConfigDict({"base": base, "jit": jit})
    config.cascade = ("base",)
    return config
