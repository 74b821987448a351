"""DeepFloyd IF, stages I-XL and II-L: to plan what they take, and to fine-tune them.

Run:       imagen import deepfloyd IF-I-XL-v1.0 IF-II-L-v1.0 --variant fp16 --output IF
           imagen train --config configs/deepfloyd.py --stage base --init-from IF \
               --data EMBEDDINGS --workdir RUN
Hardware:  one v4-8 (4 chips) or v5e-8 for all weights of stage I-XL
Data:      captioned images of at least 64 pixels, embedded by encoder t5-if (4096 wide, 77 tokens)
Result:    not yet run; the weights are gated, and their licence is for research alone

Other sizes: change the fields of the networks to those in IF/cascade.json.
"""

from ml_collections import ConfigDict

from imagen_jax.checkpoints.deepfloyd import stage_section

COMMON = {"head_channels": 64, "groups": 32, "pool_heads": 64}


def get_config() -> ConfigDict:
    base = stage_section(
        {
            "channels": (704, 1408, 2112, 2816),
            "blocks": (3, 3, 3, 3),
            "attention": (False, True, True, True),
            "features": 2816,
            "text_channels": 2816,
            "out_scale": 1.0,
            **COMMON,
        },
        resolution=64,
        low_res=0,
        percentile=95.0,
        cap=1.5,
    )
    sr = stage_section(
        {
            "channels": (160, 320, 640, 960, 1280),
            "blocks": (2, 2, 3, 5, 5),
            "attention": (False, False, False, True, True),
            "features": 1280,
            "text_channels": 1280,
            "out_scale": 1.4142271248762552,
            **COMMON,
        },
        resolution=256,
        low_res=64,
        percentile=95.0,
        cap=1.0,
    )
    for section in (base, sr):
        section["network"] |= {"dtype": "bfloat16", "remat": "blocks"}
        section["mesh"] = {"fsdp": -1}
        # With the small variance: training changes eps alone, and not the learned one.
        section["sample"]["sampler"] = "ddpm"
    return ConfigDict(
        {
            "text": {"encoder": "t5-if", "width": 4096, "max_length": 77},
            "cascade": ("base", "sr"),
            "stages": {"base": base, "sr": sr},
        }
    )
