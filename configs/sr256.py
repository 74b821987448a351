"""The paper's first super-resolution stage: 64 to 256 pixels, by the Efficient U-Net.

Run:       imagen train --config configs/sr256.py --data EMBEDDINGS --workdir RUN --multi-host
Hardware:  128 TPU v4 chips (the paper's)
Data:      captioned images of at least 256 pixels, embedded by T5-XXL (4096 wide, 128 tokens)
Result:    not yet run; compiled for v4:4x4x8, see docs/plans/

Saharia et al. 2022, section 4.1 and appendix F.2. 576M parameters, 600M in the paper. Where this
differs from the paper, or fills in what it does not say, besides what configs/base64.py lists:
* Attention follows each residual block of 1,024 channels and is as wide, 8 heads of 128. The
  drawing of a block (figure A.28) has it once behind all of them and twice as wide. That has 501M
  parameters, and twice as wide behind each block 677M; the paper's 600M lie between, and this is
  nearest.
* The last norm has scale and shift from the conditioning vector, too: 263 thousand parameters.
* Text tokens have 1,024 channels and the conditioning vector 512: not in the paper.
* Guidance 8, as for table 1 (section D.2: "relatively large" weights for all stages).
* aug_level is a time of the cosine schedule in every stage. Samples are drawn at 0.1 (sigma 0.16):
  the paper sweeps it, and figure A.12 has 0.3 for both stages.
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
    config.stages.sr256.sample.guidance = 8.0
    return config
