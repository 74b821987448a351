"""A module of a user's, for --import: a step of a long job takes its time, whatever the machine."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from imagen_jax.cascade import Cascade, Step
from imagen_jax.page.limits import MAX_STEPS

_run = Cascade.run


def run(cascade: Cascade, request: Any, on_step: Callable[[Step], Any], **options: Any) -> Any:
    def slow(step: Step) -> None:
        on_step(step)
        if step.steps == MAX_STEPS:
            time.sleep(0.1)

    return _run(cascade, request, on_step=slow, **options)


Cascade.run = run  # type: ignore[method-assign]
