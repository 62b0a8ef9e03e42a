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

    @property
    def empty(self) -> tuple[int, ...]:
        """The classes without an image."""
        return tuple((self.counts[self._IMAGES] == 0).nonzero().flatten().tolist())

    def metrics(self) -> dict[str, float]:
        """`top1`, `top5` (five classes or more); `mean_per_class_recall` and `f1_macro` over the classes with images.

        F1 of a class is 2 right / (images + predictions), as WILDS has it.
        """
        images = self.counts[self._IMAGES]
        there = images > 0
        found = {
            "top1": _share(self.counts[self._TOP1].sum(), images.sum()),
            "mean_per_class_recall": _percent((self.counts[self._RIGHT][there] / images[there]).mean()),
            "f1_macro": _percent(
                (2 * self.counts[self._RIGHT] / (images + self.counts[self._PREDICTED]))[there].mean()
            ),
        }
        if self.counts.shape[1] >= 5:
            found["top5"] = _share(self.counts[self._TOP5].sum(), images.sum())
        return found


def worst_group(rows: torch.Tensor, classes: int) -> dict[str, float]:
    """Accuracy in the group where it is lowest, over the groups that have images (WILDS, DataComp).

    Args:
        rows: int64 [n, 3]: an image's group, whether its class was right, whether it was among five.
        classes: their number; `worst_group_top5` needs five.
    """
    groups, place = torch.unique(rows[:, 0], return_inverse=True)
    sums = torch.zeros((len(groups), 3), dtype=torch.float64, device=rows.device)
    sums.index_add_(0, place, torch.cat([torch.ones_like(rows[:, :1]), rows[:, 1:]], dim=1).double())
    found = {"worst_group": _percent((sums[:, 1] / sums[:, 0]).min())}
    if classes >= 5:
        found["worst_group_top5"] = _percent((sums[:, 2] / sums[:, 0]).min())
    return found


def mean_average_precision(scores: torch.Tensor, targets: torch.Tensor) -> float:
    """The mean over all classes of the average precision (CLIP_benchmark: a class without a positive counts 0).

    Args:
        scores: [n, classes].
        targets: [n, classes], 0 or 1.
    """
    truth = targets.gather(0, scores.argsort(dim=0, descending=True)).double()
    ranks = torch.arange(1, len(scores) + 1, dtype=torch.float64, device=scores.device)
    precision = truth.cumsum(dim=0) / ranks[:, None]
    return _percent(((precision * truth).sum(dim=0) / truth.sum(dim=0).clamp(min=1)).mean())


RECALLS = (1, 5, 10)


def recall_hits(queries: torch.Tensor, wanted: torch.Tensor, candidates: torch.Tensor, owner: torch.Tensor,
                chunk: int = 1024) -> torch.Tensor:  # fmt: skip
    """How many queries have at least one of their own among the best 1, 5, 10 candidates: float64 [3].

    Memory is chunk x candidates floats, whatever the number of queries.

    Args:
        queries: normalised features [q, d].
        wanted: int64 [q]: the image that each query belongs to.
        candidates: normalised features [c, d].
        owner: int64 [c]: the image that each candidate belongs to.
        chunk: queries that are compared at once.
    """
    hits = torch.zeros(len(RECALLS), dtype=torch.float64, device=queries.device)
    most = min(max(RECALLS), len(candidates))
    for start in range(0, len(queries), chunk):
        best = (queries[start : start + chunk] @ candidates.T).topk(most, dim=1).indices
        right = owner[best] == wanted[start : start + chunk, None]
        hits += torch.stack([right[:, :k].any(dim=1).sum() for k in RECALLS]).double()
    return hits


def retrieval(images: int, texts: int, image_hits: torch.Tensor, text_hits: torch.Tensor) -> dict[str, float]:
    """Recalls from hits; a recall among as many candidates as there are says nothing and is left out.

    Args:
        images: their number.
        texts: their number.
        image_hits: of texts that look for their image [3].
        text_hits: of images that look for one of their texts [3].
    """
    found = {}
    for what, hits, queries, candidates in (
        ("image", image_hits, texts, images),
        ("text", text_hits, images, texts),
    ):
        for k, hit in zip(RECALLS, hits.tolist(), strict=True):
            if k < candidates or k == 1:
                found[f"{what}_retrieval_recall@{k}"] = 100.0 * hit / queries
    found["mean_recall@1"] = (found["image_retrieval_recall@1"] + found["text_retrieval_recall@1"]) / 2
    return found


def jaccard(instances: torch.Tensor, scores: torch.Tensor, associated: torch.Tensor) -> dict[str, float]:
    """Jaccard index of the best candidates of each instance, as many as are associated, with those (WinoGAViL).

    Args:
        instances: int64 [n]: the instance of each candidate.
        scores: [n]: its similarity to the cue.
        associated: bool [n].
    """
    by_size: dict[int, list[float]] = {}
    for instance in torch.unique(instances).tolist():
        rows = (instances == instance).nonzero().flatten()
        truth = associated[rows]
        chosen = torch.zeros_like(truth)
        chosen[scores[rows].topk(int(truth.sum())).indices] = True
        both, either = int((truth & chosen).sum()), int((truth | chosen).sum())
        by_size.setdefault(len(rows), []).append(100.0 * both / either)
    found = {}
    for name, sizes in (("jaccard", None), ("jaccard_5-6", (5, 6)), ("jaccard_10-12", (10, 12))):
        values = [v for size, part in by_size.items() if sizes is None or sizes[0] <= size <= sizes[1] for v in part]
        if values:
            found[name] = sum(values) / len(values)
    return found


def _share(part: torch.Tensor, whole: torch.Tensor) -> float:
    return _percent(part / whole)


def _percent(value: torch.Tensor) -> float:
    return 100.0 * float(value)
