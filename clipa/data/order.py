"""Which sample comes when. Pure: no files, no clock, no state that matters.

The stream of samples is endless and indexed by a global position; step n of a phase with global batch B reads the
positions n*B to (n+1)*B. Epoch e is the positions e*N to (e+1)*N of N samples, so a batch may span two epochs.
In an epoch the order of the shards is permuted, and the samples are permuted within windows of whole shards.

Philox is counter-based (Salmon et al., SC 2011): epoch and window are places in its counter, not states to be
carried. Permutations sort its raw output: numpy keeps that stable between versions, and `permutation` it does not.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

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
