"""Progress of long work: a bar on a terminal or in a notebook, elsewhere a line now and then."""

from __future__ import annotations

import os
import re
import signal
import stat
import sys
from typing import Any

from tqdm import tqdm
from tqdm.std import EMA

COMPILING = "compiling"
SECONDS = 30.0
"""Between two lines where the output is no terminal."""
_LINE = "{desc}: {n_fmt} of {total_fmt}{unit}, {rate_fmt}, {remaining} left{postfix}"
_UNKNOWN = re.compile(r", \?[^,]*/s(, \? left)?")
_SLOW = re.compile(r"s/ (\w+?)s?\b")
_LINE_WITHOUT_TOTAL = "{desc}: {n_fmt}{unit}, {rate_fmt}{postfix}"


class _Bar(tqdm):
    """A bar whose rate leaves out what comes before the first unit is done, and that unit."""

    _has_begun = False

    def update(self, n: float | None = 1) -> bool | None:
        """Count units."""
        if self.disable or self._has_begun:
            return super().update(n)
        self._has_begun = True
        if self.postfix == COMPILING:
            self.postfix: str | None = None
        self.n += n or 0
        self.initial = self.last_print_n = self.n
        self.start_t = self.last_print_t = self._time()
        self._ema_dn, self._ema_dt = EMA(self.smoothing), EMA(self.smoothing)
        return self.refresh()


class _Lines(_Bar):
    """A bar of whole lines, for logs."""

    @staticmethod
    def status_printer(file: Any) -> Any:
        shown = ""

        def show(line: str) -> None:
            nonlocal shown
            line = _SLOW.sub(r" s/\1", line)  # slower than one unit a second
            line = _UNKNOWN.sub("", line)
            if line != shown:  # a bar is drawn once more when it is closed
                file.write(f"{line}\n")
                file.flush()
            shown = line

        return show

    def clear(self, nolock: bool = False) -> None:
        """A line that was written stays."""

    def close(self) -> None:
        if not getattr(self, "disable", True):
            self.refresh()
            self.disable = True
            self._decr_instances(self)


def progress(
    total: float | None,
    desc: str,
    unit: str,
    initial: int = 0,
    disable: bool = False,
    seconds: float = SECONDS,
    compiles: bool = False,
) -> tqdm:
    """Return a tqdm to be updated, and closed by `with`.

    Args:
      total: number of units; None where it is not known.
      desc: description of the work.
      unit: unit of the count.
      initial: units that are done already.
      disable: shows nothing.
      seconds: between two lines where there is neither a terminal nor a notebook.
      compiles: says so until the first unit is done.
    """
    given: dict[str, Any] = {"total": total, "desc": desc, "initial": initial, "disable": disable}
    if compiles:
        given["postfix"] = COMPILING
    if sys.stderr.isatty():
        return _Bar(**given, unit=f" {unit}")
    if type(sys.stderr).__module__.startswith("ipykernel"):  # a notebook's; what is there is red
        return _Bar(**given, unit=f" {unit}", file=sys.stdout, ncols=100)
    line = _LINE_WITHOUT_TOTAL if total is None else _LINE
    rare = {"mininterval": seconds, "maxinterval": seconds}
    return _Lines(**given, **rare, unit=f" {unit}", bar_format=line)


def leave_terminal() -> None:
    """Send what is written to a terminal nowhere: it was closed, and writing to it is an error.

    Further SIGHUPs are ignored: the kernel and the shell may both send one. Call it from a handler
    of signals, or elsewhere in the main thread.
    """
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    with open(os.devnull, "w") as nowhere:
        for descriptor in (1, 2):
            if stat.S_ISCHR(os.fstat(descriptor).st_mode):
                os.dup2(nowhere.fileno(), descriptor)
