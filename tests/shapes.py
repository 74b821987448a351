"""Checks of array shapes: that jaxtyping's annotations hold at every call.

jaxtyping's import hook decorates all functions of a package with `check`: sizes that one name
stands for, such as b, must agree over a function's arguments and its result. Jitted functions are
checked while they are traced. test_shapes.py does so.
"""

from __future__ import annotations

import functools
import inspect
import operator
import types
from collections.abc import Callable
from typing import Any, Union, get_args, get_origin

import jax
from beartype import BeartypeConf, beartype
from jax.typing import ArrayLike
from jaxtyping import AbstractArray

_checked = beartype(conf=BeartypeConf(is_pep484_tower=True))  # an int is a float


def check(function: Callable[..., Any]) -> Callable[..., Any]:
    """Checks arguments and results whose annotations name shapes; all other types are mypy's."""
    hints = {name: hint for name, hint in function.__annotations__.items() if _has_shape(hint)}
    if not hints:
        return function
    function.__annotations__ = {name: _as_jax_takes_it(hint) for name, hint in hints.items()}
    return _checked(function)


def _is_shape(hint: Any) -> bool:
    return inspect.isclass(hint) and issubclass(hint, AbstractArray)


def _has_shape(hint: Any) -> bool:
    if get_origin(hint) is Callable:  # whose arguments are known when it is called
        return False
    return _is_shape(hint) or any(map(_has_shape, get_args(hint)))


def _as_jax_takes_it(hint: Any) -> Any:
    """The annotation with NumPy's arrays and Python's numbers where it has JAX's arrays."""
    if _is_shape(hint):
        return hint.dtype[ArrayLike, hint.dim_str] if hint.array_type is jax.Array else hint
    arguments = tuple(map(_as_jax_takes_it, get_args(hint)))
    if get_origin(hint) in (Union, types.UnionType):
        return functools.reduce(operator.or_, arguments)
    return get_origin(hint)[arguments] if _has_shape(hint) else hint
