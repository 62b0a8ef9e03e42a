import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from clipa.reduction.draws import Draws, Purpose, TensorDraws

seeds = st.integers(0, 2**63 - 1)
positions = st.lists(st.integers(0, 2**50), min_size=1, max_size=5)
purposes = st.sampled_from(list(Purpose))
PINNED = [0.1300857085561754, 0.4373184320319292]


def test_draws_are_pinned() -> None:
    # A resumed run must draw the same under another version of clipa.
    draws = Draws(1, 2, Purpose.CROP)
    assert [draws.uniform(), draws.uniform()] == PINNED


@settings(max_examples=20)
@given(seeds)
def test_draws_are_uniform_and_differ_by_purpose_and_position(seed: int) -> None:
    values = [Draws(seed, position, Purpose.CROP).uniform() for position in range(2000)]
    counts = np.histogram(values, bins=10, range=(0, 1))[0]
    assert counts.sum() == 2000
    assert counts.min() > 130  # 200 +- 13 is expected
    assert Draws(seed, 3, Purpose.CROP).uniform() != Draws(seed, 3, Purpose.CAPTION).uniform()
    assert abs(np.corrcoef(values[:-1], values[1:])[0, 1]) < 0.12  # 0 +- 0.022


@given(seeds, positions, purposes, st.integers(1, 6), st.floats(-3, 0), st.floats(0.1, 3))
def test_the_device_draws_the_same_bits(
    seed: int, places: list[int], purpose: Purpose, count: int, low: float, high: float
) -> None:
    rows = [Draws(seed, place, purpose) for place in places]
    expected = [[row.uniform(low, high) for _ in range(count)] for row in rows]
    assert TensorDraws(seed, purpose, count).uniform(torch.tensor(places), low, high).tolist() == expected


@given(seeds, positions, purposes, st.integers(1, 1000))
def test_the_device_draws_the_same_integers(seed: int, places: list[int], purpose: Purpose, below: int) -> None:
    rows = [Draws(seed, place, purpose) for place in places]
    expected = [[row.integer(below) for _ in range(3)] for row in rows]
    assert TensorDraws(seed, purpose, 3).integer(torch.tensor(places), below).tolist() == expected


@pytest.mark.long
def test_the_device_draws_compile_without_graph_breaks() -> None:
    places = torch.arange(300) * 12_345_678_901
    for seed in (0, 2**63 - 1):
        draws = TensorDraws(seed, Purpose.JITTER, 37)
        compiled = torch.compile(draws.uniform, fullgraph=True)
        assert torch.equal(compiled(places), draws.uniform(places))
