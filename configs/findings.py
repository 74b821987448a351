"""Small stages that the paper's findings are repeated with: a base of 16 pixels, and 16 -> 32.

Run:       bash launch/findings.sh encoders pooling unet prediction
Hardware:  2 CPU cores
Data:      scenes, level "quickstart", 64 px, captions embedded by the encoder that is measured
Result:    docs/findings.md

The quickstart's stages at smaller sizes, without the trainable layers that help a small language
model there: text_layers is 0, as in the paper, so that only the frozen encoder binds words to one
another. The base attends to itself, so that it is told positions with and without cross-attention.
Base and super-resolution are no cascade here: the base's pictures are scored as they are.
"""

from ml_collections import ConfigDict

from imagen_jax.config import load_config


def get_config() -> ConfigDict:
    config = ConfigDict(load_config("quickstart"))
    config.cascade = ("base",)
    base, sr = config.stages.base, config.stages.sr
    base.resolution = base.schedule.image_size = sr.low_res = 16
    sr.resolution = 32
    for stage in (base, sr):
        stage.network.update(text_layers=0, text_pool="attention")
    base.network.self_attention = (False, True, True)
    base.train.update(sample_every=1200, checkpoint_every=300)
    return config
