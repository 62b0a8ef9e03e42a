"""Linear probe: how well a linear classifier on the image features does. Deterministic, on all ranks.

Multinomial logistic regression with an L2 penalty, as the CLIP paper has it (arXiv 2103.00020, appendix A.3): the
strength is chosen on a tenth of the training images, then all of them are used. The whole gradient is taken in every
step of L-BFGS, from the images of all ranks, so that nothing is drawn at random.
"""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from typing import NamedTuple

import msgspec
import torch
from torch.nn import functional

from clipa.attempt.devices import Ranks
from clipa.attempt.weights import read_tensors, write_tensors
from clipa.data.scored import Source, share_of
from clipa.errors import DataError, TrainError
from clipa.eval.job import Job, Outcome
from clipa.eval.metrics import Tally
from clipa.eval.prompts import settled
from clipa.eval.zeroshot import labelled
from clipa.spec.plan import Data

_VERSION = 1
"""Of the cached features: raise it when they change."""
STRENGTHS = (1e-1, 1e-2, 1e-3, 1e-4, 1e-5, 1e-6, 1e-7)
"""Factors of the penalty beside the mean cross-entropy; scikit-learn's C is 1 / (factor x images)."""
_EVERY = 10
_STEPS = 200
_CHUNK = 16_384


class Features(NamedTuple):
    """A rank's images: normalised features [n, embed_dim], labels int64 [n], and their numbers in the set int64 [n]."""

    rows: torch.Tensor
    labels: torch.Tensor
    numbers: torch.Tensor

    def where(self, chosen: torch.Tensor) -> Features:
        """Those of a mask [n]."""
        return Features(self.rows[chosen], self.labels[chosen], self.numbers[chosen])


def probe(job: Job) -> Outcome:
    """Train on the set's training images, score on its images."""
    ranks, classes = job.bench.ranks, len(settled(job.data).classes)
    assert job.data.train is not None
    learned = features(job, job.data.train, classes)
    tested = features(job, job.data.data, classes)
    held = learned.numbers % _EVERY == 0
    if not ranks.any(bool(held.any())) or not ranks.any(bool((~held).any())):
        raise DataError(
            "too few training images for a linear probe", where=f"evaluation set {job.name}", allowed="2 or more"
        )
    fitted, judged = learned.where(~held), learned.where(held)
    best, strength, start = -1.0, STRENGTHS[0], None
    for candidate in STRENGTHS:
        job.bench.pulse.beat()
        start = fit(fitted, classes, candidate, ranks, start)
        found = _tally(judged, start, classes, ranks).metrics()["top1"]
        if found > best:
            best, strength = found, candidate
    job.bench.pulse.beat()
    tally = _tally(tested, fit(learned, classes, strength, ranks), classes, ranks)
    return Outcome(tally.samples, tally.metrics(), {"l2": strength, "held_out_top1": best}, tally.empty)


def fit(data: Features, classes: int, strength: float, ranks: Ranks, start: torch.Tensor | None = None) -> torch.Tensor:
    """The weights float64 [embed_dim + 1, classes] that minimise mean cross-entropy + strength / 2 x |weights|^2.

    The last row is the bias, which is not penalised.
    """
    width, device = data.rows.shape[1], ranks.device
    weights = torch.zeros((width + 1, classes), dtype=torch.float64, device=device) if start is None else start.clone()
    weights.requires_grad_()
    images = float(ranks.total(torch.tensor([float(len(data.rows))], dtype=torch.float64, device=device)))
    optimizer = torch.optim.LBFGS(
        [weights], max_iter=_STEPS, tolerance_grad=1e-7, tolerance_change=1e-12, history_size=10,
        line_search_fn="strong_wolfe",
    )  # fmt: skip

    def closure() -> torch.Tensor:
        loss = torch.zeros(1, dtype=torch.float64, device=device)
        gradient = torch.zeros_like(weights)
        for first in range(0, len(data.rows), _CHUNK):
            part = functional.cross_entropy(
                _logits(data.rows[first : first + _CHUNK], weights),
                data.labels[first : first + _CHUNK],
                reduction="sum",
            )
            gradient += torch.autograd.grad(part / images, weights)[0]
            loss += part.detach() / images
        gradient, loss = ranks.total(gradient), ranks.total(loss)
        gradient[:-1] += strength * weights.detach()[:-1]
        weights.grad = gradient
        return loss[0] + 0.5 * strength * weights.detach()[:-1].square().sum()

    with torch.enable_grad():
        optimizer.step(closure)  # type: ignore[no-untyped-call]
    return weights.detach()


def _logits(rows: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    return rows.double() @ weights[:-1] + weights[-1]


def _tally(data: Features, weights: torch.Tensor, classes: int, ranks: Ranks) -> Tally:
    tally = Tally(classes, ranks.device)
    for first in range(0, len(data.rows), _CHUNK):
        tally.add(_logits(data.rows[first : first + _CHUNK], weights), data.labels[first : first + _CHUNK])
    ranks.total(tally.counts)
    return tally


@torch.no_grad()
def features(job: Job, data: Data, classes: int) -> Features:
    """A rank's share of the features of labelled images, from the cache where the same weights saw them before."""
    ranks = job.bench.ranks
    source = labelled(job, data, settled(job.data))
    numbers = share_of(source.samples, ranks.rank, ranks.world)
    path = _cache_file(job, data, numbers)
    known = _read(path, len(numbers), classes) if path else None
    if known is None:
        known = _embedded(job, source)
        if path:
            _write(path, known)
    rows, labels = (tensor.to(ranks.device) for tensor in known)
    return Features(rows, labels, torch.arange(numbers.start, numbers.stop, device=ranks.device))


def _embedded(job: Job, source: Source[int]) -> tuple[torch.Tensor, torch.Tensor]:
    device = job.bench.ranks.device
    rows = [torch.zeros((0, job.bench.card.model.embed_dim), device=device)]
    labels: list[int] = []
    for images, truths in job.batches(source):
        rows.append(job.bench.image_features(images, job.view))
        labels += truths
    return torch.cat(rows), torch.tensor(labels, dtype=torch.int64)


def _cache_file(job: Job, data: Data, numbers: range) -> Path | None:
    """Named by everything that the features depend on. None: the weights have no digest."""
    bench = job.bench
    if not bench.digest:
        return None
    order = settled(job.data).classes
    key = [_VERSION, bench.digest, data.manifest, job.view, bench.precision, numbers.start, numbers.stop, order]
    return bench.cache / "features" / f"{hashlib.sha256(msgspec.json.encode(key)).hexdigest()}.safetensors"


def _read(path: Path, samples: int, classes: int) -> tuple[torch.Tensor, torch.Tensor] | None:
    try:
        found = read_tensors(path)
        rows, labels = found["rows"], found["labels"]
    except (TrainError, KeyError):
        return None  # not there, or torn: embedded again
    whole = len(rows) == len(labels) == samples and bool(((labels >= 0) & (labels < classes)).all())
    return (rows, labels) if whole and bool(rows.isfinite().all()) else None


def _write(path: Path, known: tuple[torch.Tensor, torch.Tensor]) -> None:
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_tensors(part, {"rows": known[0], "labels": known[1]})
        os.replace(part, path)
    except OSError:
        part.unlink(missing_ok=True)  # a full disk costs time the next time, not the result
