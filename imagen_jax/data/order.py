"""The global order of training examples, as arithmetic: (sizes, seed, step) -> records.

The n-th batch is a function of the sizes of the sources, their rates, the batch size, the seed and
n. It does not depend on how many hosts read it, and any n can be asked for without those before it,
so that a position in the data is one number.

One source of N records, batches of B:
1. Position p is in epoch p // N, where every record comes once.
2. In each epoch, blocks of BLOCK consecutive records are permuted, and their concatenation is cut
   into lanes, as many as the largest divisor of B that is at most LANES. Each lane gives the same
   B / lanes rows of every batch, so that a host, which reads some consecutive rows, reads whole
   blocks and shares few of them with other hosts.
3. Within a lane, the records of a window of `window_steps` steps are permuted. A source that is no
   larger than a window of all lanes is permuted record by record: its blocks have one record.

Several sources: cumulative rates R_k, in millionths, cut the first n batches at the whole examples
floor(R_k n B); what lies between two cuts has come from one source. So each batch holds the shares
of its sources to within one example, and over n batches the error stays below one.

A window is permuted by sorting the raw output of Philox (Salmon et al. 2011,
doi:10.1145/2063384.2063405), which NumPy keeps the same in all of its versions, with places in the
low bits. Blocks are permuted by a Feistel network, which computes the place of any one block alone:
an order takes no memory and no time before its first batch, however many records there are.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from jaxtyping import Int

from imagen_jax.errors import UserError

BLOCK = 16
"""Consecutive records that are read together."""
LANES = 64
"""Most lanes; with more hosts than lanes, hosts share lanes and read some blocks several times."""
_RATE_UNIT = 10**6
_ROUNDS = 8


class Permutation:
    """A permutation of the numbers below `count`, computed number by number.

    A Feistel network (Luby and Rackoff 1988, doi:10.1137/0217022) permutes the numbers of an even
    number of bits, at most 4 count of them; what falls outside is permuted again until it does not
    (Black and Rogaway 2002, "Ciphers with arbitrary finite domains"). Its round function is the
    finaliser of SplitMix64 (Steele et al. 2014, doi:10.1145/2660193.2660195).

    Args:
      count: at least 1, at most 2**62.
      seed: integers from 0 that name the permutation.
    """

    def __init__(self, count: int, seed: Sequence[int]):
        self._count = np.uint64(count)
        self._half = np.uint64(max(1, -(-(count - 1).bit_length() // 2)))
        self._mask = np.uint64((1 << int(self._half)) - 1)
        self._keys = np.random.SeedSequence(seed).generate_state(_ROUNDS, np.uint64)

    def __call__(self, numbers: Int[np.ndarray, " n"]) -> Int[np.ndarray, " n"]:
        """Places of numbers in [0, count), both int64."""
        return self._walk(numbers, self._forward)

    def inverse(self, places: Int[np.ndarray, " n"]) -> Int[np.ndarray, " n"]:
        """Numbers that have these places, both int64 in [0, count)."""
        return self._walk(places, self._backward)

    def _walk(self, numbers: np.ndarray, step: Callable[[np.ndarray], np.ndarray]) -> np.ndarray:
        result = step(numbers.astype(np.uint64))
        while (outside := result >= self._count).any():
            result[outside] = step(result[outside])
        return result.astype(np.int64)

    def _forward(self, numbers: np.ndarray) -> np.ndarray:
        left, right = numbers >> self._half, numbers & self._mask
        for key in self._keys:
            left, right = right, left ^ (_mixed(right ^ key) & self._mask)
        return left << self._half | right

    def _backward(self, numbers: np.ndarray) -> np.ndarray:
        left, right = numbers >> self._half, numbers & self._mask
        for key in self._keys[::-1]:
            left, right = right ^ (_mixed(left ^ key) & self._mask), left
        return left << self._half | right


def _mixed(bits: np.ndarray) -> np.ndarray:
    """Each uint64 as another one, all of whose bits depend on all bits."""
    bits = (bits ^ bits >> np.uint64(30)) * np.uint64(0xBF58476D1CE4E5B9)
    bits = (bits ^ bits >> np.uint64(27)) * np.uint64(0x94D049BB133111EB)
    return bits ^ bits >> np.uint64(31)


class ShuffledSource:
    """The endless order of one source: position -> record.

    Args:
      examples: N, records in the source.
      batch: B, examples that the source gives to a batch; only decides what is read together.
      window_steps: batches over whose span a lane's records are permuted.
      seed: in [0, 2**64).

    Raises:
      UserError: a size below 1.
    """

    def __init__(self, examples: int, batch: int, window_steps: int, seed: int):
        if min(examples, batch, window_steps) < 1:
            raise UserError(
                f"examples, batch and window_steps must be at least 1, got {examples}, {batch} and "
                f"{window_steps}"
            )
        self._examples = examples
        self._batch = batch
        self._seed = seed
        self._block = BLOCK if examples > window_steps * batch else 1
        lanes = next(n for n in range(min(LANES, batch), 0, -1) if batch % n == 0)
        self._rows = batch // lanes  # of each lane in a batch
        self._window = window_steps * self._rows
        steps, rest = divmod(examples, batch)
        starts = np.arange(lanes) * self._rows
        self._lengths = steps * self._rows + np.clip(rest - starts, 0, self._rows)
        self._offsets = np.cumsum(self._lengths) - self._lengths

    def records(self, positions: Int[np.ndarray, " n"]) -> Int[np.ndarray, " n"]:
        """Records in [0, N) at positions from 0, both [n] int64."""
        result = np.empty_like(positions)
        epochs = positions // self._examples
        for epoch in np.unique(epochs):
            here = epochs == epoch
            result[here] = self._of_epoch(int(epoch), positions[here] - epoch * self._examples)
        return result

    def _of_epoch(self, epoch: int, positions: np.ndarray) -> np.ndarray:
        step, row = np.divmod(positions, self._batch)
        lane, row = np.divmod(row, self._rows)
        window, at = np.divmod(step * self._rows + row, self._window)
        windows = -(-int(self._lengths[0]) // self._window)
        shuffled = np.empty_like(at)
        for key in np.unique(lane * windows + window):
            k, w = divmod(int(key), windows)
            here = (lane == k) & (window == w)
            size = min(self._window, int(self._lengths[k]) - w * self._window)
            shuffled[here] = self._shuffled(epoch, k, w, size)[at[here]]
        return self._unblock(epoch, self._offsets[lane] + window * self._window + shuffled)

    def _unblock(self, epoch: int, index: np.ndarray) -> np.ndarray:
        """Records at indices of the concatenation of the permuted blocks."""
        count, size = -(-self._examples // self._block), self._block
        blocks = Permutation(count, (self._seed, epoch))
        short = self._examples - (count - 1) * size  # records of the last, shorter block
        after = index >= blocks.inverse(np.array([count - 1]))[0] * size + short
        # As if the short block were whole: what comes after it moves up.
        block, within = np.divmod(index + np.where(after, size - short, 0), size)
        return blocks(block) * size + within

    def _shuffled(self, epoch: int, lane: int, window: int, count: int) -> np.ndarray:
        key = np.array([self._seed, epoch], np.uint64)
        counter = np.array([0, 0, lane, window], np.uint64)
        numbers = np.random.Philox(counter=counter, key=key).random_raw(count)
        # Each carries its place in its low bits: sorting in place takes less memory than argsort.
        bits = (count - 1).bit_length()
        numbers >>= np.uint64(bits)
        numbers <<= np.uint64(bits)
        numbers |= np.arange(count, dtype=np.uint64)
        numbers.sort()
        numbers &= np.uint64(2**bits - 1)
        return numbers.view(np.int64)


class GlobalOrder:
    """Batches of several sources, mixed by rates: (step, rows) -> records.

    Records are numbered through all sources: the first of source k is the number of all records of
    the sources before it.

    Args:
      examples: records of each source.
      rates: rate of each source, above 0; only their ratios count.
      batch: examples of a batch, over all hosts.
      window_steps: batches over whose span records are permuted, see ShuffledSource.
      seed: in [0, 2**64).

    Raises:
      UserError: sources and rates of different number, or a rate so small that a batch would
        hold less than one example of its source; names it.
    """

    def __init__(
        self,
        examples: Sequence[int],
        rates: Sequence[float],
        batch: int,
        window_steps: int,
        seed: int,
    ):
        if len(examples) != len(rates) or not examples:
            raise UserError(f"{len(examples)} sources have {len(rates)} rates")
        if min(rates) <= 0:
            raise UserError(f"rates must be above 0, got {list(rates)}")
        edges = np.round(np.cumsum([0, *rates]) / sum(rates) * _RATE_UNIT)
        self._edges = [int(edge) for edge in edges]
        self.batch = batch
        shares = np.diff(self._edges) * batch / _RATE_UNIT
        if min(shares) < 1:
            raise UserError(
                f"rates {list(rates)} of batches of {batch} give {shares.min():.3g} examples of "
                f"source {int(shares.argmin())} to a batch; it must be at least one: raise the "
                "rate or the batch size"
            )
        self._first = np.cumsum([0, *examples])[:-1]
        self._sources = [
            # Sources must not share an order where they are of one size.
            ShuffledSource(count, max(1, round(share)), window_steps, (seed + (k << 32)) % 2**64)
            for k, (count, share) in enumerate(zip(examples, shares, strict=True))
        ]

    def records(self, steps: range, rows: range) -> Int[np.ndarray, "s r"]:
        """Records [steps, rows] of some rows of some batches, counted from 0."""
        result = np.empty((len(steps), len(rows)), np.int64)
        taken = np.array([self._taken(step) for step in range(steps.start, steps.stop + 1)])
        # In each batch, the rows of source k are starts[:, k] to starts[:, k + 1].
        starts = np.cumsum(np.diff(taken, axis=0), axis=1)
        starts = np.concatenate([np.zeros((len(steps), 1), np.int64), starts], axis=1)
        row = np.arange(rows.start, rows.stop)[None]
        for k, source in enumerate(self._sources):
            mine = (row >= starts[:, k, None]) & (row < starts[:, k + 1, None])
            positions = taken[:-1, k, None] + row - starts[:, k, None]
            result[mine] = self._first[k] + source.records(positions[mine])
        return result

    def _taken(self, step: int) -> list[int]:
        """Examples of each source in the batches before `step`."""
        cuts = [edge * step * self.batch // _RATE_UNIT for edge in self._edges]
        return [high - low for low, high in zip(cuts, cuts[1:], strict=False)]


class FileOrder:
    """Records as they lie in their files, once: (step, rows) -> records.

    Args:
      batch: examples of a batch, over all hosts.
    """

    def __init__(self, batch: int):
        self.batch = batch

    def records(self, steps: range, rows: range) -> Int[np.ndarray, "s r"]:
        """Records [steps, rows] of some rows of some batches, counted from 0."""
        return np.array(steps)[:, None] * self.batch + np.array(rows)[None]
