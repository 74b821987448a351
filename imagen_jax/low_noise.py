"""Errors of x0 by noise level: is a network fit for the level at which its sampling ends?

A sampler returns the estimate of its network's last call. The less noise there is, the better an
estimate should be; returning the noisy image itself, x_t / alpha, has the error exp(-logsnr / 2).
Networks that were hardly trained where there is little noise do worse than that, or worse than
they do themselves where there is more of it: grain, and more steps leave more of it.
"""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from imagen_jax.errors import UserError
from imagen_jax.sampling import Edit, noise_levels
from imagen_jax.stage import Stage
from imagen_jax.stage_config import SampleConfig

LEVELS = (-8.0, -4.0, -2.0, 0.0, 2.0, 4.0, 6.0, 8.0, 10.0)
"""logsnr at which errors are measured; the level of the last call is another one."""
MARGIN = 1.1
"""Times its own error at a noisier level from which on an error counts as grown."""
INVISIBLE = 1 / 255
"""Errors below half a grey level, which rounding to 8 bits makes too."""


@dataclasses.dataclass(frozen=True)
class X0Errors:
    """Root mean squared errors of x0, images being in [-1, 1].

    Attributes:
      levels: ascending logsnr.
      network: error of the network's estimate at each.
      identity: error of x_t / alpha at each, on the same noise.
    """

    levels: tuple[float, ...]
    network: tuple[float, ...]
    identity: tuple[float, ...]

    def metrics(self) -> dict[str, float]:
        """Return x0_error_logsnr_<level> and x0_error_over_identity_logsnr_<level>, of LEVELS."""
        return {
            f"x0_error{name}_logsnr_{level:g}": value
            for level, network, identity in zip(
                self.levels, self.network, self.identity, strict=True
            )
            if level in LEVELS
            for name, value in (("", network), ("_over_identity", network / identity))
        }

    def summary(self) -> str:
        """Return all errors in one line, in grey levels of 255."""
        pairs = zip(self.levels, self.network, self.identity, strict=True)
        said = [f"{level:.3g}: {127.5 * n:.3g}/{127.5 * i:.3g}" for level, n, i in pairs]
        return f"x0 error by logsnr, network/identity, of 255: {', '.join(said)}"

    def at(self, level: float) -> tuple[float, float]:
        """Return the errors of network and identity at a level, in between by interpolation of
        their logarithms, beyond the ends those at the ends."""
        network, identity = (
            float(np.exp(np.interp(level, self.levels, np.log(of))))
            for of in (self.network, self.identity)
        )
        return network, identity

    def fault(self, last: float) -> str | None:
        """Return what is wrong with sampling that ends at a level; None if nothing is that shows.

        Args:
          last: logsnr of the network's last call.
        """
        if broken := [
            level for level, error in zip(self.levels, self.network, strict=True)
            if not np.isfinite(error)
        ]:  # fmt: skip
            return (
                f"the network's estimates are not finite (NaN or infinity) at logsnr {broken[0]:g}"
                + f" and at {len(broken) - 1} more" * (len(broken) > 1)
                + ": its weights have diverged, or overflow in its dtype. Go back to an earlier "
                "checkpoint, and train with a lower learning_rate, or network.dtype float32"
            )
        network, identity = self.at(last)
        if network < INVISIBLE:
            return None
        noisier = {level: self.at(level)[0] for level in self.levels if level < last}
        if network > 1.001 * identity:  # a network that returns it has rounding, too
            said = (
                f"is worse than returning the noisy image as it is: its error is {network:.3g}, "
                f"that of x_t / alpha {identity:.3g}"
            )
        elif noisier and network > MARGIN * min(noisier.values()):
            level = min(noisier, key=noisier.__getitem__)
            said = f"has an error of {network:.3g}, and {noisier[level]:.3g} with more noise"
        else:
            return None
        useful = [n for n in noisier if noisier[n] <= min(self.at(n)[1], MARGIN * network)]
        advice = "train it longer, or with more of its loss where there is little noise"
        if useful:
            least = min(noisier[level] for level in useful)
            end = max(level for level in useful if noisier[level] <= 1.02 * least)
            advice = f"set end_logsnr to {end:g}, where it does better, or {advice}"
        return (
            f"the network {said}, at logsnr {last:.3g}, where its sampling ends: expect grain. "
            f"{advice[0].upper()}{advice[1:]}"
        )


def last_level(stage: Stage, settings: SampleConfig) -> float:
    """Return the logsnr of the last call of the network, without an edit."""
    grid, _ = noise_levels(stage, settings, Edit())
    return float(grid[-2])


def from_records(records: Mapping[str, Any], where: Path) -> dict[str, X0Errors]:
    """Return stage -> its errors; of a record that holds something else, a warning is all.

    Args:
      records: stage -> see from_record.
      where: file, or folder of files, that has them.
    """
    found = {}
    for stage, record in records.items():
        try:
            found[stage] = from_record(record)
        except UserError as error:
            warnings.warn(f"stage {stage!r} in {where}: {error}", stacklevel=2)
    return found


def from_record(record: Mapping[str, Any]) -> X0Errors:
    """Return errors that dataclasses.asdict has made a record of.

    Raises:
      UserError: the record holds something else.
    """
    names = ("levels", "network", "identity")
    try:
        values = np.array([record[name] for name in names], float)
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(f"no errors of x0: {type(error).__name__}: {error}") from error
    ascending = values.ndim == 2 and values.size and (np.diff(values[0]) > 0).all()
    sound = np.isfinite(values[[0, -1]]).all() and (values[1:] > 0)[~np.isnan(values[1:])].all()
    if not (ascending and sound):
        raise UserError("no errors of x0: levels must ascend, and errors be above 0")
    return X0Errors(*map(tuple, values.tolist()))
