"""A small cascade on built-in scenes, 32 -> 64 pixels: for a CPU.

Run:       bash launch/quickstart.sh
Hardware:  2 CPU cores
Data:      scenes, level "quickstart", 64 px, captions embedded by MiniLM (384 wide)
Result:    18 min 34 s with everything, installation apart, 17 min 1 s of it training and sampling;
           all correct in 100% (95%: 94-100) of held-out prompts with one object and in 89% (79-95)
           with two, of 64 each; aims were 60% and 40%

Where it differs from the paper, for the sake of minutes on a CPU:
* The base stage is an Efficient U-Net too: the layers of a U-Net at the full resolution cost most.
* No scale-shift norm inside residual blocks (scale_shift_norm): the shipped weights have none.
* Errors of x0 count alike at all noise levels, so that most of the loss is about what the text
  decides. Networks predict v, which leaves least for them to do where there is little noise.
* The base's noise schedule is shifted far: flat colours on a flat background show through noise
  that hides a photograph, and which object lies on which side is learned only where they do not (at
  logsnr below about -6, which is 12% of the examples with reference_size 8 and 64% with 1).
* The base attends to text alone, not to itself, and its positions are told where they lie. (With
  self-attention, no positions and reference_size 8, sides were left to chance after 4,000 steps.)
* Text is dropped for 5% of the examples, not 10%: without text the error is many times larger, and
  its gradients drown those of what the text says.
* Images are sampled without guidance: a weight of 2 leaves 78% and 55% right.
* Estimates are clipped to [-1, 1] (static thresholding). Colours here lie near both ends of that
  range, and dynamic thresholding, made for high guidance weights, turns black and white to grey.
* The low-resolution image is noised up to 0.3, not up to 1: a small network spends its few steps
  near the level that it is sampled at.
* Super-resolution takes small batches: 1,200 steps of 8 images leave less noise in its images
  than 600 of 16, in the same time.
* Muon in place of Adam: fewer steps to the same loss (benchmarks/learning_curve.py compares).
"""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    diffusion = {"parametrization": "v", "weighting": "x0", "time_sampling": "stratified"}
    train = {
        "batch_size": 32,
        "steps": 1200,
        "optimizer": "muon",
        "learning_rate": 2e-3,
        "warmup_steps": 100,
        "clip_norm": 1.0,
        "ema_decay": 0.999,
        "text_dropout": 0.05,
        "max_aug_level": 1.0,
        "seed": 0,
        "log_every": 50,
        "sample_every": 600,
        "checkpoint_every": 600,
        "keep_checkpoints": 2,
    }
    sample = {
        "sampler": "dpmpp_2m",
        "steps": 8,
        "time_grid": "uniform_t",
        "guidance": 3.0,
        "threshold": "static",
        "percentile": 99.5,
        "aug_level": 0.1,
    }
    return ConfigDict(
        {
            "text": {"encoder": "minilm", "width": 384, "max_length": 32},
            "cascade": ("base", "sr"),
            "stages": {
                "base": {
                    "resolution": 32,
                    "network": {
                        "kind": "efficient_unet",
                        "channels": (48, 96, 144),
                        "blocks": (1, 2, 2),
                        "self_attention": (False, False, False),
                        "cross_attention": (False, True, True),
                        "attention_positions": True,
                        "head_channels": 48,
                        "text_channels": 144,
                        "text_layers": 2,
                        "dtype": "float32",
                        "scale_shift_norm": False,
                    },
                    "schedule": {"kind": "shifted_cosine", "image_size": 32, "reference_size": 1},
                    "diffusion": diffusion,
                    "train": train,
                    "sample": sample | {"guidance": 1.0},
                },
                "sr": {
                    "resolution": 64,
                    "low_res": 32,
                    "network": {
                        "kind": "efficient_unet",
                        "channels": (24, 48, 96),
                        "blocks": (1, 1, 2),
                        "self_attention": (False, False, False),
                        "cross_attention": (False, False, True),
                        "head_channels": 32,
                        "text_channels": 96,
                        "text_layers": 1,
                        "dtype": "float32",
                        "scale_shift_norm": False,
                    },
                    "schedule": {"kind": "cosine"},
                    "diffusion": diffusion,
                    "train": train | {"batch_size": 8, "max_aug_level": 0.3},
                    "sample": sample | {"guidance": 1.0, "aug_level": 0.02},
                },
            },
        }
    )
