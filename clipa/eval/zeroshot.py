"""Zero-shot classification: the class whose prompts are closest to the image (arXiv 2103.00020, section 3.1)."""

from __future__ import annotations

import time
from collections.abc import Sequence

import msgspec
import torch
from torch.nn import functional

import clipa
from clipa.attempt.devices import Ranks, autocast
from clipa.data.pipeline import eval_batches, normalise
from clipa.data.shards import ShardSet, open_shards
from clipa.data.tokenizer import tokenizer
from clipa.errors import DataError
from clipa.model.clip import Clip
from clipa.registry import events
from clipa.registry.run_dir import RunDir, write_whole
from clipa.spec.card import Card
from clipa.spec.plan import EvalData, Plan, Record
from clipa.storage import manifest as manifests

SCHEMA = 1


class Result(Record, frozen=True, kw_only=True):
    """One evaluation, as it is written: `top1` and `top5` in percent (top-5 of fewer classes: of all of them)."""

    set: str
    size: int
    step: int
    samples: int
    top1: float
    top5: float
    classes: tuple[str, ...]
    templates: tuple[str, ...]
    weights: str
    manifest: str
    preprocessing: str
    precision: str
    seconds: float
    clipa: str
    schema: int = SCHEMA


def fill(template: str, name: str) -> str:
    """A prompt: the class's name in the place of `{}` or `{c}`."""
    return template.replace("{c}", name).replace("{}", name)


class Evaluator:
    """Scores a model on the evaluation sets of a plan. Results that are there already are not made again."""

    def __init__(self, run: RunDir, plan: Plan, attempt: int, ranks: Ranks, precision: str) -> None:
        self.run = run
        self.plan = plan
        self.attempt = attempt
        self.ranks = ranks
        self.precision = precision
        self._shards: dict[str, ShardSet] = {}

    def score(
        self, model: Clip, card: Card, digest: str, sets: Sequence[str], sizes: Sequence[int], batch: int,
        log: events.EventWriter | None,
    ) -> None:  # fmt: skip
        """Score every set at every image size (pixels); rank 0 writes the results and the events."""
        was_training = model.training
        model.eval()
        for name in sets:
            for size in sizes:
                if self.ranks.any(self._is_done(card.step, name, size)):
                    continue
                result = self._one(model, card, digest, name, size, batch)
                if log is not None:
                    self._record(result, log)
        model.train(was_training)

    def _is_done(self, step: int, name: str, size: int) -> bool:
        return any(self.run.evals.glob(f"*-{step:09d}-{name}-{size}.json"))

    def _record(self, result: Result, log: events.EventWriter) -> None:
        file = self.run.eval_file(self.attempt, result.step, result.set, result.size)
        write_whole(file, msgspec.json.format(msgspec.json.encode(result), indent=2))
        log.write(
            events.Scored,
            step=result.step,
            set=result.set,
            size=result.size,
            samples=result.samples,
            top1=result.top1,
            top5=result.top5,
            seconds=result.seconds,
        )
        print(
            f"zero-shot {result.set} at {result.size} px: top-1 {result.top1:.2f} %, top-5 {result.top5:.2f} % "
            f"of {result.samples} images, {result.seconds:.1f} s",
            flush=True,
        )

    @torch.no_grad()
    def _one(self, model: Clip, card: Card, digest: str, name: str, size: int, batch: int) -> Result:
        began = time.monotonic()
        data = self.plan.evals[name]
        device = self.ranks.device
        classifier = self._classifier(model, card, data)
        counts = torch.zeros(3, dtype=torch.float64, device=device)
        batches = eval_batches(
            self._open(data), size=size, batch=batch, rank=self.ranks.rank, world=self.ranks.world,
            workers=self.plan.world.loader_workers,
        )  # fmt: skip
        for images, labels in batches:
            with autocast(self.precision, device):
                features = model.encode_image(normalise(images.to(device), card.mean, card.std))
            counts += _count(features @ classifier.T, labels.to(device), name, len(data.classes))
        samples, top1, top5 = self.ranks.total(counts).tolist()
        return Result(
            set=name,
            size=size,
            step=card.step,
            samples=int(samples),
            top1=100.0 * top1 / max(1.0, samples),
            top5=100.0 * top5 / max(1.0, samples),
            classes=data.classes,
            templates=data.templates,
            weights=digest,
            manifest=data.data.manifest,
            preprocessing="shorter side resized (bicubic), centre crop",
            precision=self.precision,
            seconds=time.monotonic() - began,
            clipa=clipa.__version__,
        )

    def _classifier(self, model: Clip, card: Card, data: EvalData) -> torch.Tensor:
        """[classes, embed_dim]: the mean of the normalised embeddings of each class's prompts, normalised again."""
        encode = tokenizer(card.model.text.tokenizer).encode
        rows = []
        for name in data.classes:
            tokens = encode([fill(template, name) for template in data.templates], card.text_tokens)
            with autocast(self.precision, self.ranks.device):
                features = model.encode_text(tokens.to(self.ranks.device))
            rows.append(features.mean(dim=0))
        return functional.normalize(torch.stack(rows), dim=-1)

    def _open(self, data: EvalData) -> ShardSet:
        digest = data.data.manifest
        if digest not in self._shards:
            self._shards[digest] = open_pinned(self.run, self.plan, digest)
        return self._shards[digest]


def open_pinned(run: RunDir, plan: Plan, digest: str) -> ShardSet:
    """The staged shards of a manifest that a plan pins."""
    manifest = manifests.decode(run.manifest(digest).read_bytes())
    return open_shards(manifest, manifests.staged_folder(plan.cache, digest))


def _count(logits: torch.Tensor, labels: torch.Tensor, name: str, classes: int) -> torch.Tensor:
    if labels.numel() and (int(labels.min()) < 0 or int(labels.max()) >= classes):
        raise DataError(
            f"a label of {int(labels.max())} with {classes} classes", where=f"evaluation set {name}",
            allowed=f"0..{classes - 1}", hint="give as many classes in the recipe as the shards have",
        )  # fmt: skip
    best = logits.topk(min(5, classes), dim=-1).indices == labels[:, None]
    return torch.tensor(
        [len(labels), int(best[:, 0].sum()), int(best.any(dim=-1).sum())], dtype=torch.float64, device=logits.device
    )
