"""From prompts to images through all stages of a cascade.

    cascade = Cascade.load()                                  # the one that comes along
    samples = cascade.sample(["a red apple on a blue background"], seed=1, per_prompt=4)
    samples.save("images")

The way of a request, which is also the order of the imports:
    prompts.py   prompts, blends of two, and their token states
    images.py    images and masks that are given: read, checked, resized
    stages.py    which stages run, with which settings, at which sizes
    request.py   Request: all that is asked for, checked once, with the record of every image
    safety.py    safety checker and watermark of the cascades that have them
    run.py       one stage over all images, batch by batch; Step and Finished, told on the way
    files.py     an image's file with its record, and the request that repeats it
    folder.py    a folder of images that a stopped run resumes and no other one overwrites
    samples.py   Samples: what comes back
    loaded.py    Loaded: stages, weights and text encoder, in memory when they are needed
    cascade.py   Cascade: Loaded, with request, run, stream; sample is the first two
    sweep.py     the same under other settings
    compiled.py  a stage as a program that runs without this package, by run_exported.py
"""

from imagen_jax.cascade.cascade import Cascade
from imagen_jax.cascade.files import BLACK, FORMATS, read_record, repeat, save_image
from imagen_jax.cascade.folder import Folder
from imagen_jax.cascade.images import crop_to, read_image, read_mask
from imagen_jax.cascade.prompts import Blend, check_prompts, cut_prompts
from imagen_jax.cascade.request import Request, StageRequest
from imagen_jax.cascade.run import BATCH_SIZES, Finished, Step
from imagen_jax.cascade.samples import Samples, count_black
from imagen_jax.cascade.stages import Settings
from imagen_jax.cascade.sweep import Axis, Sweep, combinations, sweep

__all__ = [
    "BATCH_SIZES",
    "BLACK",
    "FORMATS",
    "Axis",
    "Blend",
    "Cascade",
    "Finished",
    "Folder",
    "Request",
    "Samples",
    "Settings",
    "StageRequest",
    "Step",
    "Sweep",
    "check_prompts",
    "combinations",
    "count_black",
    "crop_to",
    "cut_prompts",
    "read_image",
    "read_mask",
    "read_record",
    "repeat",
    "save_image",
    "sweep",
]
