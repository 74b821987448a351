"""The contract of a network: all that the rest of the package asks of one.

    class Pixels(BaseNetwork):
        width: int

        @nn.compact
        def __call__(self, x, logsnr, conditioning, train=False):
            y = nn.silu(nn.Conv(self.width, (3, 3))(x))
            ...
            return nn.Conv(x.shape[-1], (3, 3))(y)

A config names it as "module:Class", and its fields are the keys of the config's section `network`:
training, validation, sampling, evaluation, export and `imagen plan` need nothing else.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, ClassVar, Self

import flax.linen as nn
from jaxtyping import Array, Float

from imagen_jax.errors import UserError
from imagen_jax.typing import Conditioning

TEXT_CACHE = "text_cache"
"""Collection of what a network computes from the text alone, once for all steps of sampling."""


class BaseNetwork(nn.Module):
    """Base class of networks. A subclass must define `__call__`; all else has a default.

    Fields are plain values (numbers, strings, tuples), so that a config can set them and a stage
    can be hashed. The only variables are parameters. A parameter may name its logical axes
    (layers.partitioned, sharding.LOGICAL_AXIS_RULES) to be divided over devices; plain flax
    parameters are copied to every device. The random stream "dropout" is there in training.

    Attributes:
      dtype: dtype of activations. A subclass that can compute in another one declares the field
        `dtype: Literal["float32", "bfloat16"]`. Parameters and the output are float32.
      remat: rematerialisation policy, a key of stack.REMAT. A subclass that can
        recompute declares the field `remat: Remat`.
      predicts_variance: True if the output has twice the channels of x: the prediction, then v,
        from -1 to 1 between the least and the largest log variance of a reverse step (Nichol &
        Dhariwal 2021, equation (15)).
      outer_layers: names of the top-level submodules that read or make pixels; Muon leaves their
        kernels to Adam.
    """

    dtype = "float32"
    remat = "none"
    predicts_variance: ClassVar[bool] = False
    outer_layers: ClassVar[tuple[str, ...]] = ()

    @property
    def size_multiple(self) -> int:
        """Height and width of images must be multiples of this."""
        return 1

    def __call__(
        self,
        x: Float[Array, "b h w c"],
        logsnr: Float[Array, " b"],
        conditioning: Conditioning,
        train: bool = False,
    ) -> Float[Array, "b h w c"]:
        """Prediction for x_t at a noise level, in the stage's parametrization.

        What is computed from `conditioning.text` alone may be wrapped in `self.cached`, so that
        sampling computes it once for all steps.

        Args:
          x: noised images x_t.
          logsnr: log signal-to-noise ratio of each, about -20 (noise) to 20 (clean).
          conditioning: text, whose masked states must not be read (an example whose mask is all
            False is unconditional); for super-resolution, low_res at the size of x and its
            aug_level, otherwise None.
          train: dropout is on.

        Returns:
          Float32, in the shape of x; with predicts_variance, of twice its channels.
        """
        raise NotImplementedError

    @nn.nowrap
    def cached(self, name: str, compute: Callable[[], Any]) -> Any:
        """See `cached`."""
        return cached(self, name, compute)

    @nn.nowrap
    def with_dtype(self, dtype: str) -> Self:
        """The network with activations of another dtype.

        Raises:
          UserError: the network has no field `dtype` and computes in float32.
        """
        return self._with("dtype", dtype)

    @nn.nowrap
    def with_remat(self, remat: str) -> Self:
        """The network with another rematerialisation policy.

        Raises:
          UserError: the network has no field `remat` and recomputes nothing.
        """
        return self._with("remat", remat)

    @classmethod
    def has_field(cls, name: str) -> bool:
        """True if a config can set `name`."""
        return name in {field.name for field in dataclasses.fields(cls)}

    @nn.nowrap
    def _with(self, field: str, value: str) -> Self:
        if getattr(self, field) == value:
            return self
        if not self.has_field(field):
            raise UserError(
                f"network {type(self).__name__} has no field {field!r}, so its {field} is always "
                f"{getattr(self, field)!r}; {value!r} was asked for"
            )
        changed: dict[str, Any] = {field: value}
        return self.clone(**changed)


def cached(module: nn.Module, name: str, compute: Callable[[], Any]) -> Any:
    """Return what `compute` makes from the text alone, or what TEXT_CACHE holds of it.

    Where that collection is mutable, the result is stored in it.
    """
    if module.has_variable(TEXT_CACHE, name):
        return module.get_variable(TEXT_CACHE, name)
    value = compute()
    if module.is_mutable_collection(TEXT_CACHE) and not module.is_initializing():
        module.put_variable(TEXT_CACHE, name, value)
    return value
