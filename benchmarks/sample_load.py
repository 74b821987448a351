"""Large sampling jobs: peak memory by the number of prompts, and a job that is killed three times.

  python -m benchmarks.sample_load                       # 64 and 5,000 prompts of the demo cascade
  python -m benchmarks.sample_load --count 500 --steps 1

Runs `imagen sample --prompts FILE` for 64 prompts and for --count, with few steps, since what is
measured does not depend on them; then the larger job once more into another folder, killed
(SIGKILL) when a quarter, a half and three quarters of the images are there, and started again with
the same command. Both folders must hold every image once, with the same pixels. Ends with status 1
if they do not.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from PIL import Image

KILLS = 3


def write_prompts(path: Path, count: int) -> None:
    """Different prompts, one on each line."""
    colours, things = ("red", "green", "blue", "yellow", "black"), ("apple", "car", "star", "tree")
    lines = [f"a {colours[i % 5]} {things[i // 5 % 4]} number {i // 20}" for i in range(count)]
    path.write_text("\n".join(lines) + "\n")


def start(prompts: Path, output: Path, steps: int) -> subprocess.Popen[bytes]:
    """The sampling job."""
    command = [sys.executable, "-m", "imagen_jax.main", "sample", "--prompts", str(prompts)]
    command += ["--steps", str(steps), "--output", str(output)]
    return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def finish(process: subprocess.Popen[bytes]) -> tuple[float, float]:
    """(MiB of peak memory, seconds of processor time) of a job that must end well."""
    _, status, usage = os.wait4(process.pid, 0)
    if status:
        raise SystemExit(f"imagen sample ended with {os.waitstatus_to_exitcode(status)}")
    return usage.ru_maxrss / 1024, usage.ru_utime + usage.ru_stime


def made(output: Path) -> list[Path]:
    """The images of a job so far, without the grid."""
    return sorted(path for path in output.glob("*.png") if path.stem.isdigit())


def main() -> None:
    """Does what the command line says."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--count", type=int, default=5000, help="prompts (default: 5000)")
    parser.add_argument("--steps", type=int, default=2, help="of every stage (default: 2)")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as directory:
        folder = Path(directory)
        for count in (64, args.count):
            write_prompts(folder / f"{count}.txt", count)
            process = start(folder / f"{count}.txt", folder / f"of_{count}", args.steps)
            memory, cpu = finish(process)
            print(f"{count:>6} prompts: peak {memory:.0f} MiB, {cpu:.0f} s of processor time")
        killed = folder / "killed"
        for kill in range(1, KILLS + 1):
            process = start(folder / f"{args.count}.txt", killed, args.steps)
            while len(made(killed)) < args.count * kill // (KILLS + 1) and process.poll() is None:
                time.sleep(0.1)
            process.kill()
            process.wait()
            print(f"killed with {len(made(killed))} images", flush=True)
        finish(start(folder / f"{args.count}.txt", killed, args.steps))
        whole, again = made(folder / f"of_{args.count}"), made(killed)
        same = [path.name for path in whole] == [path.name for path in again] and all(
            np.array_equal(Image.open(a), Image.open(b)) for a, b in zip(whole, again, strict=True)
        )
        left = sorted(path.name for path in killed.iterdir() if path not in again)
        print(f"{len(again)} images after {KILLS} kills, {'equal' if same else 'NOT EQUAL'}; "
              f"beside them: {', '.join(left)}")  # fmt: skip
        raise SystemExit(not same or len(whole) != args.count)


if __name__ == "__main__":
    main()
