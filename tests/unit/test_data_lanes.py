"""Lanes: the order is cut into parts, so that a part of the ranks needs a part of the shards."""

from __future__ import annotations

import pickle
from collections import Counter
from itertools import islice

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from clipa.data.order import BLOCK, Mixture, Order, Place

sizes = st.lists(st.integers(0, 40), min_size=1, max_size=12).filter(any)
seeds = st.integers(0, 2**63 - 1)
lane_counts = st.integers(1, 9)
windows = st.integers(1, 200)
some_datasets = st.lists(
    st.tuples(st.lists(st.integers(1, 60), min_size=1, max_size=5), st.integers(1, 40)), min_size=1, max_size=3
)


def epoch_of(order: Order, lane: int, epoch: int) -> tuple[int, int]:
    """The positions of a lane at which an epoch begins and ends."""
    return tuple((e * order.samples + lane) // order.lanes for e in (epoch, epoch + 1))  # type: ignore[return-value]


@given(sizes, seeds, windows, lane_counts, st.integers(0, 6))
def test_the_lanes_of_an_epoch_have_each_sample_once(
    sizes: list[int], seed: int, window: int, lanes: int, epoch: int
) -> None:
    order = Order(sizes, seed, window, lanes)
    parts = [order.at(*epoch_of(order, lane, epoch), lane).tolist() for lane in range(lanes)]
    assert sorted(number for part in parts for number in part) == list(range(sum(sizes)))
    assert max(map(len, parts)) - min(map(len, parts)) <= 1


@given(sizes, seeds, windows, st.integers(2, 9), st.integers(0, 6))
def test_a_lane_reads_a_stretch_of_the_epochs_shards(
    sizes: list[int], seed: int, window: int, lanes: int, epoch: int
) -> None:
    order = Order(sizes, seed, window, lanes)
    shard_of = np.repeat(np.arange(len(sizes)), sizes)
    read = [
        {int(shard_of[n]) for n in order.at(*epoch_of(order, lane, epoch), lane)} for lane in range(lanes)
    ]  # each cut falls into one shard at most, which two lanes share
    assert sum(map(len, read)) <= np.count_nonzero(sizes) + lanes - 1


@given(sizes, seeds, windows, lane_counts, st.integers(0, 8), st.integers(0, 300))
def test_a_window_names_the_shards_of_its_positions_and_stand_ins(
    sizes: list[int], seed: int, window: int, lanes: int, lane: int, position: int
) -> None:
    lane %= lanes
    order = Order(sizes, seed, window, lanes)
    end, shards = order.window(position, lane)
    shard_of = np.repeat(np.arange(len(sizes)), sizes)
    assert end > position
    assert {int(shard_of[n]) for n in order.at(position, end, lane)} <= set(shards)
    assert {int(shard_of[order.replacement(position, tries, lane)]) for tries in range(9)} <= set(shards)
    assert order.window(end - 1, lane) == (end, shards)


@given(sizes, seeds, windows, st.integers(2, 9), st.integers(0, 6))
def test_no_window_is_a_crumb_that_a_cut_left(sizes: list[int], seed: int, window: int, lanes: int, epoch: int) -> None:
    order = Order(sizes, seed, window, lanes)
    for lane in range(lanes):
        (at, stop), lengths = epoch_of(order, lane, epoch), []
        while at < stop:
            end = order.window(at, lane)[0]
            lengths.append(end - at)
            at = end
        assert at == stop
        assert len(lengths) < 2 or min(lengths) * 2 >= -(-window // lanes)


@st.composite
def mixtures(draw: st.DrawFn) -> tuple[Mixture, int]:
    """A mixture, and a number of processes that its batch can be divided among."""
    lanes, each, world = draw(lane_counts), draw(st.integers(1, 6)), draw(st.integers(1, 8))
    batch = np.lcm(lanes * each, world).item()
    parts = draw(some_datasets)
    seed, window = draw(seeds), draw(windows)
    weights = [weight for _, weight in parts]
    assume(min(weights) / sum(weights) >= 0.001)
    return Mixture([Order(each_, seed, window, lanes) for each_, _ in parts], weights, batch), world


@settings(deadline=None, max_examples=40)
@given(mixtures(), st.integers(0, 2000), st.lists(st.integers(0, 60), max_size=6))
def test_the_stream_is_the_same_however_it_is_cut(case: tuple[Mixture, int], start: int, cuts: list[int]) -> None:
    mixture, _ = case
    whole = mixture.at(start, start + sum(cuts))
    pieces: list[Place] = []
    for cut in cuts:
        pieces += pickle.loads(pickle.dumps(mixture)).at(start, start + cut)
        start += cut
    assert pieces == whole


@settings(deadline=None, max_examples=40)
@given(mixtures(), st.integers(0, 400), st.integers(1, 6))
def test_every_step_has_the_same_samples_for_any_number_of_processes(
    case: tuple[Mixture, int], step: int, steps: int
) -> None:
    mixture, world = case
    share = mixture.batch // world
    for number in range(step, step + steps):
        first = number * mixture.batch
        one = mixture.at(first, first + mixture.batch)
        ranks = [
            pickle.loads(pickle.dumps(mixture)).at(first + rank * share, first + (rank + 1) * share)
            for rank in range(world)
        ]
        assert [place for rank in ranks for place in rank] == one


@settings(deadline=None, max_examples=40)
@given(mixtures(), st.integers(0, 400), st.integers(1, 8))
def test_a_rank_reads_what_is_said_of_its_lanes_when_it_is_said(
    case: tuple[Mixture, int], step: int, steps: int
) -> None:
    """What a node brings: the shards of its own lanes, from the first step that reads them to the last."""
    mixture, world = case
    share = mixture.batch // world
    shard_of = [np.repeat(np.arange(len(order._sizes)), order._sizes) for order in mixture.orders]
    for rank in range(world):
        lanes = mixture.lanes_of(rank * share, (rank + 1) * share)
        assert len(lanes) <= -(-mixture.lanes // world) + 1
        if mixture.lanes % world == 0:
            assert len(lanes) == mixture.lanes // world
        told: list = []
        for reading in mixture.readings(step, lanes):
            if reading.first >= step + steps:
                break
            told.append(reading)
        assert [reading.first for reading in told] == sorted(reading.first for reading in told)
        for number in range(step, step + steps):
            there = {(r.dataset, s) for r in told if r.first <= number < r.end for s in r.shards}
            start = number * mixture.batch + rank * share
            read = {(p.dataset, int(shard_of[p.dataset][p.number])) for p in mixture.at(start, start + share)}
            stand_ins = [mixture.replacement(p, t) for p in range(start, start + share) for t in range(3)]
            read |= {(p.dataset, int(shard_of[p.dataset][p.number])) for p in stand_ins}
            assert read <= there


@settings(deadline=None, max_examples=12)
@given(some_datasets, seeds, st.integers(1, 6), st.integers(1, 3))
def test_shares_are_exact_between_all_lanes_and_in_each(
    parts: list[tuple[list[int], int]], seed: int, lanes: int, blocks: int
) -> None:
    weights = [weight for _, weight in parts]
    assume(min(weights) / sum(weights) >= 0.001)
    mixture = Mixture([Order(each, seed, 50, lanes) for each, _ in parts], weights, BLOCK * lanes)
    # A step of BLOCK positions in each lane: so the first steps are the first blocks of all lanes.
    stream = mixture.at(0, blocks * BLOCK * lanes)
    for dataset, weight in enumerate(weights):
        share = weight / sum(weights)
        assert abs(sum(p.dataset == dataset for p in stream) - len(stream) * share) < 1
    for lane in range(lanes):
        own = [p for n in range(blocks) for p in stream[(n * lanes + lane) * BLOCK :][:BLOCK]]
        for dataset, order in enumerate(mixture.orders):
            numbers = [p.number for p in own if p.dataset == dataset]
            assert abs(len(numbers) - len(own) * weights[dataset] / sum(weights)) < 2
            assert numbers == order.at(0, len(numbers), lane).tolist()  # its own stream, nothing left out


def test_the_order_with_lanes_is_pinned() -> None:
    # A resumed run must see the same order under another version of numpy or clipa.
    mixture = Mixture([Order([5, 9, 2, 7], 1, 8, lanes=2)], [1.0], 4)
    assert [place.number for place in mixture.at(0, 24)] == PINNED


PINNED = [4, 2, 5, 6, 0, 1, 8, 9, 3, 19, 22, 10, 17, 21, 12, 13, 16, 18, 7, 11, 20, 4, 15, 14]


def test_lanes_are_shuffled_apart_from_each_other() -> None:
    order = Order([1000] * 8, 5, 65_536, lanes=4)
    first = [order.at(0, 2000, lane) for lane in range(4)]
    places = [np.argsort(np.argsort(part)) for part in first]
    assert not any(np.array_equal(places[0], other) for other in places[1:])
    early = [np.count_nonzero(np.isin(part[:1000], np.sort(part)[:1000])) for part in first]
    assert all(430 < count < 570 for count in early)  # two shards a lane, one window: 500 +- 16 is expected


def test_what_a_process_keeps_grows_with_its_lanes_and_not_with_the_stream() -> None:
    order = Order([100] * 64, 1, 64, lanes=64)
    for start in range(0, 2000, 50):
        for lane in range(8):
            order.at(start, start + 50, lane)
    kept = [len(windows) for windows in order._samples_of._have.values()]
    assert len(kept) == 8
    assert max(kept) <= 2


def test_each_sample_of_a_batch_is_of_its_slots_lane() -> None:
    mixture = Mixture([Order([10] * 30, 2, 40, lanes=3)], [1.0], 12)
    counts: Counter[int] = Counter()
    for lane in range(3):
        own = mixture.orders[0].at(0, 100, lane).tolist()
        assert [p.number for n in range(25) for p in mixture.at(n * 12 + lane * 4, n * 12 + lane * 4 + 4)] == own
        counts.update(own)
    assert set(counts.values()) == {1}
    assert list(islice((r.first for r in mixture.readings(0, [0, 1, 2])), 3)) == [0, 0, 0]


@pytest.mark.parametrize(("lanes", "batch"), [((2, 2), 5), ((2, 3), 6)])
def test_lanes_that_do_not_fit_are_refused(lanes: tuple[int, int], batch: int) -> None:
    with pytest.raises(ValueError, match="lanes"):
        Mixture([Order([4], 0, 4, count) for count in lanes], [1.0, 1.0], batch)


@settings(deadline=None, max_examples=40)
@given(mixtures(), st.integers(0, 300), st.data())
def test_the_readings_of_some_datasets_do_not_depend_on_the_shards_of_others(
    case: tuple[Mixture, int], step: int, data: st.DataObject
) -> None:
    mixture, _ = case
    every = range(len(mixture.orders))
    some = data.draw(st.sets(st.sampled_from(every), min_size=1))
    uncounted = Mixture(
        [order if at in some else Order([1], order.seed, 1, mixture.lanes) for at, order in enumerate(mixture.orders)],
        mixture.weights, mixture.batch,
    )  # fmt: skip
    lanes = range(mixture.lanes)
    wanted = [reading for reading in islice(mixture.readings(step, lanes), 30) if reading.dataset in some]
    assert list(islice(uncounted.readings(step, lanes, some), len(wanted))) == wanted
