"""The paper's base stage: text to 64 x 64 pixels.

Run:       imagen train --config configs/base64.py --data EMBEDDINGS --workdir RUN --multi-host
Hardware:  256 TPU v4 chips (the paper's)
Data:      captioned images of at least 64 pixels, embedded by T5-XXL (4096 wide, 128 tokens)
Result:    not yet run; compiled for v4:8x8x4, see docs/plans/

Saharia et al. 2022, section 4.1 and appendix F.1. 2,063M parameters, 2B in the paper. Where this
differs from the paper, or fills in what it does not say:
* The noise level enters as logsnr, not as t: the same network then serves every schedule.
* Text tokens have 512 channels and the conditioning vector 1,024: not in the paper; for 2B
  parameters.
* Text is dropped by zero states, as in the paper, and by masking them; attention then sees a
  learned null token, so that its softmax is defined.
* Tokens are layer-normalised once, as in the paper, and again in front of each layer's keys and
  values.
* The last convolution is in float32 (ADM's is, too): bfloat16 would round eps, and x0 with it.
* Gradients are clipped at norm 1: not in the paper; one bad batch cannot undo a run.
* The decay of the EMA is 0.9999: the paper has no number.
* Adafactor has optax's defaults, as in the paper, and a stack of equal blocks counts as one
  parameter.
* Samples are drawn by DPM-Solver++ 2M in 50 steps, where the paper has ancestral sampling and DDIM:
  for fewer steps.
* Guidance 7: the paper has no number for its samples, and 1.35 for its best FID. Percentile 99.5:
  figure A.10.
"""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    return ConfigDict(
        {
            "text": {"encoder": "t5", "width": 4096, "max_length": 128},
            "cascade": ("base64", "sr256", "sr1024"),
            "stages": {
                "base64": {
                    "resolution": 64,
                    "network": {
                        "kind": "unet",
                        "channels": 512,
                        "multipliers": (1, 2, 3, 4),
                        "blocks": (3, 3, 3, 3),
                        "attention": (False, True, True, True),
                        "head_channels": 64,
                        "text_channels": 512,
                        "conditioning_multiplier": 2,
                        "text_layers": 0,
                        "dropout": 0.0,
                        "dtype": "bfloat16",
                        "remat": "products",
                    },
                    "schedule": {"kind": "cosine"},
                    "diffusion": {
                        "parametrization": "eps",
                        "weighting": "eps",
                        "time_sampling": "uniform",
                    },
                    "train": {
                        "batch_size": 2048,
                        "steps": 2_500_000,
                        "optimizer": "adafactor",
                        "learning_rate": 1e-4,
                        "warmup_steps": 10_000,
                        "clip_norm": 1.0,
                        "ema_decay": 0.9999,
                        "text_dropout": 0.1,
                        "max_aug_level": 1.0,
                        "seed": 0,
                        "log_every": 100,
                        "sample_every": 10_000,
                        "checkpoint_every": 2_000,
                        "keep_checkpoints": 5,
                        "keep_every_hours": 24.0,
                        "evaluate_images": 1024,
                    },
                    "sample": {
                        "sampler": "dpmpp_2m",
                        "steps": 50,
                        "time_grid": "uniform_t",
                        "guidance": 7.0,
                        "threshold": "dynamic",
                        "percentile": 99.5,
                        "aug_level": 0.1,
                    },
                    "mesh": {"data": -1, "fsdp": 32},
                },
            },
        }
    )
