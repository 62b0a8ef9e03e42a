"""Which sample comes when. Pure: no files, no clock, no state that matters.

An epoch's shards are permuted, and the list of their samples is cut into lanes of equal length; a lane's samples are
permuted within windows of whole shards. A lane is an endless stream: its part of epoch 0, its part of epoch 1, ...
Step n of a phase with global batch B reads the positions n*B to (n+1)*B, and its slots are lane-major: of L lanes the
first has the first B/L slots. So who reads a contiguous part of the slots (a rank, a node) needs that part of the lanes
alone, and who it is changes nothing. With one lane, the default, a position is a place in the one stream.

Philox is counter-based (Salmon et al., SC 2011): epoch, window and lane are places in its counter, not states to be
carried. Permutations sort its raw output: numpy keeps that stable between versions, and `permutation` it does not.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Collection, Hashable, Iterator, Sequence
from fractions import Fraction
from functools import lru_cache
from typing import Generic, NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray

from clipa.reduction.draws import Purpose
from clipa.spec.job import TrainPhase

WINDOW = 65_536
"""Samples that are shuffled together, at least, where a recipe does not say (`TrainPhase.shuffle_window`)."""

_FEW = 16
"""Samples of a window, at most, that leave to its neighbour what none of them can stand in for."""

T = TypeVar("T")


def permutation(
    count: int, seed: int, purpose: Purpose, epoch: int = 0, window: int = 0, lane: int = 0
) -> NDArray[np.int64]:
    """A permutation of 0..count-1 that depends on the arguments alone."""
    generator = np.random.Philox(key=[seed, int(purpose)], counter=[0, lane, window, epoch])
    return np.argsort(generator.random_raw(count), kind="stable").astype(np.int64)


class _Recent(Generic[T]):
    """The values of the last few keys of each lane: what a process keeps grows with the lanes that it reads."""

    def __init__(self, make: Callable[[int, int, int], T], keep: int) -> None:
        self._make, self._keep = make, keep
        self._have: dict[int, dict[Hashable, T]] = {}

    def __call__(self, lane: int, one: int, other: int = 0) -> T:
        have = self._have.setdefault(lane, {})
        if (one, other) not in have:
            if len(have) == self._keep:
                del have[next(iter(have))]
            have[one, other] = self._make(lane, one, other)
        return have[one, other]


class _Shards(NamedTuple):
    """An epoch: its shards in their order (those with samples), the places where each ends, and where lanes end."""

    order: NDArray[np.int64]
    ends: NDArray[np.int64]
    cuts: NDArray[np.int64]


class _Windows(NamedTuple):
    """A lane's part of an epoch: places in the epoch where windows begin (and the end), and the first shard of each,
    as a place in the epoch's order of shards.
    """

    bounds: NDArray[np.int64]
    firsts: NDArray[np.int64]


class Order:
    """The endless streams of sample numbers, one for each lane.

    Samples are numbered 0..N-1 in manifest order: shard 0 first. `sizes` are the samples of each shard.

    Lane l of L begins epoch e at its position (e*N + l) // L. So the lanes have each sample of an epoch once between
    them, and where L does not divide N the lanes that have one sample more take turns: after any number of epochs no
    lane is ahead of another by more than one.
    """

    def __init__(self, sizes: Sequence[int], seed: int, window: int = WINDOW, lanes: int = 1) -> None:
        if not sizes or min(sizes) < 0 or sum(sizes) == 0:
            raise ValueError(f"sizes must be >= 0 and hold a sample, got {list(sizes)[:8]}")
        self.seed, self.lanes = seed, lanes
        self._sizes = np.asarray(sizes, dtype=np.int64)
        self._firsts = np.concatenate([[0], np.cumsum(self._sizes)[:-1]])
        self._window = window
        self.samples = int(self._sizes.sum())
        # Two epochs are open at an epoch's end, and a step touches few windows: 8 x 0.5 MB are enough.
        self._shards_of = lru_cache(maxsize=2)(self._shards)
        self._windows_of = _Recent(self._windows, 2)
        self._samples_of = _Recent(self._samples, 8 if lanes == 1 else 2)

    def __reduce__(self) -> tuple[type[Order], tuple[list[int], int, int, int]]:
        return Order, (self._sizes.tolist(), self.seed, self._window, self.lanes)

    def at(self, start: int, stop: int, lane: int = 0) -> NDArray[np.int64]:
        """Sample numbers of the positions start..stop-1 of a lane, int64 [stop - start]."""
        parts = [np.empty(0, dtype=np.int64)]
        while start < stop:
            epoch, place, at = self._find(start, lane)
            inside = place - int(self._windows_of(lane, epoch).bounds[at])
            part = self._samples_of(lane, epoch, at)[inside : inside + stop - start]
            parts.append(part)
            start += len(part)
        return np.concatenate(parts)

    def window(self, position: int, lane: int = 0) -> tuple[int, tuple[int, ...]]:
        """The position at which the window that holds this one ends, and the shards that it reads: those that it is
        made of, and where it is small those of its neighbour, see `replacement`.
        """
        epoch, place, at = self._find(position, lane)
        bounds, firsts = self._windows_of(lane, epoch)
        order, ends, _ = self._shards_of(epoch)
        beside = self._beside(lane, epoch, at) if bounds[at + 1] - bounds[at] <= _FEW else at
        last = int(np.searchsorted(ends, bounds[max(at, beside) + 1], side="left"))
        return position + int(bounds[at + 1]) - place, tuple(order[firsts[min(at, beside)] : last + 1].tolist())

    def replacement(self, position: int, tries: int, lane: int = 0) -> int:
        """The sample that stands in for an unusable one at a position, after `tries` unusable stand-ins.

        They come from the same window, so from shards that are being read anyway, and from half a window further on:
        the next sample is in the same batch most often, and twice in a batch it would be its own negative. An epoch may
        end with a window of a few samples, and when none of them can be used they come from its neighbour.
        """
        epoch, place, at = self._find(position, lane)
        numbers, inside = self._samples_of(lane, epoch, at), place - int(self._windows_of(lane, epoch).bounds[at])
        if len(numbers) <= min(tries, _FEW):
            numbers = self._samples_of(lane, epoch, self._beside(lane, epoch, at))
        return int(numbers[(inside + len(numbers) // 2 + tries) % len(numbers)])

    def _beside(self, lane: int, epoch: int, window: int) -> int:
        """The window before this one, which is read already; of the first the next; of a single one itself."""
        return window - 1 if window else min(1, len(self._windows_of(lane, epoch).firsts) - 1)

    def _find(self, position: int, lane: int) -> tuple[int, int, int]:
        """A lane's position as (epoch, place in the list of the epoch's samples, number of the window)."""
        epoch = ((position + 1) * self.lanes - lane - 1) // self.samples
        bounds = self._windows_of(lane, epoch).bounds
        place = int(bounds[0]) + position - (epoch * self.samples + lane) // self.lanes
        return epoch, place, int(np.searchsorted(bounds, place, side="right")) - 1

    def _shards(self, epoch: int) -> _Shards:
        order = permutation(len(self._sizes), self.seed, Purpose.SHARDS, epoch)
        order = order[self._sizes[order] > 0]
        begins = epoch * self.samples + np.arange(self.lanes, dtype=np.int64)
        lengths = (begins + self.samples) // self.lanes - begins // self.lanes
        return _Shards(order, np.cumsum(self._sizes[order]), np.cumsum(lengths))

    def _windows(self, lane: int, epoch: int, _one: int) -> _Windows:
        _, ends, cuts = self._shards_of(epoch)
        begin, end = int(cuts[lane - 1]) if lane else 0, int(cuts[lane])
        wanted = -(-self._window // self.lanes)
        final = int(np.searchsorted(ends, end, side="left"))  # the shard that the lane's last sample lies in
        bounds, firsts = [begin], []
        first = int(np.searchsorted(ends, begin, side="right"))
        while bounds[-1] < end:
            last = min(int(np.searchsorted(ends, bounds[-1] + wanted, side="left")), final)
            firsts.append(first)
            bounds.append(min(int(ends[last]), end))
            first = last + 1
        # The cut leaves pieces of shards, down to a single sample, and a broken one needs others to stand in for it.
        if self.lanes > 1 and len(firsts) > 1 and 2 * (bounds[-1] - bounds[-2]) < wanted:
            del firsts[-1], bounds[-2]
        return _Windows(np.asarray(bounds, dtype=np.int64), np.asarray(firsts, dtype=np.int64))

    def _samples(self, lane: int, epoch: int, window: int) -> NDArray[np.int64]:
        bounds, firsts = self._windows_of(lane, epoch)
        order, ends, _ = self._shards_of(epoch)
        begin, end = int(bounds[window]), int(bounds[window + 1])
        parts = []
        for at in range(int(firsts[window]), int(np.searchsorted(ends, end, side="left")) + 1):
            shard = order[at]
            opens = int(ends[at] - self._sizes[shard])
            shift = int(self._firsts[shard]) - opens
            parts.append(np.arange(max(begin, opens) + shift, min(end, int(ends[at])) + shift, dtype=np.int64))
        numbers = np.concatenate(parts)
        return numbers[permutation(len(numbers), self.seed, Purpose.SAMPLES, epoch, window, lane)]


BLOCK = 4096
"""Positions of a lane in which the datasets of a mixture are shuffled among each other."""


class Place(NamedTuple):
    """A sample: its dataset's place in the mixture, and its number there."""

    dataset: int
    number: int


