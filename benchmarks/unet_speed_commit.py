"""Our base U-Net of another commit for unet_speed.py, with a checkout of it on PYTHONPATH: reads
"train" or "sample" from standard input, does that step, and writes the seconds that it took."""

from __future__ import annotations

import json
import sys

from benchmarks.unet_speed import Ours


def main() -> None:
    """Serves steps until standard input ends."""
    ours = Ours()
    print(json.dumps({"parameters": ours.parameters, "flops": ours.flops}), flush=True)
    for line in sys.stdin:
        print(json.dumps(ours(line.strip())), flush=True)


if __name__ == "__main__":
    main()
