"""The learning rate and the decay mask."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from clipa.train.optim import is_decayed, lr_at


@given(st.integers(1, 500), st.data())
def test_the_rate_never_leaves_its_bounds_and_turns_once(steps, data):
    warmup = data.draw(st.integers(0, steps - 1))
    rates = [lr_at(step, steps, warmup, 2.0) for step in range(steps)]
    assert all(0 < rate <= 2.0 for rate in rates)
    assert rates[:warmup] == sorted(rates[:warmup])
    assert rates[warmup:] == sorted(rates[warmup:], reverse=True)
    assert rates[warmup] == 2.0


def test_the_rate_warms_up_linearly_and_ends_at_zero():
    assert [lr_at(step, 10, 4, 1.0) for step in range(4)] == [0.25, 0.5, 0.75, 1.0]
    assert lr_at(10, 10, 4, 1.0) == pytest.approx(0.0)


@pytest.mark.parametrize(
    ("name", "shape", "decayed"),
    [
        ("text.blocks.0.qkv.weight", (3, 3), True),
        ("text.positional_embedding", (3, 3), True),
        ("text.blocks.0.qkv.bias", (3,), False),
        ("image.trunk.norm.weight", (3,), False),
        ("text.ln_final.weight", (3, 3), False),
        ("logit_scale", (1,), False),
    ],
)
def test_the_mask_is_open_clips(name, shape, decayed):
    assert is_decayed(name, torch.zeros(shape)) is decayed
