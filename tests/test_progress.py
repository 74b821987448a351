"""Progress of long work where the output is no terminal."""

from __future__ import annotations

import io
import os
import pty
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from tqdm import tqdm

from imagen_jax.progress import progress


class Clock:
    """The time for bars, which passes when it is told to, whatever else the machine does."""

    def __init__(self) -> None:
        self.now = time.time()

    def sleep(self, seconds: float) -> None:
        self.now += seconds


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr("tqdm.std.time", lambda: clock.now)
    return clock


def test_logs_get_a_line_now_and_then(clock: Clock, capsys: pytest.CaptureFixture[str]) -> None:
    with progress(2000, "base", "steps", initial=1000, seconds=0.2) as bar:
        for step in range(1000, 2000):
            clock.sleep(0.0005)
            bar.set_postfix(loss=f"{1 / (1 + step):.4f}", refresh=False)
            bar.update()
    captured = capsys.readouterr()
    lines = captured.err.splitlines()
    assert captured.out == ""
    assert "\r" not in captured.err
    assert len(lines) == 2 + 2 + 1  # of the first step, every 0.2 of 0.5 s, and the last
    assert lines[0].startswith("base: 1000 of 2000 steps")
    assert re.fullmatch(
        r"base: 2000 of 2000 steps, [ \d.]+ steps/s, 00:00 left, loss=0\.0005", lines[-1]
    )


def test_compilation_is_no_part_of_the_rate(
    clock: Clock, capsys: pytest.CaptureFixture[str]
) -> None:
    with progress(5, "base", "steps", seconds=0.05, compiles=True) as bar:
        clock.sleep(1.5)
        for _ in range(5):
            bar.update()
            clock.sleep(0.1)
    first, second, *_, last = capsys.readouterr().err.splitlines()
    assert (first, second) == ("base: 0 of 5 steps, compiling", "base: 1 of 5 steps")
    rate = re.fullmatch(r"base: 5 of 5 steps, +([\d.]+) steps/s, 00:00 left", last)
    assert rate, last
    assert float(rate[1]) > 2  # 0.7 with the first


def test_notebooks_get_one_bar_that_is_not_red(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    of_kernel = type("OutStream", (io.StringIO,), {"__module__": "ipykernel.iostream"})()
    monkeypatch.setattr(sys, "stderr", of_kernel)
    with progress(3, "base", "steps") as bar:
        bar.update(3)
    shown = capsys.readouterr().out
    assert shown.count("\n") == 1  # at its end
    assert re.search(r"\rbase: 100%\|█+\| 3/3 ", shown)
    assert of_kernel.getvalue() == ""


def test_units_slower_than_a_second_are_in_the_singular(
    clock: Clock, capsys: pytest.CaptureFixture[str]
) -> None:
    with progress(2, "base", "steps", seconds=0.1) as bar:
        for _ in range(2):
            clock.sleep(1.2)
            bar.update()
    lines = capsys.readouterr().err.splitlines()
    assert re.fullmatch(r"base: 2 of 2 steps, +1\.\d\d s/step, 00:00 left", lines[-1])


def test_messages_do_not_break_a_line_of_progress(capsys: pytest.CaptureFixture[str]) -> None:
    with progress(None, "embed train", "captions") as bar:
        bar.update(5)
        tqdm.write("a file is damaged")
    captured = capsys.readouterr()
    assert captured.out == "a file is damaged\n"
    assert captured.err.splitlines()[-1].startswith("embed train: 5 captions")


def test_progress_that_is_disabled_is_silent(capsys: pytest.CaptureFixture[str]) -> None:
    with progress(3, "base", "steps", disable=True) as bar:
        bar.update(3)
    captured = capsys.readouterr()
    assert captured.out == captured.err == ""


def test_output_of_a_closed_terminal_goes_nowhere(tmp_path: Path) -> None:
    """Writing to it would be an error, in the middle of what is to be saved."""
    program = (
        "import signal, sys, time\n"
        "from imagen_jax.progress import leave_terminal\n"
        "closed = []\n"
        "signal.signal(signal.SIGHUP, lambda *_: closed.append(leave_terminal()))\n"
        "print('ready', flush=True)\n"
        "open(sys.argv[1] + ' soon', 'w').close()\n"
        "while not closed: time.sleep(0.05)\n"
        "print('saving', flush=True)\n"
        "open(sys.argv[1], 'w').write('saved')\n"
    )
    terminal, inner = pty.openpty()
    child = subprocess.Popen(
        [sys.executable, "-c", program, str(tmp_path / "saved")],
        stdin=inner, stdout=inner, stderr=inner, start_new_session=True,
    )  # fmt: skip
    os.close(inner)
    # What is read may still be in the middle of being written, and closing then an error there.
    while not (tmp_path / "saved soon").exists():
        assert child.poll() is None
        time.sleep(0.01)
    assert b"ready" in os.read(terminal, 100)
    os.close(terminal)
    while child.poll() is None:  # more than once: the kernel and the shell may both send it
        child.send_signal(signal.SIGHUP)
        time.sleep(0.001)
    assert child.returncode == 0
    assert (tmp_path / "saved").read_text() == "saved"
