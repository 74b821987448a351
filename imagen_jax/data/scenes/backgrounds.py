"""Backgrounds of open scenes: a named colour, never quite the same, plain or gently shaded."""

from __future__ import annotations

import numpy as np

from imagen_jax.data.scenes.scene import Scene
from imagen_jax.data.scenes.vocabulary import BACKGROUNDS

_NEAR = 6.0
"""Levels, of 255, that each channel of a colour is off by at most."""
_SHADED = 0.5
_RANGE = (8.0, 26.0)
"""Levels between the lightest and the darkest place of a shaded background (least, most)."""


def shaded_background(scene: Scene, side: int) -> np.ndarray:
    """The background of an open scene, uint8 [side, side, 3]; sizes agree."""
    rng = np.random.default_rng([scene.variation, 3])
    colour = np.asarray(BACKGROUNDS[scene.background]) + rng.uniform(-_NEAR, _NEAR, 3)
    shaded, radial = rng.random() < _SHADED, rng.random() < 0.4
    amount = rng.uniform(*_RANGE) * (1 if rng.random() < 0.5 else -1)
    angle, centre = rng.uniform(0, 2 * np.pi), rng.uniform(0.3, 0.7, 2)
    if not shaded:
        return np.broadcast_to(_to_bytes(colour), (side, side, 3)).copy()
    at = (np.arange(side, dtype=np.float32) + 0.5) / side
    if radial:
        ramp = np.hypot(at[:, None] - centre[0], at[None] - centre[1]) / np.sqrt(0.5) - 0.5
    else:
        ramp = (at[:, None] - 0.5) * np.sin(angle) + (at[None] - 0.5) * np.cos(angle)
    return _to_bytes(colour + amount * ramp[..., None])


def _to_bytes(levels: np.ndarray) -> np.ndarray:
    return np.clip(np.round(levels), 0, 255).astype(np.uint8)
