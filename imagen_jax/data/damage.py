"""Damaged records: found, counted, and read past, up to a rate."""

from __future__ import annotations

import re
import sys
from collections import Counter
from collections.abc import Callable

import numpy as np
import tensorflow as tf
from tqdm import tqdm

from imagen_jax.data.reading import ShardTable
from imagen_jax.data.records import DamagedRecordError
from imagen_jax.errors import UserError, printable

_ERRORS = (tf.errors.InvalidArgumentError, tf.errors.DataLossError)


class Damage:
    """The damaged or unsuitable records that were met, and what is read in their place.

    In the place of a record the next sound one of its file is read: a choice that depends on the
    data alone, so that batches are the same on any number of hosts.

    Args:
      table: places of the records.
      check: (serialized record) -> nothing; raises what tf.data would.
      tolerated: share of the records that this host reads that may be damaged.
      hosts: number of hosts that share the records.

    Attributes:
      replaced: damaged record -> the one in its place.
      by_file: path -> damaged records found in it.
    """

    def __init__(
        self,
        table: ShardTable,
        check: Callable[[tf.Tensor], None],
        tolerated: float,
        hosts: int,
    ):
        if not 0 <= tolerated < 1:
            raise UserError(f"max_damaged must be in [0, 1), got {tolerated}")
        self.replaced: dict[int, int] = {}
        self.by_file: Counter[str] = Counter()
        self._table = table
        self._check = tf.function(check, input_signature=[tf.TensorSpec([], tf.string)])
        self._tolerated = tolerated
        self._hosts = hosts

    def examine(self, wanted: np.ndarray, given: int) -> int:
        """Reads records one by one for the damaged among them.

        Args:
          wanted: records, of any shape.
          given: number of records that this host has given out. The tolerance is a share of these,
            or at first of the host's part of all; it meets others in every epoch.

        Returns:
          The number of damaged ones that were not known.

        Raises:
          UserError: more are damaged than is tolerated; names file, record and fault.
        """
        records = int(self._table.first[-1])
        read = min(records, max(-(-records // self._hosts), given))
        limit = int(self._tolerated * read)
        found = 0
        for record in np.unique(wanted):
            record = int(record)
            if record in self.replaced or (fault := self._fault(record)) is None:
                continue
            found += 1
            path, place = self._table.locate(record)
            self.by_file[path] += 1
            total = self.by_file.total()
            message = f"{path}: record {place} is damaged or unsuitable: {fault}"
            if total > limit:
                raise UserError(
                    f"{message}; that makes {total}, and {limit} of the {read} that this host "
                    "reads are tolerated (max_damaged)"
                )
            tqdm.write(printable(f"{message} ({total} so far)"), file=sys.stderr)
            self.replaced[record] = self._sound_after(record)
        return found

    def _sound_after(self, record: int) -> int:
        path, place = self._table.locate(record)
        first = record - place
        count = self._table.records_of(path)
        for step in range(1, count):
            candidate = first + (place + step) % count
            if self._fault(candidate) is None:
                return candidate
        raise UserError(f"{path} has no sound record")

    def _fault(self, record: int) -> str | None:
        try:
            self._check(self._table.read(record))
        except DamagedRecordError as error:
            return error.fault
        except _ERRORS as error:
            return first_line(error)
        return None


def first_line(error: tf.errors.OpError) -> str:
    """TensorFlow's message without the names of graph nodes; `[a] [b]` of assertions as `a b`."""
    # In a compiled function a trace comes before the message; what comes after names the node.
    lines = error.message.split("[[{{node", 1)[0].splitlines()
    line = next((line.strip() for line in reversed(lines) if line.strip()), "")
    line = re.sub(r"^\{\{.*?\}\}\s*|\s*\[Op:.*$", "", line)
    line = re.sub(r"^Error in user-defined function .*? Iterator::\S+: ", "", line)
    if "assertion failed: " in line:
        line = line.split("assertion failed: ", 1)[1].replace("] [", " ").strip("[] ")
    return line
