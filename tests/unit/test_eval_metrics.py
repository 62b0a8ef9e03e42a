"""Scores against cases computed by hand, and against scikit-learn where it has the same definition."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import balanced_accuracy_score, f1_score, jaccard_score

from clipa.eval.metrics import Tally, jaccard, mean_average_precision, recall_hits, retrieval, worst_group


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
    assert tally(logits, [0, 0, 0, 2]).empty == (1,)


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


def test_macro_f1_of_a_case_by_hand() -> None:
    # class 0: 2 images, both found; class 1: 1 image, taken for 0; class 2: no image, predicted once
    logits = torch.tensor([[1.0, 0, 0], [1, 0, 0], [1, 0, 0], [0, 0, 1]])
    found = tally(logits, [0, 0, 1, 0]).metrics()
    # class 0: 3 images, 3 predictions, 2 right: 2*2/6; class 1: 1 image, 0 predictions: 0
    assert found["f1_macro"] == pytest.approx(100 * (4 / 6 + 0) / 2)


@pytest.mark.filterwarnings("ignore::UserWarning:sklearn")
@given(st.integers(2, 40), st.integers(2, 7), st.integers(0, 10**6))
def test_macro_f1_is_that_of_wilds(samples: int, classes: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(samples, classes, generator=generator)
    labels = torch.randint(0, classes, (samples,), generator=generator).tolist()
    expected = f1_score(labels, logits.argmax(dim=1).numpy(), average="macro", labels=sorted(set(labels)))
    assert tally(logits, labels).metrics()["f1_macro"] == pytest.approx(100 * expected)


def test_the_worst_group_of_a_case_by_hand() -> None:
    # group 5: 1 of 2, both among five; group 0: 2 of 3, 2 among five; group 9: 1 of 1. Other numbers have no images.
    rows = [[5, 1, 1], [0, 1, 1], [0, 0, 0], [5, 0, 1], [0, 1, 1], [9, 1, 1]]
    found = worst_group(torch.tensor(rows), classes=10)
    assert found["worst_group"] == 50.0
    assert found["worst_group_top5"] == pytest.approx(200 / 3)
    assert "worst_group_top5" not in worst_group(torch.tensor(rows), classes=4)


def test_average_precision_of_a_case_by_hand() -> None:
    scores = torch.tensor([[0.9, 0.1], [0.8, 0.2], [0.7, 0.3], [0.6, 0.4]])
    targets = torch.tensor([[1, 0], [0, 0], [1, 0], [0, 1]])
    # class 0: hits at 1 and 3: (1/1 + 2/3) / 2; class 1: its one hit is first: 1
    assert mean_average_precision(scores, targets) == pytest.approx(100 * ((1 + 2 / 3) / 2 + 1) / 2)
    nobody = torch.tensor([[1, 0], [0, 0], [1, 0], [0, 0]])
    assert mean_average_precision(scores, nobody) == pytest.approx(100 * ((1 + 2 / 3) / 2 + 0) / 2)


def test_recall_of_a_case_by_hand() -> None:
    # three images, captions 0,1 -> image 0; 2 -> image 1; 3 -> image 2
    owner, own = torch.tensor([0, 0, 1, 2]), torch.arange(3)
    image = torch.eye(3)
    text = torch.tensor([[1.0, 0, 0], [0, 1, 0], [0.1, 0.9, 0], [0.6, 0.5, 0.4]])
    to_image, to_text = recall_hits(text, owner, image, own), recall_hits(image, own, text, owner)
    assert to_image.tolist() == [2.0, 4.0, 4.0]
    # image 0 finds its first caption; image 1 finds caption 1, which is of image 0; image 2 finds its own
    assert to_text.tolist() == [2.0, 3.0, 3.0]
    found = retrieval(3, 4, to_image, to_text)
    assert found["image_retrieval_recall@1"] == 50.0
    assert found["text_retrieval_recall@1"] == pytest.approx(200 / 3)
    assert found["mean_recall@1"] == pytest.approx((50 + 200 / 3) / 2)
    assert "image_retrieval_recall@5" not in found, "five of three images are all of them"


@given(st.integers(1, 30), st.integers(1, 4), st.integers(1, 50), st.integers(0, 10**6))
def test_chunks_do_not_change_recall(images: int, captions: int, chunk: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    image = torch.randn(images, 5, generator=generator)
    text = torch.randn(images * captions, 5, generator=generator)
    owner = torch.arange(images).repeat_interleave(captions)
    whole = recall_hits(text, owner, image, torch.arange(images))
    assert torch.equal(whole, recall_hits(text, owner, image, torch.arange(images), chunk=chunk))


def test_jaccard_of_a_case_by_hand() -> None:
    instances = torch.tensor([1] * 5 + [7] * 10)
    scores = torch.tensor([5.0, 4, 3, 2, 1, *range(10)])
    associated = torch.tensor([True, False, True, False, False] + [False] * 7 + [True] * 3)
    found = jaccard(instances, scores, associated)
    assert found["jaccard_5-6"] == pytest.approx(100 / 3)  # chosen 0, 1; true 0, 2: one of three
    assert found["jaccard_10-12"] == 100.0
    assert found["jaccard"] == pytest.approx((100 / 3 + 100) / 2)


@given(st.integers(2, 12), st.integers(0, 10**6))
def test_jaccard_is_scikit_learns(size: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    scores = torch.randn(size, generator=generator)
    truth = torch.rand(size, generator=generator) < 0.4
    truth[0] = True
    chosen = torch.zeros(size, dtype=torch.bool)
    chosen[scores.argsort()[-int(truth.sum()) :]] = True
    expected = 100 * jaccard_score(truth.numpy(), chosen.numpy())
    assert jaccard(torch.zeros(size, dtype=torch.int64), scores, truth)["jaccard"] == pytest.approx(expected)
