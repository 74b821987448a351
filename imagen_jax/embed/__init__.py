"""Embeds captions once, offline: pictures and captions -> shards of pictures and token states."""

from imagen_jax.embed.job import embed

__all__ = ["embed"]
