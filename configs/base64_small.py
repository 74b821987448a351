"""A base stage of a fifth of the paper's size, for one machine: text to 64 x 64 pixels.

Run:       imagen train --config configs/base64_small.py --data EMBEDDINGS --workdir RUN
Hardware:  one v4-8 (4 chips), v5e-8 or 8 x H100
Data:      captioned images of at least 64 pixels, embedded by T5-XXL (4096 wide, 128 tokens)
Result:    not yet run; compiled for 8 x H100, see docs/plans/h100-base64-small.txt
"""

from ml_collections import ConfigDict

from imagen_jax.config import load_config


def get_config() -> ConfigDict:
    config = ConfigDict(load_config("base64"))
    stage = config.stages.base64
    stage.network.update(channels=256, blocks=(2, 2, 2, 2))
    stage.train.update(batch_size=256, steps=500_000)
    stage.mesh = ConfigDict({"fsdp": -1})
    return config
