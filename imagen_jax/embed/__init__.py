"""Embeds captions once, offline: images and captions -> shards of images and token states.

job        `embed`: its directory, how processes share it, its manifest
prepare    examples -> chunks of fitted images and tokens, ahead of the encoder
shard      chunks -> shards
outcome    what to say of a job that kept nothing
estimate   what a corpus will take, from a sample of it
"""

from imagen_jax.embed.job import default_shards, embed

__all__ = ["default_shards", "embed"]
