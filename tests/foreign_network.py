"""A network of plain flax layers that knows nothing of this package but the contract."""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax.numpy as jnp

from imagen_jax.models.base import BaseNetwork


class Foreign(BaseNetwork):
    width: int

    @nn.compact
    def __call__(self, x: Any, logsnr: Any, conditioning: Any, train: bool = False) -> Any:
        states, mask = conditioning.text
        text = jnp.where(mask[..., None], states, 0).sum(axis=1)
        vector = nn.Dense(self.width)(jnp.concatenate([text, logsnr[:, None] / 20], axis=-1))
        inputs = [x] if conditioning.low_res is None else [x, conditioning.low_res]
        y = nn.Conv(self.width, (3, 3))(jnp.concatenate(inputs, axis=-1))
        y = nn.silu(y + nn.silu(vector)[:, None, None])
        y = nn.Dropout(0.1, deterministic=not train)(y)
        return nn.Conv(x.shape[-1], (3, 3))(y)
