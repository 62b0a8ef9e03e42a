import pickle

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from clipa.data.order import BLOCK, Mixture, Order, permutation
from clipa.reduction.draws import Purpose

sizes = st.lists(st.integers(0, 30), min_size=1, max_size=12).filter(lambda s: sum(s) > 0)
PINNED = [8, 6, 2, 0, 10, 1, 9, 5, 4, 3, 11, 7, 8, 9, 5, 6, 4, 10, 11, 1, 0, 3, 2, 7]

seeds = st.integers(0, 2**63 - 1)


@given(sizes, seeds, st.integers(1, 80), st.integers(0, 5))
def test_each_epoch_holds_each_sample_once(sizes: list[int], seed: int, window: int, epoch: int) -> None:
    total = sum(sizes)
    part = Order(sizes, seed, window).at(epoch * total, (epoch + 1) * total)
    assert sorted(part.tolist()) == list(range(total))


@given(sizes, seeds, st.integers(1, 80), st.lists(st.integers(0, 40), max_size=8), st.integers(0, 200))
def test_the_stream_does_not_depend_on_its_cuts(
    sizes: list[int], seed: int, window: int, cuts: list[int], start: int
) -> None:
    order = Order(sizes, seed, window)
    stop = start + sum(cuts)
    whole = order.at(start, stop).tolist()
    pieces: list[int] = []
    for cut in cuts:
        # A fresh one each time: seeking to a position equals having read up to it.
        pieces += Order(sizes, seed, window).at(start, start + cut).tolist()
        start += cut
    assert pieces == whole


