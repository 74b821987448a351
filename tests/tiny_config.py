"""The shipped quickstart config shrunk to a few thousand parameters; its base stage is the paper's
U-Net, and its super-resolution stage the Efficient U-Net."""

from ml_collections import ConfigDict

from imagen_jax.config import load_config


def get_config() -> ConfigDict:
    config = ConfigDict(load_config("quickstart"))
    small = {"head_channels": 4, "text_channels": 8, "text_layers": 1, "blocks": (1, 1)}
    config.stages.base.network = ConfigDict(
        {
            "kind": "unet",
            "channels": 8,
            "multipliers": (1, 2),
            "attention": (False, True),
            "dropout": 0.0,
            "dtype": "float32",
            **small,
        }
    )
    config.stages.sr.network.update(
        channels=(8, 16),
        self_attention=(False, True),
        cross_attention=(False, True),
        scale_shift_norm=True,
        **small,
    )
    config.text.update(encoder="tiny", width=8, max_length=5)
    config.stages.base.resolution = config.stages.sr.low_res = 4
    config.stages.base.schedule.image_size = 4
    config.stages.sr.resolution = 8
    config.stages.base.sample.guidance = 2.0
    for stage in config.stages.values():
        stage.sample.steps = 2
        stage.train.update(
            batch_size=4,
            steps=2,
            warmup_steps=0,
            log_every=1,
            sample_every=2,
            checkpoint_every=2,
            optimizer="adam",  # its programs compile faster than Muon's
        )
    return config
