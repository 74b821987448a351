"""Checks of array shapes: jaxtyping's annotations hold at every call that any test makes.

jaxtyping's import hook, which conftest.py installs, decorates all functions of the modules that
name shapes with `check`: sizes that one name stands for, such as b, must agree over a function's
arguments and its result. Jitted functions are checked while they are traced.
"""

from __future__ import annotations

import functools
import inspect
import operator
import types
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, Union, get_args, get_origin, get_type_hints

import jax
from beartype import BeartypeConf, beartype
from beartype.door import is_bearable
from beartype.vale import Is
from jax.typing import ArrayLike
from jaxtyping import AbstractArray, jaxtyped

_checked = beartype(conf=BeartypeConf(is_pep484_tower=True))  # an int is a float

PACKAGE = Path(__file__).resolve().parent.parent / "imagen_jax"


def annotated_modules() -> list[str]:
    """The modules of the package that name shapes; decorating all others, too, takes seconds.

    Without cascade/, which checks what users give it, with errors of its own.
    """
    found = []
    for path in sorted(set(PACKAGE.rglob("*.py")) - set(PACKAGE.glob("cascade/*"))):
        source = path.read_text(encoding="utf-8")
        if "from jaxtyping import" in source or "from imagen_jax.typing import" in source:
            found.append(".".join(path.relative_to(PACKAGE.parent).with_suffix("").parts))
    return found


def check(function: Callable[..., Any]) -> Callable[..., Any]:
    """Checks arguments and results whose annotations name shapes; all other types are mypy's."""
    hints = {name: hint for name, hint in function.__annotations__.items() if _has_shape(hint)}
    if not hints:
        return function
    function.__annotations__ = {name: _as_jax_takes_it(hint) for name, hint in hints.items()}
    return _checked(function)


def _is_shape(hint: Any) -> bool:
    return inspect.isclass(hint) and issubclass(hint, AbstractArray)


@functools.cache
def _fields(hint: Any) -> dict[str, Any]:
    """Types of a named tuple's fields; empty for all else."""
    named = inspect.isclass(hint) and issubclass(hint, tuple) and hasattr(hint, "_fields")
    return get_type_hints(hint) if named else {}


def _has_shape(hint: Any) -> bool:
    if get_origin(hint) is Callable:  # whose arguments are known when it is called
        return False
    return _is_shape(hint) or any(map(_has_shape, (*get_args(hint), *_fields(hint).values())))


@functools.cache  # each annotation is eleven classes, which take 40 ms to make
def _as_jax_takes_it(hint: Any) -> Any:
    """The annotation with NumPy's arrays and Python's numbers where it has JAX's arrays."""
    if _is_shape(hint):
        return hint.dtype[ArrayLike, hint.dim_str] if hint.array_type is jax.Array else hint
    if not _has_shape(hint):
        return hint
    if _fields(hint):
        return Annotated[hint, Is[functools.partial(_fields_agree, hint)]]
    arguments = tuple(map(_as_jax_takes_it, get_args(hint)))
    if get_origin(hint) in (Union, types.UnionType):
        return functools.reduce(operator.or_, arguments)
    return get_origin(hint)[arguments]


def _fields_agree(named: Any, value: Any) -> bool:
    """True if the sizes of a named tuple's fields agree; its letters are its own."""
    with jaxtyped("context"):
        return all(
            is_bearable(getattr(value, name), _as_jax_takes_it(hint))
            for name, hint in _fields(named).items()
        )
