"""imagen train that is told to stop when it takes a certain batch.

python tests/train_until.py STEP ARGUMENT OF imagen train ...
"""

from __future__ import annotations

import os
import signal
import sys
from typing import Any

from imagen_jax.data.iterator import BatchIterator
from imagen_jax.main import main

if __name__ == "__main__":
    stop, original = int(sys.argv[1]), BatchIterator.__next__

    def take(self: BatchIterator) -> dict[str, Any]:
        batch = original(self)
        if self.step == stop:
            os.kill(os.getpid(), signal.SIGTERM)
        return batch

    BatchIterator.__next__ = take  # type: ignore[method-assign]
    sys.exit(main(["train", *sys.argv[2:]]))
