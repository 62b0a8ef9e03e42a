"""The linear probe against scikit-learn's logistic regression, in one division of the data and another."""

from __future__ import annotations

import pytest
import torch
from sklearn.linear_model import LogisticRegression

from clipa.attempt.devices import Ranks
from clipa.eval.probe import Features, fit

ALONE = Ranks(0, 1, torch.device("cpu"))


def blobs(count: int, classes: int, width: int = 12, seed: int = 0) -> Features:
    generator = torch.Generator().manual_seed(seed)
    centres = torch.randn(classes, width, generator=torch.Generator().manual_seed(9))
    labels = torch.arange(count) % classes
    rows = centres[labels] + 0.8 * torch.randn(count, width, generator=generator)
    return Features(torch.nn.functional.normalize(rows, dim=-1), labels, torch.arange(count))


@pytest.mark.parametrize("strength", [1e-1, 1e-3])
def test_weights_are_those_of_scikit_learn(strength: float) -> None:
    data = blobs(240, 4)
    found = fit(data, 4, strength, ALONE)
    theirs = LogisticRegression(C=1 / (strength * 240), tol=1e-10, max_iter=5000)
    theirs.fit(data.rows.double().numpy(), data.labels.numpy())
    expected = torch.tensor(theirs.coef_.T)
    centred = found[:-1] - found[:-1].mean(dim=1, keepdim=True)  # a shift of all classes changes no probability
    assert (centred - (expected - expected.mean(dim=1, keepdim=True))).abs().max() < 1e-3 * expected.abs().max()
    assert torch.equal(found, fit(data, 4, strength, ALONE)), "the same bits every time"


def test_a_start_changes_the_way_not_the_end() -> None:
    data = blobs(240, 4)
    near = fit(data, 4, 1e-2, ALONE)
    direct, warm = fit(data, 4, 1e-3, ALONE), fit(data, 4, 1e-3, ALONE, near)
    assert (direct[:-1] - warm[:-1]).abs().max() < 1e-3 * direct.abs().max()
