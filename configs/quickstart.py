"""A small cascade on built-in scenes, 16 -> 64 pixels: for a CPU.

Run:       bash launch/quickstart.sh
Hardware:  2 CPU cores
Data:      scenes, level "quickstart", 64 px, captions embedded by MiniLM (384 wide)
Result:    not yet run to the end
"""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    diffusion = {
        "schedule": "cosine",
        "parametrization": "v",
        "weighting": "v",
        "time_sampling": "stratified",
    }
    train = {
        "batch_size": 16,
        "steps": 4000,
        "optimizer": "adam",
        "learning_rate": 1e-3,
        "warmup_steps": 200,
        "clip_norm": 1.0,
        "ema_decay": 0.999,
        "text_dropout": 0.1,
        "max_aug_level": 1.0,
        "seed": 0,
        "log_every": 50,
        "sample_every": 1000,
        "checkpoint_every": 1000,
        "keep_checkpoints": 2,
    }
    sample = {
        "sampler": "dpmpp_2m",
        "steps": 24,
        "time_grid": "uniform_t",
        "guidance": 3.0,
        "threshold": "dynamic",
        "percentile": 99.5,
        "aug_level": 0.1,
    }
    return ConfigDict(
        {
            "text": {"encoder": "minilm", "width": 384, "max_length": 32},
            "cascade": ("base", "sr"),
            "stages": {
                "base": {
                    "resolution": 16,
                    "low_res": 0,
                    "network": {
                        "kind": "unet",
                        "channels": 48,
                        "multipliers": (1, 2, 3),
                        "blocks": (1, 2, 1),
                        "attention": (False, True, True),
                        "head_channels": 48,
                        "text_channels": 144,
                        "text_layers": 2,
                        "dropout": 0.0,
                        "dtype": "float32",
                        "image_channels": 3,
                    },
                    "diffusion": diffusion,
                    "train": train,
                    "sample": sample | {"guidance": 2.0},
                },
                "sr": {
                    "resolution": 64,
                    "low_res": 16,
                    "network": {
                        "kind": "efficient_unet",
                        "channels": (24, 48, 96),
                        "blocks": (1, 2, 3),
                        "self_attention": (False, False, True),
                        "cross_attention": (False, False, True),
                        "head_channels": 32,
                        "text_channels": 96,
                        "text_layers": 1,
                        "dtype": "float32",
                        "image_channels": 3,
                    },
                    "diffusion": diffusion | {"parametrization": "x0", "weighting": "x0"},
                    "train": train | {"steps": 2000},
                    "sample": sample | {"guidance": 1.5},
                },
            },
        }
    )
