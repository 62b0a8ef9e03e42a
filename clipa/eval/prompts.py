"""Class names to a classifier: prompts are embedded once, divided among the ranks, and kept on disk."""

from __future__ import annotations

import hashlib
import os
import string
from pathlib import Path
from typing import NamedTuple

import msgspec
import torch
from torch.nn import functional

from clipa.attempt.weights import read_tensors, write_tensors
from clipa.data import imagenet
from clipa.data.scored import share_of
from clipa.errors import DataError, TrainError
from clipa.eval.job import Bench
from clipa.spec.card import prompt_input
from clipa.spec.plan import EvalData

_VERSION = 2
"""Of the cached classifiers: raise it when prompts or their averaging change."""
_PROMPTS_AT_ONCE = 1024
_PUNCTUATION = str.maketrans("", "", string.punctuation)


class Prompts(NamedTuple):
    """Class names in the order of the labels, and the templates that each is put into."""

    classes: tuple[str, ...]
    templates: tuple[str, ...]
    canonical: bool = False

    def of(self, name: str) -> list[str]:
        """The prompts of one class."""
        filled = [fill(template, name) for template in self.templates]
        return [canonical(text) for text in filled] if self.canonical else filled


def settled(data: EvalData) -> Prompts:
    """The prompts of a set: those that its plan lists, else those that `names` stands for.

    Raises:
        DataError: the class names beside the shards are not those that `names` stands for, in their order.
    """
    classes, templates = data.classes, data.templates
    if data.names:
        templates = templates or imagenet.templates(canonical=data.canonical)
    if data.names and data.names != "objectnet":
        classes = imagenet.classes(data.names).names
        _require_same(data, classes)
    return Prompts(classes, templates, data.canonical)


def _require_same(data: EvalData, wanted: tuple[str, ...]) -> None:
    """Another order beside the shards means other labels: every score would be wrong, and look like a bad model."""
    if not data.classes or data.classes == wanted:
        return
    first = next((i for i, pair in enumerate(zip(data.classes, wanted, strict=False)) if pair[0] != pair[1]), None)
    if first is None:
        said = f"{len(data.classes)} classes stand beside the shards, {data.names} has {len(wanted)}"
    else:
        said = f"class {first} is {data.classes[first]!r} beside the shards, {wanted[first]!r} in {data.names}"
    raise DataError(
        said, where=data.data.name, hint="leave names out of the recipe to score by the names beside the shards"
    )


def fill(template: str, name: str) -> str:
    """A prompt: the class's name in the place of `{}` or `{c}`."""
    return template.replace("{c}", name).replace("{}", name)


def canonical(text: str) -> str:
    """Lower case, no punctuation, single spaces: big_vision's `canonicalize_text`, as CLIPA's JAX code evaluates."""
    return " ".join(text.replace("_", " ").translate(_PUNCTUATION).lower().split())


@torch.no_grad()
def classifier(bench: Bench, prompts: Prompts) -> torch.Tensor:
    """[classes, embed_dim]: the mean of the normalised embeddings of each class's prompts, normalised again.

    The same on every rank. From the cache where the same weights have met the same prompts before.
    """
    ranks = bench.ranks
    shape = (len(prompts.classes), bench.card.model.embed_dim)
    path = _cache_file(bench, prompts)
    known = _read(path, shape) if ranks.is_first and path else None
    rows = torch.zeros(shape, dtype=torch.float32, device=ranks.device)
    if ranks.any(known is not None):
        # The cache may be on the first rank's node alone: the others add nothing to it.
        return ranks.total(rows if known is None else known.to(ranks.device))
    mine = share_of(len(prompts.classes), ranks.rank, ranks.world)
    step = max(1, _PROMPTS_AT_ONCE // len(prompts.templates))
    for start in range(mine.start, mine.stop, step):
        names = prompts.classes[start : min(start + step, mine.stop)]
        features = bench.text_features([text for name in names for text in prompts.of(name)])
        means = features.reshape(len(names), len(prompts.templates), shape[1]).mean(dim=1)
        rows[start : start + len(names)] = functional.normalize(means, dim=-1)
    rows = ranks.total(rows)
    if ranks.is_first and path:
        _write(path, rows)
    return rows


def _cache_file(bench: Bench, prompts: Prompts) -> Path | None:
    """Named by everything that the classifier depends on. None: the weights have no digest."""
    if not bench.digest:
        return None
    card = bench.card
    key = [_VERSION, bench.digest, prompt_input(card), card.model.text.tokenizer, bench.precision, *prompts]
    return bench.cache / "prompts" / f"{hashlib.sha256(msgspec.json.encode(key)).hexdigest()}.safetensors"


def _read(path: Path, shape: tuple[int, int]) -> torch.Tensor | None:
    try:
        found = read_tensors(path).get("classifier")
    except TrainError:
        return None  # not there, or torn: it is computed again
    if found is None or found.shape != shape or found.dtype != torch.float32 or not found.isfinite().all():
        return None
    return found


def _write(path: Path, rows: torch.Tensor) -> None:
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_tensors(part, {"classifier": rows})
        os.replace(part, path)
    except OSError:
        part.unlink(missing_ok=True)  # a full disk costs time the next time, not the result
