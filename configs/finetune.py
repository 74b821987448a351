"""Fine-tuning of the small base stage on other images, from the weights of another run.

Run:       imagen train --config configs/finetune.py --init-from RUN --data EMBEDDINGS --workdir NEW
Hardware:  one v4-8 (4 chips), v5e-8 or H100
Data:      captioned images of at least 64 pixels, embedded by T5-XXL (4096 wide, 128 tokens)
Result:    not yet run
"""

from ml_collections import ConfigDict

from imagen_jax.config import load_config


def get_config() -> ConfigDict:
    config = ConfigDict(load_config("base64_small"))
    config.stages.base64.train.update(
        batch_size=64,
        steps=10_000,
        learning_rate=1e-5,
        warmup_steps=500,
        ema_decay=0.999,
        sample_every=1_000,
        checkpoint_every=1_000,
    )
    return config
