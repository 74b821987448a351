"""The paper's first super-resolution stage: 64 to 256 pixels, by the Efficient U-Net.

Run:       imagen train --config configs/sr256.py --data EMBEDDINGS --workdir RUN --multi-host
Hardware:  128 TPU v4 chips (the paper's)
Data:      captioned images of at least 256 pixels, embedded by T5-XXL (4096 wide, 128 tokens)
Result:    not yet run; compiled for v4:4x4x8, see docs/plans/

Our reading of the 600M parameters, where the paper leaves the place of attention open: blocks of
1024 channels are each followed by self-attention and by attention to the text.
"""

from ml_collections import ConfigDict

from imagen_jax.config import load_config


def get_config() -> ConfigDict:
    config = ConfigDict(load_config("base64"))
    base = config.stages.base64
    config.stages = ConfigDict(
        {
            "sr256": {
                "resolution": 256,
                "low_res": 64,
                "network": {
                    "kind": "efficient_unet",
                    "channels": (128, 256, 512, 1024),
                    "blocks": (2, 4, 8, 8),
                    "self_attention": (False, False, False, True),
                    "cross_attention": (False, False, False, True),
                    "attend": "block",
                    "head_channels": 128,
                    "text_channels": 1024,
                    "text_layers": 0,
                    "dtype": "bfloat16",
                    "remat": "products",
                },
                "schedule": base.schedule,
                "diffusion": base.diffusion,
                "train": base.train,
                "sample": base.sample,
                "mesh": {"data": -1, "fsdp": 16},
            }
        }
    )
    config.stages.sr256.train.optimizer = "adam"
    config.stages.sr256.sample.guidance = 4.0
    return config
