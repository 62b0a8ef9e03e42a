"""Batches from shards: the one door to torch's DataLoader. A worker makes whole batches; images leave it as uint8.

The global batch of a step is a slice of the order; a rank takes its share of that slice, so the union over ranks is the
same for every number of processes.
"""

from __future__ import annotations

import ctypes
import json
import signal
from collections.abc import Callable, Iterator
from typing import Generic, NamedTuple, TypeVar

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from clipa.data import decode
from clipa.data.order import Order, chance
from clipa.data.shards import CAPTIONS, IMAGES, LABEL, ShardSet
from clipa.data.tokenizer import tokenizer
from clipa.errors import DataError
from clipa.spec.job import TrainPhase

REPLACEMENTS = 16
"""Tries for a sample that can be used, each a fixed stride further in the order; after so many the data are bad."""
_STRIDE = 7_919
_T = TypeVar("_T", covariant=True)


class Batch(NamedTuple):
    """A rank's share of a training batch: uint8 [b, 3, size, size] and int64 [b, text tokens]."""

    images: torch.Tensor
    tokens: torch.Tensor


class LabelledBatch(NamedTuple):
    """A rank's share of an evaluation batch: uint8 [b, 3, size, size] and int64 [b]."""

    images: torch.Tensor
    labels: torch.Tensor


def normalise(images: torch.Tensor, mean: tuple[float, ...], std: tuple[float, ...]) -> torch.Tensor:
    """uint8 [b, 3, h, w] to normalised float32, on the device where the images are."""
    shape = (1, 3, 1, 1)
    scale = torch.tensor(std, device=images.device).mul(255.0).view(shape)
    shift = torch.tensor(mean, device=images.device).view(shape) / torch.tensor(std, device=images.device).view(shape)
    return images.to(torch.float32) / scale - shift


def train_batches(
    shards: ShardSet,
    phase: TrainPhase,
    *,
    tokenizer_name: str,
    seed: int,
    rank: int,
    world: int,
    start_step: int,
    stop_step: int,
    workers: int,
    pin: bool,
) -> Iterator[Batch]:
    """The batches of steps start_step..stop_step - 1 for one rank."""
    source = _TrainSource(shards, phase, tokenizer_name, seed, rank, world)
    return _load(source, range(start_step, stop_step), workers, pin)


def eval_batches(
    shards: ShardSet, *, size: int, batch: int, rank: int, world: int, workers: int
) -> Iterator[LabelledBatch]:
    """Every labelled sample exactly once over all ranks; a rank may get none."""
    source = _EvalSource(shards, size, batch, rank, world)
    return _load(source, range(source.batches), workers, pin=False)


class _TrainSource(Dataset[Batch]):
    def __init__(
        self, shards: ShardSet, phase: TrainPhase, tokenizer_name: str, seed: int, rank: int, world: int
    ) -> None:
        self.shards = shards
        self.phase = phase
        self.tokenizer_name = tokenizer_name
        self.seed = seed
        self.share = phase.batch // world
        self.first = rank * self.share
        self.order = Order(shards.sizes, seed)

    def __getitem__(self, step: int) -> Batch:
        start = step * self.phase.batch + self.first
        images = np.empty((self.share, self.phase.image.size, self.phase.image.size, 3), dtype=np.uint8)
        captions = []
        for row in range(self.share):
            images[row], caption = self._sample(start + row)
            captions.append(caption)
        tokens = tokenizer(self.tokenizer_name).encode(captions, self.phase.text.tokens)
        return Batch(torch.from_numpy(images).permute(0, 3, 1, 2).contiguous(), tokens)

    def _sample(self, position: int) -> tuple[np.ndarray, str]:
        """The sample at a position, or, where that is broken, one that its position alone decides."""
        errors = []
        for again in range(REPLACEMENTS):
            shard, index = self.order.at(position + again * _STRIDE)
            try:
                return self._read(shard, index, chance(self.seed, position))
            except DataError as error:
                errors.append(str(error))
        raise DataError(
            f"{REPLACEMENTS} samples in a row cannot be used, for example: {errors[0]}",
            where=f"position {position} of the sample order",
            hint="look at the shards: each image needs a caption beside it",
        )

    def _read(self, shard: int, index: int, random: np.random.Generator) -> tuple[np.ndarray, str]:
        where = self.shards.key(shard, index)
        caption = self._caption(shard, index, where)
        found = self.shards.member(shard, index, IMAGES)
        if found is None:
            raise DataError("no image", where=where)
        return decode.train_image(found[1], self.phase.image, random, where), caption

    def _caption(self, shard: int, index: int, where: str) -> str:
        found = self.shards.member(shard, index, CAPTIONS)
        if found is None:
            raise DataError("no caption", where=where, allowed=", ".join(CAPTIONS))
        extension, data = found
        text = data.decode("utf-8", errors="replace")
        if extension == "json":
            try:
                text = json.loads(text)["caption"]
            except (ValueError, KeyError, TypeError) as error:
                raise DataError('the json has no "caption"', where=where) from error
        if not isinstance(text, str):
            raise DataError("the caption is not text", where=where)
        return text.strip()


class _EvalSource(Dataset[LabelledBatch]):
    def __init__(self, shards: ShardSet, size: int, batch: int, rank: int, world: int) -> None:
        self.shards = shards
        self.size = size
        self.batch = batch
        everything = [(shard, index) for shard, count in enumerate(shards.sizes) for index in range(count)]
        self.mine = everything[rank::world]
        self.batches = -(-len(self.mine) // batch)

    def __getitem__(self, number: int) -> LabelledBatch:
        mine = self.mine[number * self.batch : (number + 1) * self.batch]
        images = np.stack([self._image(shard, index) for shard, index in mine])
        labels = torch.tensor([self._label(shard, index) for shard, index in mine])
        return LabelledBatch(torch.from_numpy(images).permute(0, 3, 1, 2).contiguous(), labels)

    def _image(self, shard: int, index: int) -> np.ndarray:
        found = self.shards.member(shard, index, IMAGES)
        where = self.shards.key(shard, index)
        if found is None:
            raise DataError("no image", where=where)
        return decode.eval_image(found[1], self.size, where)

    def _label(self, shard: int, index: int) -> int:
        found = self.shards.member(shard, index, (LABEL,))
        try:
            if found is None:
                raise ValueError("there is none")
            return int(found[1])
        except ValueError as error:
            raise DataError(
                f"no label: {error}", where=self.shards.key(shard, index), allowed="KEY.cls with the class's number"
            ) from error


class _Steps(Generic[_T]):
    """The numbers of the steps, as DataLoader wants a sampler."""

    def __init__(self, steps: range) -> None:
        self.steps = steps

    def __iter__(self) -> Iterator[int]:
        return iter(self.steps)

    def __len__(self) -> int:
        return len(self.steps)


def _load(source: Dataset[_T], steps: range, workers: int, pin: bool) -> Iterator[_T]:
    ready: Callable[[int], None] | None = _worker_ready if workers else None
    loader = DataLoader(
        source,
        batch_size=None,
        sampler=_Steps(steps),
        num_workers=min(workers, len(steps)),
        worker_init_fn=ready if len(steps) else None,
        pin_memory=pin,
        prefetch_factor=4 if min(workers, len(steps)) else None,
        multiprocessing_context="fork" if min(workers, len(steps)) else None,
    )
    return iter(loader)


def _worker_ready(_worker: int) -> None:
    """A loader worker computes on one thread, leaves Ctrl-C to the trainer, and dies with it (prctl(2))."""
    torch.set_num_threads(1)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    ctypes.CDLL(None).prctl(1, signal.SIGKILL)
