"""A command of imagen that stops where a test wants to kill it:

  python tests/halting.py FOLDER PATTERN COUNT ARGUMENT OF imagen ...

runs until COUNT files below FOLDER match PATTERN, and then waits for its end before it opens
another file to write to or gives one its name: no further file is there, on a machine of any speed.
"""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path
from typing import Any

from imagen_jax.main import main


def halt_at(folder: Path, pattern: str, count: int) -> None:
    """Has this process wait before it writes anything more, once so many files are there."""

    def look(event: str, arguments: tuple[Any, ...]) -> None:
        opens = event == "open" and isinstance(arguments[2], int)
        if event == "os.rename" or (opens and arguments[2] & (os.O_WRONLY | os.O_RDWR)):
            while folder.is_dir() and len(list(folder.rglob(pattern))) >= count:
                time.sleep(1)

    sys.addaudithook(look)


if __name__ == "__main__":
    halt_at(Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]))
    sys.exit(main(sys.argv[4:]))
