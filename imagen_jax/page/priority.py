"""Priority of sampling: answers go first."""

from __future__ import annotations

import os
import sys
import threading

BEHIND = 10
"""Steps of niceness that sampling is behind answering: where both want a core, a tenth is left."""
SWITCH_SECONDS = 0.0005
"""Seconds that a thread may keep Python's lock while another waits; 0.005 is Python's own."""


def compute_behind() -> None:
    """Start JAX with threads that let others go first; before anything else of JAX is called.

    Tracing a program that is new is Python for seconds, of which others get a turn every
    SWITCH_SECONDS. XLA keeps all cores busy while it samples, and on a machine of a few the page
    would wait for it. Its threads have the niceness of the thread that starts them, in which Linux
    differs from other systems.
    """

    def start() -> None:
        thread = threading.get_native_id()
        niceness = os.getpriority(os.PRIO_PROCESS, thread) + BEHIND
        os.setpriority(os.PRIO_PROCESS, thread, min(niceness, 19))
        import jax

        jax.devices()

    sys.setswitchinterval(SWITCH_SECONDS)
    if sys.platform == "linux":
        starting = threading.Thread(target=start, name="start of JAX")
        starting.start()
        starting.join()
