"""What is a spike, and which samples a run takes after it has gone back."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from clipa.registry.skips import Skip, stretch
from clipa.train.guard import WINDOW, Guard, first_spike


def _noisy(count, around=2.0):
    return [around + 0.02 * math.sin(7 * n) for n in range(count)]


def test_a_spike_is_named_with_what_was_usual():
    spike = first_spike(_noisy(30), 31, [*_noisy(5), 6.0, 7.0])
    assert (spike.step, spike.loss) == (36, 6.0)
    assert spike.usual == pytest.approx(2.0, abs=0.02)


@pytest.mark.parametrize("losses", [
    [2.9, 2.9],  # far outside of the noise, but less than half above
    [1.0, 0.1],  # a fall
    [math.nan, 9.0], [math.inf, 9.0],
], ids=str)  # fmt: skip
def test_what_is_no_spike(losses):
    assert first_spike(_noisy(30), 31, losses) is None


def test_small_losses_are_noisy_and_nothing_is_unusual_at_the_start():
    assert first_spike([0.01 * (1 + n % 7) for n in range(40)], 41, [0.2]) is None
    assert first_spike(_noisy(10), 11, [50.0]) is None


def test_the_same_whatever_the_looks_and_the_interruptions():
    losses = [torch.tensor([value]) for value in [*_noisy(100), 8.0]]
    found = []
    for every in (1, 7, 101):
        guard, seen = Guard(), []
        for step, loss in enumerate(losses, 1):
            guard.add(step, loss)
            if step % every == 0 or step == len(losses):
                seen.append(guard.look())
                guard = Guard(guard.history)  # as a resume from a checkpoint at every look has it
        assert len(guard.history) == WINDOW
        found.append([spike for spike in seen if spike])
    assert found[0] == found[1] == found[2]
    assert found[0][0].step == 101


@given(
    st.lists(st.tuples(st.integers(0, 30), st.integers(1, 5)), max_size=4, unique_by=lambda pair: pair[0]),
    st.integers(0, 39),
)
def test_every_start_takes_the_samples_that_an_uninterrupted_run_takes(pairs, start):
    skips = [Skip(at=at, steps=steps) for at, steps in pairs]

    def taken(step):
        found = {}
        while step < 40:
            stop, shift = stretch(step, 40, skips)
            assert stop > step
            found |= {number: number + shift for number in range(step, stop)}
            step = stop
        return found

    whole = taken(0)
    assert sorted(whole) == list(range(40))
    assert sorted(set(whole.values())) == list(whole.values()), "no sample comes twice, and none out of order"
    assert taken(start) == {step: sample for step, sample in whole.items() if step >= start}
    passed_over = set(range(max(whole.values()) + 1)) - set(whole.values())
    assert len(passed_over) == sum(steps for at, steps in pairs if at < 40)