class Reading(NamedTuple):
    """Shards of a dataset that are read from the step `first` on, and no more from the step `end` on."""

    first: int
    end: int
    dataset: int
    shards: tuple[int, ...]


class Mixture:
    """The endless stream of one or several datasets, each in its own order and at its own pace.

    Of the first n * BLOCK positions of a lane, for every n, a dataset has its share, and between all lanes its share to
    less than one sample: shares are rational numbers, and a block has what is missing up to its end. Lane l of a
    dataset is read by lane l of the mixture, as if it were alone, so each of its epochs has every sample once.

    Args:
        orders: of the datasets, all with as many lanes.
        weights: of the datasets.
        batch: the global batch, which the number of lanes divides; with one lane any.
    """

    def __init__(self, orders: Sequence[Order], weights: Sequence[float], batch: int = BLOCK) -> None:
        if len(orders) != len(weights) or not orders or min(weights) <= 0:
            raise ValueError(f"{len(orders)} datasets need as many weights > 0, got {list(weights)}")
        self.orders, self.weights, self.batch, self.lanes = tuple(orders), tuple(weights), batch, orders[0].lanes
        if batch % self.lanes or any(order.lanes != self.lanes for order in orders):
            raise ValueError(
                f"batch {batch} must be divisible by the lanes, as many in all: {[o.lanes for o in orders]}"
            )
        exact = [Fraction(str(weight)) for weight in weights]
        self._upto = [sum(exact[: number + 1], Fraction(0)) / sum(exact) for number in range(len(exact))]
        self._block_of = _Recent(self._block, 4 if self.lanes == 1 else 2)

    def __reduce__(self) -> tuple[type[Mixture], tuple[tuple[Order, ...], tuple[float, ...], int]]:
        return Mixture, (self.orders, self.weights, self.batch)

    def at(self, start: int, stop: int) -> list[Place]:
        """The samples of the positions start..stop-1."""
        found: list[Place] = []
        while start < stop:
            lane, position, left = self._slot(start)
            count = min(left, stop - start)
            found += self._in_lane(lane, position, position + count)
            start += count
        return found

    def lanes_of(self, first: int, stop: int) -> range:
        """The lanes of the slots first..stop-1 of every step."""
        return range(first * self.lanes // self.batch, (stop - 1) * self.lanes // self.batch + 1)

    def replacement(self, position: int, tries: int) -> Place:
        """What stands in for an unusable sample: one of the same dataset and window, see `Order.replacement`."""
        lane, place, _ = self._slot(position)
        if len(self.orders) == 1:
            return Place(0, self.orders[0].replacement(place, tries, lane))
        datasets, own = self._block_of(lane, place // BLOCK)
        dataset = int(datasets[place % BLOCK])
        return Place(dataset, self.orders[dataset].replacement(int(own[place % BLOCK]), tries, lane))

    def readings(self, step: int, lanes: Sequence[int], datasets: Collection[int] = ()) -> Iterator[Reading]:
        """What these lanes read from a step on, in the order in which it is needed. Endless.

        `datasets`: of these alone, by their places in the mixture; empty: of all. The sizes of others don't matter.
        """
        places = datasets or range(len(self.orders))
        return heapq.merge(*(self._readings(step, lane, at) for lane in lanes for at in places))

    def _readings(self, step: int, lane: int, dataset: int) -> Iterator[Reading]:
        each = self.batch // self.lanes
        position = self._own(lane, dataset, step * each)
        while True:
            end, shards = self.orders[dataset].window(position, lane)
            begins, ends = self._place(lane, dataset, position), self._place(lane, dataset, end - 1)
            yield Reading(begins // each, ends // each + 1, dataset, shards)
            position = end

    def _slot(self, position: int) -> tuple[int, int, int]:
        """A position as (lane, position in the lane, positions from here on that are the lane's)."""
        each = self.batch // self.lanes
        step, slot = divmod(position, self.batch)
        lane, inside = divmod(slot, each)
        return lane, step * each + inside, each - inside

    def _in_lane(self, lane: int, start: int, stop: int) -> list[Place]:
        if len(self.orders) == 1:
            return [Place(0, number) for number in self.orders[0].at(start, stop, lane).tolist()]
        found: list[Place] = []
        while start < stop:
            end = min(stop, start - start % BLOCK + BLOCK)
            found += self._in_block(lane, start, end)
            start = end
        return found

    def _in_block(self, lane: int, start: int, stop: int) -> list[Place]:
        datasets, own = self._block_of(lane, start // BLOCK)
        inside = slice(start % BLOCK, start % BLOCK + stop - start)
        numbers = np.empty(stop - start, dtype=np.int64)
        for dataset, order in enumerate(self.orders):
            rows = np.flatnonzero(datasets[inside] == dataset)
            if len(rows):
                # Positions of one dataset inside a block follow each other in its own stream.
                first = int(own[inside][rows[0]])
                numbers[rows] = order.at(first, first + len(rows), lane)
        return [Place(int(d), int(n)) for d, n in zip(datasets[inside], numbers, strict=True)]

    def _own(self, lane: int, dataset: int, position: int) -> int:
        """How many of a lane's positions before this one the dataset has: its next position in its own stream."""
        if len(self.orders) == 1:
            return position
        datasets, _ = self._block_of(lane, position // BLOCK)
        before = self._counts(lane, position // BLOCK)[dataset]
        return before + int(np.count_nonzero(datasets[: position % BLOCK] == dataset))

    def _place(self, lane: int, dataset: int, own: int) -> int:
        """The lane's position at which the dataset is at this position of its own stream."""
        if len(self.orders) == 1:
            return own
        share = self._upto[dataset] - (self._upto[dataset - 1] if dataset else 0)
        block = int(own / share) // BLOCK
        while self._counts(lane, block)[dataset] > own:
            block -= 1
        while self._counts(lane, block + 1)[dataset] <= own:
            block += 1
        datasets, _ = self._block_of(lane, block)
        rows = np.flatnonzero(datasets == dataset)
        return block * BLOCK + int(rows[own - self._counts(lane, block)[dataset]])

    def _block(self, lane: int, block: int, _one: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """The dataset of each position of a lane's block, and the position in that dataset's own stream."""
        before, after = self._counts(lane, block), self._counts(lane, block + 1)
        labels = np.repeat(np.arange(len(self.orders)), np.subtract(after, before))
        datasets = labels[permutation(BLOCK, self.orders[0].seed, Purpose.MIXTURE, block, lane=lane)]
        own = np.empty(BLOCK, dtype=np.int64)
        for dataset, first in enumerate(before):
            rows = datasets == dataset
            own[rows] = first + np.arange(np.count_nonzero(rows))
        return datasets.astype(np.int64), own

    def _counts(self, lane: int, block: int) -> list[int]:
        """How many of a lane's positions before a block each dataset has: differences of rounded sums, so they add up.

        The sums are first those of all lanes, and lanes share them by the rule of `Order`'s epochs.
        """
        position = block * BLOCK * self.lanes
        sums = [(int(share * position + Fraction(1, 2)) + lane) // self.lanes for share in self._upto]
        return [after - before for before, after in zip([0, *sums], sums, strict=False)]


def mixture_of(phase: TrainPhase, sizes: Sequence[Sequence[int]], seed: int) -> Mixture:
    """The stream of a phase, whose datasets have shards of these sizes (samples)."""
    orders = [Order(one, seed, phase.shuffle_window, phase.lanes) for one in sizes]
    return Mixture(orders, [portion.weight for portion in phase.portions], phase.batch)
