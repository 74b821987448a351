"""The super-resolution of configs/findings.py by the paper's U-Net, as the Efficient U-Net's peer.

Run:       bash launch/findings.sh unet
Hardware:  2 CPU cores
Data:      as configs/findings.py
Result:    docs/findings.md

As many resolutions, channels and residual blocks as there, the first at full resolution.
"""

from ml_collections import ConfigDict

from imagen_jax.config import load_config


def get_config() -> ConfigDict:
    config = ConfigDict(load_config("findings"))
    efficient = config.stages.sr.network
    config.stages.sr.network = ConfigDict(
        {
            "kind": "unet",
            "channels": 24,
            "multipliers": (1, 2, 4),
            "blocks": efficient.blocks,
            "attention": (False, False, True),
            "dropout": 0.0,
            **{
                key: efficient[key]
                for key in ("head_channels", "text_channels", "text_layers", "text_pool", "dtype")
            },
        }
    )  # fmt: skip
    return config
