"""From prompts to images through all stages of a cascade.

    cascade = Cascade.load()                                  # the one that comes along
    samples = cascade.sample(["a red apple on a blue background"], seed=1, per_prompt=4)
    save_samples(samples, "images")

Images can also be edited (image and strength or mask), enlarged (image alone), swept over
settings (`sweep`) and repeated from their files (`read_record`, `repeat`).
"""

from imagen_jax.cascade.cascade import Cascade
from imagen_jax.cascade.files import (
    FORMATS,
    Writer,
    grid_of,
    read_record,
    repeat,
    save_image,
    save_samples,
)
from imagen_jax.cascade.images import crop_to, read_image, read_mask
from imagen_jax.cascade.prompts import Blend, check_prompts
from imagen_jax.cascade.run import BATCH_SIZES, Step
from imagen_jax.cascade.samples import CascadeSamples, Finished
from imagen_jax.cascade.sweep import Axis, Sweep, sweep

__all__ = [
    "BATCH_SIZES",
    "FORMATS",
    "Axis",
    "Blend",
    "Cascade",
    "CascadeSamples",
    "Finished",
    "Step",
    "Sweep",
    "Writer",
    "check_prompts",
    "crop_to",
    "grid_of",
    "read_image",
    "read_mask",
    "read_record",
    "repeat",
    "save_image",
    "save_samples",
    "sweep",
]
