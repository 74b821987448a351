"""The pretrained demo cascade: the quickstart's networks, trained longer on more pictures.

Run:       bash launch/demo.sh
Hardware:  2 CPU cores
Data:      scenes, level "quickstart", 64 px, captions embedded by MiniLM (384 wide)
Result:    docs/demo.md

The base stage is trained in two phases: 4,000 steps with a schedule that is shifted less
(launch/demo.sh sets it), and from there 1,000 steps by this config, mostly at high noise.
"""

from ml_collections import ConfigDict

from imagen_jax.config import load_config


def get_config() -> ConfigDict:
    config = ConfigDict(load_config("quickstart"))
    config.stages.base.schedule.reference_size = 2
    config.stages.base.train.update(steps=1_000, learning_rate=1e-3, sample_every=500)
    config.stages.sr.train.update(steps=1_500, sample_every=1_000)
    for stage in config.stages.values():
        stage.train.checkpoint_every = 500
    return config
