"""The pretrained demo cascade: the quickstart's networks, trained longer on more images.

Run:       bash launch/demo.sh
Hardware:  2 CPU cores
Data:      scenes, level "quickstart", 64 px, captions embedded by MiniLM (384 wide)
Result:    docs/demo.md

The base stage starts from the weights of the quickstart's.
"""

from ml_collections import ConfigDict

from imagen_jax.config import load_config


def get_config() -> ConfigDict:
    config = ConfigDict(load_config("quickstart"))
    config.stages.base.train.update(steps=800, learning_rate=1e-3)
    config.stages.sr.train.update(steps=1_500, batch_size=16)
    config.stages.sr.sample.aug_level = 0.05
    for stage in config.stages.values():
        stage.train.update(sample_every=1_000, checkpoint_every=500)
    return config
