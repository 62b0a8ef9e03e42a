"""One evaluation as its parts see it: what is scored, with what, and what comes of it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import NamedTuple, TypeVar

import torch

from clipa.attempt.devices import Ranks, autocast
from clipa.attempt.pulse import Pulse
from clipa.data.faults import tell_skipped
from clipa.data.pinned import open_pinned, pinned_manifest
from clipa.data.pipeline import normalise
from clipa.data.scored import ScoredBatch, Source, View, scored_batches
from clipa.data.shards import ShardSet
from clipa.data.tokenizer import tokenizer
from clipa.errors import DataError
from clipa.model.clip import Clip
from clipa.reduction.text import TokenSelection
from clipa.registry.run_dir import RunDir
from clipa.spec.card import Card, prompt_input
from clipa.spec.plan import Data, EvalData, Plan
from clipa.storage.manifest import Manifest

T = TypeVar("T")
_TEXTS_AT_ONCE = 1024


class Outcome(NamedTuple):
    """Samples that were scored, every metric in percent, what was chosen on the way, classes without an image."""

    samples: int
    metrics: Mapping[str, float]
    chosen: Mapping[str, float] = MappingProxyType({})
    empty: tuple[int, ...] = ()


class Bench(NamedTuple):
    """What all evaluations of an attempt share. `digest`: of the weights; empty between checkpoints."""

    run: RunDir
    plan: Plan
    ranks: Ranks
    precision: str
    model: Clip
    card: Card
    digest: str
    batch: int
    pulse: Pulse

    @property
    def workers(self) -> int:
        """Loader processes of a rank."""
        return self.plan.world.loader_workers

    @property
    def cache(self) -> Path:
        """Folder of what can be computed again: prompts, features."""
        return Path(self.plan.cache)

    def manifest(self, data: Data) -> Manifest:
        """The pinned manifest of a dataset."""
        return pinned_manifest(self.run, data.manifest)

    def shards(self, data: Data) -> ShardSet:
        """The staged shards of a dataset; the first rank writes their indices, the others then read them."""
        if self.ranks.is_first:
            found = open_pinned(self.run, self.plan, data.manifest, self.pulse.beat)
            tell_skipped(found.folder, found.skipped, found.samples)
        self.ranks.barrier()
        return open_pinned(self.run, self.plan, data.manifest)

    def image_features(self, images: torch.Tensor, view: View) -> torch.Tensor:
        """Normalised features [b, embed_dim] of images uint8 [b, 3, S, S]."""
        self.pulse.beat()
        with autocast(self.precision, self.ranks.device):
            found = self.model.encode_image(normalise(images.to(self.ranks.device), view.mean, view.std))
        return _require_finite(found, "image")

    def text_features(self, texts: list[str]) -> torch.Tensor:
        """Normalised features [n, embed_dim] of texts, tokenised as `prompt_input` says."""
        select = TokenSelection(tokenizer(self.card.model.text.tokenizer), prompt_input(self.card))
        parts = [torch.zeros((0, self.card.model.embed_dim), device=self.ranks.device)]
        for start in range(0, len(texts), _TEXTS_AT_ONCE):
            self.pulse.beat()
            some = texts[start : start + _TEXTS_AT_ONCE]
            tokens = select(some)
            with autocast(self.precision, self.ranks.device):
                parts.append(self.model.encode_text(tokens.to(self.ranks.device)))
        return _require_finite(torch.cat(parts), "text")


def _require_finite(features: torch.Tensor, kind: str) -> torch.Tensor:
    """Return the features, or refuse them: a comparison with NaN is an order of indices, and looks like a score.

    Raises:
        DataError: a feature is NaN or infinite.
    """
    bad = int((~features.isfinite()).any(dim=1).sum())
    if bad:
        raise DataError(
            f"{bad} of {len(features)} {kind} features are not finite, so nothing can be scored",
            where="the model's output", hint="try precision fp32 in the recipe; else the weights are broken",
        )  # fmt: skip
    return features


class Job(NamedTuple):
    """One set at one image size."""

    name: str
    data: EvalData
    view: View
    bench: Bench

    def batches(self, source: Source[T]) -> Iterator[ScoredBatch[T]]:
        """The samples of this rank, at the job's view."""
        bench = self.bench
        return scored_batches(
            source,
            self.view,
            batch=bench.batch,
            rank=bench.ranks.rank,
            world=bench.ranks.world,
            workers=bench.workers,
            pin=bench.ranks.device.type == "cuda",
        )
