"""Embeds captions once, offline: pictures and captions -> shards of pictures and token states."""

from imagen_jax.embed.job import embed, embed_scenes

__all__ = ["embed", "embed_scenes"]
