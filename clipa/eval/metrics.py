"""Scores from counts. Definitions are those of CLIP_benchmark 1.6.2, in percent; pure."""

from __future__ import annotations

import torch


class Tally:
    """Counts of single-label classification, which add up over batches and ranks to the same numbers in any division.

    `counts` is float64 [5, classes] by the true class: images; right at first, right among five; then predictions of
    the class, and right ones.
    """

    _IMAGES, _TOP1, _TOP5, _PREDICTED, _RIGHT = range(5)

    def __init__(self, classes: int, device: torch.device) -> None:
        self.counts = torch.zeros((5, classes), dtype=torch.float64, device=device)

    def add(self, logits: torch.Tensor, labels: torch.Tensor) -> None:
        """Count a batch: logits [b, classes], labels int64 [b]."""
        if not len(labels):
            return
        classes = logits.shape[1]
        hits = logits.topk(min(5, classes), dim=-1).indices == labels[:, None]
        predicted = logits.argmax(dim=-1)
        ones = torch.ones(len(labels), dtype=torch.float64, device=logits.device)
        for row, at, weight in (
            (self._IMAGES, labels, ones),
            (self._TOP1, labels, hits[:, 0].double()),
            (self._TOP5, labels, hits.any(dim=-1).double()),
            (self._PREDICTED, predicted, ones),
            (self._RIGHT, labels, (predicted == labels).double()),
        ):
            self.counts[row].index_add_(0, at, weight)

    @property
    def samples(self) -> int:
        """Images counted."""
        return int(self.counts[self._IMAGES].sum())

    def metrics(self) -> dict[str, float]:
        """`top1`, `top5` (five classes or more) and `mean_per_class_recall` (over the classes that have images)."""
        images = self.counts[self._IMAGES]
        there = images > 0
        found = {
            "top1": _share(self.counts[self._TOP1].sum(), images.sum()),
            "mean_per_class_recall": _percent((self.counts[self._RIGHT][there] / images[there]).mean()),
        }
        if self.counts.shape[1] >= 5:
            found["top5"] = _share(self.counts[self._TOP5].sum(), images.sum())
        return found


def _share(part: torch.Tensor, whole: torch.Tensor) -> float:
    return _percent(part / whole)


def _percent(value: torch.Tensor) -> float:
    return 100.0 * float(value)