@given(st.integers(1, 20), st.integers(1, 30), seeds)
def test_a_window_is_made_of_whole_shards(shards: int, each: int, seed: int) -> None:
    window = 3 * each
    stream = Order([each] * shards, seed, window).at(0, shards * each)
    for first in range(0, shards * each, window):
        part = stream[first : first + window]
        assert len({int(n) // each for n in part}) == -(-len(part) // each)


def test_epochs_and_seeds_differ_and_small_data_is_shuffled_fully() -> None:
    order = Order([500, 500], 7)
    first, second = order.at(0, 1000), order.at(1000, 2000)
    assert not np.array_equal(first, second)
    assert not np.array_equal(first, Order([500, 500], 8).at(0, 1000))
    early = np.count_nonzero(first[:500] < 500)
    assert 200 < early < 300  # both shards in both halves; 250 +- 11 is expected


def test_the_order_is_pinned() -> None:
    # A resumed run must see the same order under another version of numpy or clipa.
    assert Order([3, 4, 5], 1).at(0, 24).tolist() == PINNED


def test_pickled_order_is_the_same() -> None:
    order = Order([3, 4, 5], 1)
    assert pickle.loads(pickle.dumps(order)).at(5, 30).tolist() == order.at(5, 30).tolist()


@given(st.integers(0, 300), seeds, st.sampled_from(list(Purpose)))
def test_permutation_is_one(count: int, seed: int, purpose: Purpose) -> None:
    assert sorted(permutation(count, seed, purpose).tolist()) == list(range(count))


@given(sizes, seeds, st.integers(1, 80), st.integers(0, 500))
def test_replacements_are_all_other_samples_of_the_window(
    sizes: list[int], seed: int, window: int, position: int
) -> None:
    order = Order(sizes, seed, window)
    epoch, offset = divmod(position, sum(sizes))
    bounds, _ = order._shard_windows(epoch)
    at = int(np.searchsorted(bounds, offset, side="right")) - 1
    first = epoch * sum(sizes)
    members = order.at(first + int(bounds[at]), first + int(bounds[at + 1])).tolist()
    tried = [order.replacement(position, tries) for tries in range(len(members))]
    assert sorted(tried) == sorted(members)
    if len(members) > 1:  # the bad sample itself is not what is tried first
        assert tried[0] != order.at(position, position + 1)[0]
    assert tried == [Order(sizes, seed, window).replacement(position, tries) for tries in range(len(members))]


def test_a_replacement_is_far_from_its_batch() -> None:
    order = Order([1000], 3)
    places = {int(number): place for place, number in enumerate(order.at(0, 1000))}
    assert {abs(places[order.replacement(p, 0)] - p) for p in range(1000)} == {500}


@pytest.mark.parametrize("sizes", [[], [0], [0, 0], [3, -1]])
def test_no_samples_is_refused(sizes: list[int]) -> None:
    with pytest.raises(ValueError, match="sizes"):
        Order(sizes, 0)


@given(st.lists(st.integers(0, 40), min_size=1, max_size=12).filter(any), st.integers(1, 60), st.integers(0, 400))
def test_a_window_names_the_shards_that_its_positions_read(sizes: list[int], window: int, position: int) -> None:
    order = Order(sizes, 3, window)
    end, shards = order.window(position)
    assert end > position
    shard_of = np.repeat(np.arange(len(sizes)), sizes)
    read = {int(shard_of[number]) for number in order.at(position, end)}
    assert read <= set(shards)
    assert sum(sizes[s] for s in shards) >= end - position
    assert {int(shard_of[order.replacement(position, tries)]) for tries in range(9)} <= set(shards)


weighted = st.lists(
    st.tuples(st.lists(st.integers(1, 50), min_size=1, max_size=4), st.integers(1, 40)), min_size=1, max_size=4
)


@given(weighted, seeds, st.integers(0, 3 * BLOCK), st.lists(st.integers(1, 900), max_size=5))
def test_a_mixture_is_the_same_however_it_is_cut(parts, seed, start, cuts):
    mixture = Mixture([Order(sizes, seed) for sizes, _ in parts], [weight for _, weight in parts])
    whole = mixture.at(start, start + sum(cuts))
    pieces = []
    for cut in cuts:
        pieces += pickle.loads(pickle.dumps(mixture)).at(start, start + cut)
        start += cut
    assert pieces == whole


@settings(max_examples=25)
@given(weighted, seeds, st.integers(1, 6))
def test_a_mixture_is_exact_in_proportion_and_every_epoch_of_each_dataset_has_every_sample_once(parts, seed, blocks):
    weights = [weight for _, weight in parts]
    orders = [Order(sizes, seed) for sizes, _ in parts]
    stream = Mixture(orders, weights).at(0, blocks * BLOCK)
    for dataset, order in enumerate(orders):
        numbers = [place.number for place in stream if place.dataset == dataset]
        assert abs(len(numbers) - blocks * BLOCK * weights[dataset] / sum(weights)) <= 1
        assert numbers == order.at(0, len(numbers)).tolist()  # its own stream, nothing left out
    assert len(stream) == blocks * BLOCK


def test_a_mixture_is_shuffled_and_of_one_dataset_is_that_dataset():
    one = Order([100, 100], 3)
    assert [place.number for place in Mixture([one], [0.2]).at(5, 300)] == one.at(5, 300).tolist()
    stream = Mixture([one, Order([1000], 3)], [0.1, 0.9]).at(0, BLOCK)
    places = [n for n, place in enumerate(stream) if place.dataset == 0]
    assert len(places) in (409, 410)
    gaps = np.diff(places)
    assert gaps.min() == 1  # not every tenth
    assert gaps.max() < 150


@given(weighted, seeds, st.integers(0, 2 * BLOCK), st.integers(0, 5))
def test_what_stands_in_for_a_sample_of_a_mixture_is_of_its_dataset(parts, seed, position, tries):
    mixture = Mixture([Order(sizes, seed) for sizes, _ in parts], [weight for _, weight in parts])
    [place] = mixture.at(position, position + 1)
    stand_in = mixture.replacement(position, tries)
    assert stand_in.dataset == place.dataset
    assert 0 <= stand_in.number < mixture.orders[place.dataset].samples
