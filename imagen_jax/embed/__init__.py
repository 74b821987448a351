"""Embeds captions once, offline: images and captions -> shards of images and token states."""

from imagen_jax.embed.job import embed

__all__ = ["embed"]
