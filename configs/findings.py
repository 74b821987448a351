"""Small stages that the paper's findings are repeated with: a base of 16 pixels, and 16 -> 32.

Run:       bash launch/findings.sh encoders pooling unet prediction
Hardware:  2 CPU cores
Data:      scenes, level "quickstart", 64 px, captions embedded by the encoder that is measured
Result:    docs/findings.md

The quickstart's stages, smaller, and without the trainable layers that help a small language model
there: text_layers is 0, as in the paper, so that only the frozen encoder binds words to one
another. The base attends to itself, so that it is told positions with and without cross-attention.
Adam: for networks as small as these, Muon's own products cost as much as theirs.
The two stages are no cascade; errors on held-out images are measured, nothing is sampled.
"""

from ml_collections import ConfigDict

from imagen_jax.config import load_config


def get_config() -> ConfigDict:
    config = ConfigDict(load_config("quickstart"))
    base, sr = config.stages.base, config.stages.sr
    base.resolution = base.schedule.image_size = sr.low_res = 16
    sr.resolution = 32
    for stage in (base, sr):
        stage.network.update(text_layers=0, text_pool="attention")
        stage.train.update(steps=600, warmup_steps=50, optimizer="adam", learning_rate=1e-3)
    base.network.update(
        channels=(48, 96),
        blocks=(1, 2),
        self_attention=(True, True),
        cross_attention=(True, True),
        text_channels=96,
    )
    base.train.batch_size = 16
    return config
