"""The paper's second super-resolution stage: 256 to 1024 pixels, trained on crops.

Run:       imagen train --config configs/sr1024.py --data EMBEDDINGS --workdir RUN --multi-host
Hardware:  128 TPU v4 chips (the paper's)
Data:      captioned images of at least 1024 pixels, embedded by T5-XXL (4096 wide, 128 tokens);
           training sees random crops of 256 pixels, with their own 64 pixels of low resolution
Result:    not yet run; compiled for v4:4x4x8, see docs/plans/

Saharia et al. 2022, section 4.1 and appendix F.3. 484M parameters; the paper says 400M, but lists
the blocks of the stage before, and those are followed here. The network has no self-attention and
may be sampled at any size. Where this differs from the paper, or fills in what it does not say,
besides what configs/base64.py and configs/sr256.py list:
* Attention to text comes once behind the blocks of 1,024 channels (figure A.28), as wide as they
  are.
* Guidance 8, as in the stage before: the paper has "relatively large" weights for all stages,
  without numbers for this one. It doubles the cost of a step.
"""

from ml_collections import ConfigDict

from imagen_jax.config import load_config


def get_config() -> ConfigDict:
    config = ConfigDict(load_config("sr256"))
    stage = config.stages.sr256
    stage.update(resolution=1024, low_res=256, crop=256)
    stage.network.update(self_attention=(False,) * 4, attend="level")
    stage.schedule = ConfigDict({"kind": "linear"})
    config.stages = ConfigDict({"sr1024": stage})
    return config
