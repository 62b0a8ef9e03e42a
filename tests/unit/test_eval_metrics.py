"""Scores against cases computed by hand, and against scikit-learn where it has the same definition."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import balanced_accuracy_score

from clipa.eval.metrics import Tally


def tally(logits: torch.Tensor, labels: list[int], *, parts: int = 1) -> Tally:
    found = Tally(logits.shape[1], torch.device("cpu"))
    for part in torch.arange(len(labels)).chunk(parts):
        found.add(logits[part], torch.tensor(labels)[part])
    return found


def test_accuracies_of_a_case_by_hand() -> None:
    # six classes; the images' own classes are ranked 1st, 1st, 2nd, 6th
    ranks = [[0, 1, 2, 3, 4, 5], [1, 0, 2, 3, 4, 5], [0, 1, 2, 3, 4, 5], [1, 2, 3, 4, 5, 0]]
    logits = torch.zeros(4, 6)
    for row, order in enumerate(ranks):
        for place, name in enumerate(order):
            logits[row, name] = -float(place)
    found = tally(logits, [0, 1, 1, 0]).metrics()
    assert found["top1"] == 50.0
    assert found["top5"] == 75.0
    assert found["mean_per_class_recall"] == 50.0  # class 0: 1 of 2, class 1: 1 of 2; the others have no image


def test_mean_per_class_recall_weighs_classes_not_images() -> None:
    logits = torch.tensor([[1.0, 0, 0]] * 4)
    found = tally(logits, [0, 0, 0, 2]).metrics()
    assert found["top1"] == 75.0
    assert found["mean_per_class_recall"] == 50.0
    assert "top5" not in found, "with three classes it would always be 100"


@given(st.integers(1, 60), st.integers(2, 9), st.integers(1, 5), st.integers(0, 10**6))
def test_counts_do_not_depend_on_the_division(samples: int, classes: int, parts: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(samples, classes, generator=generator)
    labels = torch.randint(0, classes, (samples,), generator=generator).tolist()
    whole, divided = tally(logits, labels), tally(logits, labels, parts=parts)
    assert torch.equal(whole.counts, divided.counts)
    assert whole.samples == samples


@pytest.mark.filterwarnings("ignore::UserWarning:sklearn")
@given(st.integers(2, 40), st.integers(2, 7), st.integers(0, 10**6))
def test_recall_is_scikit_learns_balanced_accuracy(samples: int, classes: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(samples, classes, generator=generator)
    labels = torch.randint(0, classes, (samples,), generator=generator).tolist()
    expected = 100 * balanced_accuracy_score(labels, logits.argmax(dim=1).numpy())
    assert tally(logits, labels).metrics()["mean_per_class_recall"] == pytest.approx(expected)
