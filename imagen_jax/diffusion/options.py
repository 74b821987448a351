"""Options that some of the functions of a table take, by name."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

from imagen_jax.errors import UserError


def options_of(what: str, chosen: Callable[..., Any], **given: Any) -> dict[str, Any]:
    """Return the options that are not None.

    Args:
      what: names the chosen one in the message.
      chosen: takes the options.
      **given: options, None where one was not given.

    Raises:
      UserError: an option was given that the chosen one does not take.
    """
    options = {name: value for name, value in given.items() if value is not None}
    takes = [name for name in inspect.signature(chosen).parameters if name in given]
    for name in options:
        if name not in takes:
            raise UserError(f"{what} has no option {name!r}; it has {', '.join(takes) or 'none'}")
    return options
