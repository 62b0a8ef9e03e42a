import hashlib
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


def _hash(numbers: object) -> str:
    return hashlib.sha256(np.asarray(numbers, dtype="<i8").tobytes()).hexdigest()[:16]


SETS = [([3, 0, 5, 40, 1, 0, 17], 1, 20), ([1000] * 7 + [3], 2**62 + 5, 2500),
        ([10_000 - n % 7 for n in range(41)], 3, 65_536)]  # fmt: skip


@pytest.mark.parametrize(
    ("sizes", "seed", "window", "pinned"),
    [
        (*SETS[0], ["41df42e1cf7051c0", "07797a619b09351d", "19f9903f38bf437a"]),
        (*SETS[1], ["4dfc969c76d3d5ff", "8e8f9c0674492571", "7123dc9789807d54"]),
        (*SETS[2], ["b93d116dab5b857e", "fe47f76e19e915dd", "1c7532fd392d54c1"]),
    ],
)
def test_one_lane_is_the_order_of_the_versions_before_lanes(
    sizes: list[int], seed: int, window: int, pinned: list[str]
) -> None:
    """Written down by clipa at fcd5775, which had none: plans and checkpoints of that time go on where they were."""
    order, total = Order(sizes, seed, window), sum(sizes)
    places = range(0, 3 * total, max(1, total // 50))
    assert [
        _hash(order.at(total // 3, total // 3 + 2 * total + 7)),
        _hash([order.replacement(place, 0) for place in places]),
        _hash([order.window(place)[0] for place in places]),
    ] == pinned


def test_a_mixture_of_one_lane_is_that_of_the_versions_before_lanes() -> None:
    mixture = Mixture([Order(sizes, 9, window) for sizes, _, window in SETS], [0.5, 0.3, 0.001])
    assert _hash([part for place in mixture.at(3000, 3000 + 5 * BLOCK) for part in place]) == "5f7521db47f23b3b"
    stand_ins = [part for position in range(0, 9 * BLOCK, 97) for part in mixture.replacement(position, 1)]
    assert _hash(stand_ins) == "3de6ddd266c29a39"


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
    epoch = position // sum(sizes)
    end = order.window(position)[0]
    start = next(p for p in range(epoch * sum(sizes), position + 1) if order.window(p)[0] == end)
    members = order.at(start, end).tolist()
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


def test_a_small_window_of_bad_samples_takes_from_its_neighbour() -> None:
    """An epoch that ends with a shard of one sample, and that is broken: the run must not end there."""
    order = Order([50, 50, 1], 5, 60)
    alone = [p for p in range(1, 404) if order.window(p)[0] - order.window(p - 1)[0] == 1 and p % 101]
    assert alone
    for position in alone:
        stand_ins = [order.replacement(position, tries) for tries in range(8)]
        assert stand_ins[0] == 100  # itself
        assert set(stand_ins[1:]) <= set(range(100))
        assert len(set(stand_ins)) == 8
        assert set(order.window(position)[1]) > {2}
