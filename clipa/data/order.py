"""Which sample comes when. Pure: no files, no clock, no state that matters.

The stream of samples is endless and indexed by a global position; step n of a phase with global batch B reads the
positions n*B to (n+1)*B. Epoch e is the positions e*N to (e+1)*N of N samples, so a batch may span two epochs.
In an epoch the order of the shards is permuted, and the samples are permuted within windows of whole shards.

Philox is counter-based (Salmon et al., SC 2011): epoch and window are places in its counter, not states to be
carried. Permutations sort its raw output: numpy keeps that stable between versions, and `permutation` it does not.
"""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction
from functools import lru_cache
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from clipa.reduction.draws import Purpose

WINDOW = 65_536
"""Samples that are shuffled together, at least, where a recipe does not say (`TrainPhase.shuffle_window`)."""


def permutation(count: int, seed: int, purpose: Purpose, epoch: int = 0, window: int = 0) -> NDArray[np.int64]:
    """A permutation of 0..count-1 that depends on the arguments alone."""
    generator = np.random.Philox(key=[seed, int(purpose)], counter=[0, 0, window, epoch])
    return np.argsort(generator.random_raw(count), kind="stable").astype(np.int64)


class Order:
    """The endless stream of sample numbers.

    Samples are numbered 0..N-1 in manifest order: shard 0 first. `sizes` are the samples of each shard.
    """

    def __init__(self, sizes: Sequence[int], seed: int, window: int = WINDOW) -> None:
        if not sizes or min(sizes) < 0 or sum(sizes) == 0:
            raise ValueError(f"sizes must be >= 0 and hold a sample, got {list(sizes)[:8]}")
        self.seed = seed
        self._sizes = np.asarray(sizes, dtype=np.int64)
        self._firsts = np.concatenate([[0], np.cumsum(self._sizes)[:-1]])
        self._window = window
        self.samples = int(self._sizes.sum())
        # Two epochs are open at an epoch's end, and a step touches few windows: 8 x 0.5 MB are enough.
        self._shards_of = lru_cache(maxsize=2)(self._shard_windows)
        self._window_of = lru_cache(maxsize=8)(self._window_samples)

    def __reduce__(self) -> tuple[type[Order], tuple[list[int], int, int]]:
        return Order, (self._sizes.tolist(), self.seed, self._window)

    def at(self, start: int, stop: int) -> NDArray[np.int64]:
        """Sample numbers of the positions start..stop-1, int64 [stop - start]."""
        parts = [np.empty(0, dtype=np.int64)]
        while start < stop:
            numbers, inside = self._around(start)
            part = numbers[inside : inside + stop - start]
            parts.append(part)
            start += len(part)
        return np.concatenate(parts)

    def window(self, position: int) -> tuple[int, tuple[int, ...]]:
        """The position at which the window that holds this one ends, and the shards that it is made of."""
        epoch, offset = divmod(position, self.samples)
        bounds, groups = self._shards_of(epoch)
        at = int(np.searchsorted(bounds, offset, side="right")) - 1
        return epoch * self.samples + int(bounds[at + 1]), tuple(groups[at].tolist())

    def replacement(self, position: int, tries: int) -> int:
        """The sample that stands in for an unusable one at a position, after `tries` unusable stand-ins.

        They come from the same window, so from shards that are being read anyway, and from half a window further on:
        the next sample is in the same batch most often, and twice in a batch it would be its own negative.
        """
        numbers, inside = self._around(position)
        return int(numbers[(inside + len(numbers) // 2 + tries) % len(numbers)])

    def _around(self, position: int) -> tuple[NDArray[np.int64], int]:
        """The window that a position lies in, and its place there."""
        epoch, offset = divmod(position, self.samples)
        bounds, _ = self._shards_of(epoch)
        window = int(np.searchsorted(bounds, offset, side="right")) - 1
        return self._window_of(epoch, window), offset - int(bounds[window])

    def _shard_windows(self, epoch: int) -> tuple[NDArray[np.int64], list[NDArray[np.int64]]]:
        """Offsets in the epoch at which windows start (and the end), and the shards of each window."""
        order = permutation(len(self._sizes), self.seed, Purpose.SHARDS, epoch)
        order = order[self._sizes[order] > 0]
        ends = np.cumsum(self._sizes[order])
        bounds, groups, first = [0], [], 0
        while first < len(order):
            last = min(int(np.searchsorted(ends, bounds[-1] + self._window, side="left")), len(order) - 1)
            groups.append(order[first : last + 1])
            bounds.append(int(ends[last]))
            first = last + 1
        return np.asarray(bounds, dtype=np.int64), groups

    def _window_samples(self, epoch: int, window: int) -> NDArray[np.int64]:
        _, groups = self._shards_of(epoch)
        numbers = np.concatenate(
            [np.arange(self._firsts[s], self._firsts[s] + self._sizes[s], dtype=np.int64) for s in groups[window]]
        )
        return numbers[permutation(len(numbers), self.seed, Purpose.SAMPLES, epoch, window)]


BLOCK = 4096
"""Positions in which the datasets of a mixture are shuffled among each other."""


class Place(NamedTuple):
    """A sample: its dataset's place in the mixture, and its number there."""

    dataset: int
    number: int


class Mixture:
    """The endless stream of several datasets, each in its own order and at its own pace.

    Of the first n * BLOCK positions a dataset has its share, to less than one sample, for every n: shares are rational
    numbers, and a block has what is missing up to its end. Each dataset is read as if it were alone, so each of its
    epochs has every sample once.
    """

    def __init__(self, orders: Sequence[Order], weights: Sequence[float]) -> None:
        if len(orders) != len(weights) or not orders or min(weights) <= 0:
            raise ValueError(f"{len(orders)} datasets need as many weights > 0, got {list(weights)}")
        self.orders, self.weights = tuple(orders), tuple(weights)
        exact = [Fraction(str(weight)) for weight in weights]
        self._upto = [sum(exact[: number + 1], Fraction(0)) / sum(exact) for number in range(len(exact))]
        self._block_of = lru_cache(maxsize=4)(self._block)

    def __reduce__(self) -> tuple[type[Mixture], tuple[tuple[Order, ...], tuple[float, ...]]]:
        return Mixture, (self.orders, self.weights)

    def at(self, start: int, stop: int) -> list[Place]:
        """The samples of the positions start..stop-1."""
        if len(self.orders) == 1:
            return [Place(0, int(number)) for number in self.orders[0].at(start, stop)]
        found: list[Place] = []
        while start < stop:
            end = min(stop, start - start % BLOCK + BLOCK)
            found += self._in_block(start, end)
            start = end
        return found

    def _in_block(self, start: int, stop: int) -> list[Place]:
        datasets, own = self._block_of(start // BLOCK)
        inside = slice(start % BLOCK, start % BLOCK + stop - start)
        numbers = np.empty(stop - start, dtype=np.int64)
        for dataset, order in enumerate(self.orders):
            rows = np.flatnonzero(datasets[inside] == dataset)
            if len(rows):
                # Positions of one dataset inside a block follow each other in its own stream.
                first = int(own[inside][rows[0]])
                numbers[rows] = order.at(first, first + len(rows))
        return [Place(int(d), int(n)) for d, n in zip(datasets[inside], numbers, strict=True)]

    def replacement(self, position: int, tries: int) -> Place:
        """What stands in for an unusable sample: one of the same dataset and window, see `Order.replacement`."""
        if len(self.orders) == 1:
            return Place(0, self.orders[0].replacement(position, tries))
        datasets, own = self._block_of(position // BLOCK)
        dataset = int(datasets[position % BLOCK])
        return Place(dataset, self.orders[dataset].replacement(int(own[position % BLOCK]), tries))

    def _block(self, block: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """The dataset of each position of a block, and the position in that dataset's own stream."""
        before, after = self._counts(block * BLOCK), self._counts((block + 1) * BLOCK)
        labels = np.repeat(np.arange(len(self.orders)), np.subtract(after, before))
        datasets = labels[permutation(BLOCK, self.orders[0].seed, Purpose.MIXTURE, block)]
        own = np.empty(BLOCK, dtype=np.int64)
        for dataset, first in enumerate(before):
            rows = datasets == dataset
            own[rows] = first + np.arange(np.count_nonzero(rows))
        return datasets.astype(np.int64), own

    def _counts(self, position: int) -> list[int]:
        """How many of the positions before this one each dataset has: differences of rounded sums, so they add up."""
        sums = [int(share * position + Fraction(1, 2)) for share in self._upto]
        return [after - before for before, after in zip([0, *sums], sums, strict=False)]
