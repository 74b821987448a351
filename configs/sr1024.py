"""The paper's second super-resolution stage: 256 to 1024 pixels, trained on crops.

Run:       imagen train --config configs/sr1024.py --data EMBEDDINGS --workdir RUN --multi-host
Hardware:  128 TPU v4 chips (the paper's)
Data:      captioned images of at least 1024 pixels, embedded by T5-XXL (4096 wide, 128 tokens);
           training sees random crops of 256 pixels, with their own 64 pixels of low resolution
Result:    not yet run; compiled for v4:4x4x8, see docs/plans/

The network has no self-attention and may be sampled at any size. Our reading of the 400M
parameters: attention to the text once behind the blocks of 1024 channels, of which there are 7.
"""

from ml_collections import ConfigDict

from imagen_jax.config import load_config


def get_config() -> ConfigDict:
    config = ConfigDict(load_config("sr256"))
    stage = config.stages.sr256
    stage.update(resolution=1024, low_res=256, crop=256)
    stage.network.update(blocks=(2, 4, 8, 7), self_attention=(False,) * 4, attend="level")
    stage.schedule = ConfigDict({"kind": "linear"})
    stage.sample.guidance = 1.0
    config.stages = ConfigDict({"sr1024": stage})
    return config
