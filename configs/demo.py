"""The demo cascade: any emoji by its name, 64 -> 256 -> 1024 pixels, trained on two CPU cores.

Run:       bash launch/demo.sh
Hardware:  2 CPU cores
Data:      scenes, level "emoji": 60,000 of 64 px, 12,000 of 256 px and 6,000 of 1024 px, captions
           embedded by MiniLM (384 wide)
Result:    not yet run to its end; the weights that are shipped are those of docs/demo.md

Where it differs from the paper, for the sake of hours on a CPU:
* The base stage is an Efficient U-Net too. It reads and makes pixels in patches of 2 x 2, and two
  thirds of its parameters lie at 4 x 4 positions: what 3,000 drawings look like has to be kept
  somewhere, and is kept where it costs least.
* The base's positions are told where they lie, and text passes two trainable layers.
* Networks predict v, errors of v count alike, and the base's noise schedule is shifted as for 8
  pixels: a quarter of the times lie where only the text decides (logsnr below -6), and the error of
  x0 keeps falling with the noise.
* The low-resolution image is noised up to 0.4 of the schedule, not up to 1.
* Crops of 64 pixels for 256, of 128 for 1024: both super-resolution networks are convolutions but
  for the text that they attend to at their lowest resolution.
* Muon in place of Adam and Adafactor.
"""

from ml_collections import ConfigDict

from imagen_jax.config import load_config


def get_config() -> ConfigDict:
    quickstart = load_config("quickstart").stages.base
    diffusion = {"parametrization": "v", "weighting": "v", "time_sampling": "stratified"}
    train = quickstart.train.to_dict() | {
        "text_dropout": 0.1,
        "log_every": 10,
        "sample_every": 1_000,
        "checkpoint_every": 50,
    }
    sample = quickstart.sample.to_dict() | {"threshold": "dynamic"}
    network = {
        "kind": "efficient_unet",
        "self_attention": (False, False, False, False),
        "cross_attention": (False, False, False, True),
        "head_channels": 32,
        "text_channels": 96,
        "text_layers": 1,
        "dtype": "float32",
        "scale_shift_norm": True,
    }
    return ConfigDict(
        {
            "text": {"encoder": "minilm", "width": 384, "max_length": 32},
            "cascade": ("base", "sr256", "sr1024"),
            "stages": {
                "base": {
                    "resolution": 64,
                    "network": network
                    | {
                        "patch": 2,
                        "channels": (64, 128, 224),
                        "blocks": (1, 2, 3),
                        "self_attention": (False, True, True),
                        "cross_attention": (False, True, True),
                        "attention_positions": True,
                        "text_channels": 192,
                        "text_layers": 2,
                    },
                    "schedule": {"kind": "shifted_cosine", "image_size": 64, "reference_size": 8},
                    "diffusion": diffusion,
                    "train": train | {"batch_size": 96, "steps": 8_000, "warmup_steps": 200},
                    "sample": sample | {"steps": 16, "guidance": 2.0},
                },
                "sr256": {
                    "resolution": 256,
                    "low_res": 64,
                    "crop": 64,
                    "network": network | {"channels": (32, 64, 96, 128), "blocks": (1, 1, 2, 2)},
                    "schedule": {"kind": "cosine"},
                    "diffusion": diffusion,
                    "train": train | {"batch_size": 16, "steps": 6_000, "max_aug_level": 0.4},
                    "sample": sample | {"guidance": 1.0, "aug_level": 0.1},
                },
                "sr1024": {
                    "resolution": 1024,
                    "low_res": 256,
                    "crop": 128,
                    "network": network | {"channels": (16, 32, 64, 96), "blocks": (1, 1, 1, 1)},
                    "schedule": {"kind": "cosine"},
                    "diffusion": diffusion,
                    "train": train | {"batch_size": 8, "steps": 5_000, "max_aug_level": 0.4},
                    "sample": sample | {"guidance": 1.0, "aug_level": 0.05},
                },
            },
        }
    )
