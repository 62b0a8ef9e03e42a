"""Norms of gradients by tower, on the device of the model, whatever parts have gradients."""

import pytest
import torch
from torch import nn

from clipa.train.gradients import norms


class _Model(nn.Module):
    def __init__(self, device):
        super().__init__()
        self.image, self.text = (nn.Linear(3, 2, bias=False, device=device) for _ in range(2))
        self.logit_scale = nn.Parameter(torch.zeros(1, device=device))


def test_the_norms_are_those_of_all_gradients_together():
    model = _Model("cpu")
    model.image.weight.grad = torch.full((2, 3), 2.0)
    model.text.weight.grad = torch.full((2, 3), -1.0)
    model.logit_scale.grad = torch.tensor([3.0])
    found = norms(model)
    assert [float(norm) for norm in found] == pytest.approx([24**0.5, 6**0.5, 39**0.5])


@pytest.mark.parametrize("parts", [(), ("image",), ("image", "text")])
def test_parts_without_gradients_count_nothing_and_stay_on_the_device(parts):
    model = _Model("meta")  # stands for a GPU: torch refuses to mix it with the CPU
    for part in parts:
        weight = getattr(model, part).weight
        weight.grad = torch.zeros_like(weight)
    assert {norm.device.type for norm in norms(model)} == {"meta"}
