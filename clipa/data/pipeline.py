"""Shards to batches: the one door to torch's DataLoader.

A worker makes whole batches: one item of the loader is one rank's share of one step. Step n's share is a pure
function of (manifest, phase, seed, n, rank, world), and the shares of all ranks together don't depend on the world.
"""

from __future__ import annotations

import ctypes
import multiprocessing
import os
import signal
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Generic, NamedTuple, TypeVar

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from clipa.data.decode import Pixels, decode_eval, decode_train
from clipa.data.faults import Faults, tell_skipped
from clipa.data.index import Part
from clipa.data.order import Order
from clipa.data.shards import Reader, ShardSet, caption_of, label_of, open_shards
from clipa.data.tokenizer import tokenizer
from clipa.errors import ClipaError, ConfigError, DataError
from clipa.reduction.draws import Draws, Purpose
from clipa.reduction.image import decoded_size
from clipa.spec.inputs import ImageInput
from clipa.spec.job import TrainPhase

__all__ = ["Batch", "LabelledBatch", "ShardSet", "eval_batches", "normalise", "open_shards", "train_batches"]

_REPLACEMENTS = 8
"""Unusable samples in a row before a dataset is called broken: at 10 % bad ones this happens once in 10^9."""

_EXAMPLES = 3
"""Unusable samples that a batch names."""

_PREFETCH = 2
_PR_SET_PDEATHSIG = 1


class Batch(NamedTuple):
    """One rank's share of a step: images uint8 [b, 3, S, S], tokens int64 [b, L], positions in the stream int64 [b].

    `replaced` samples could not be used, and another one stands in their place; `examples` names some and says why.
    """

    images: torch.Tensor
    tokens: torch.Tensor
    positions: torch.Tensor
    replaced: int = 0
    examples: str = ""


class LabelledBatch(NamedTuple):
    """Images uint8 [b, 3, S, S] and class numbers int64 [b]."""

    images: torch.Tensor
    labels: torch.Tensor


T = TypeVar("T")


class _Items(Dataset[T], Generic[T]):
    """Makes items on demand. An error of ours travels to the parent as a value, so that it arrives unwrapped."""

    def __init__(self, make: Callable[[int], T]) -> None:
        self._make = make

    def __getitem__(self, index: int) -> T:
        try:
            return self._make(index)
        except ClipaError as error:
            return error  # type: ignore[return-value]


class _TrainShare:
    """Makes one rank's share of a step."""

    def __init__(self, reader: Reader, phase: TrainPhase, words: str, seed: int, rank: int, world: int) -> None:
        self._reader = reader
        self._words = words
        self._order = Order(reader.sizes(), seed)
        self._image: ImageInput = phase.image
        self._size = decoded_size(phase.image)
        self._tokens = phase.text.tokens
        self._seed = seed
        self._share = phase.batch // world
        self._first = rank * self._share
        self._batch = phase.batch

    def __call__(self, step: int) -> Batch:
        start = step * self._batch + self._first
        images = np.empty((self._share, self._size, self._size, 3), dtype=np.uint8)
        captions: list[str] = []
        firsts: list[str] = []
        for row, number in enumerate(self._order.at(start, start + self._share)):
            images[row], caption, faults = self._sample(start + row, int(number))
            captions.append(caption)
            firsts += faults[:1]
        return Batch(
            _channels_first(images),
            tokenizer(self._words).encode(captions, self._tokens),
            torch.arange(start, start + self._share),
            replaced=len(firsts),
            examples="; ".join(firsts[:_EXAMPLES]),
        )

    def _sample(self, position: int, number: int) -> tuple[Pixels, str, list[str]]:
        """(pixels, caption, what was wrong with the samples that stood here before)."""
        faults: list[str] = []
        while len(faults) <= _REPLACEMENTS:
            try:
                sample = self._reader.read(number)
                caption = caption_of(sample)
                draws = Draws(self._seed, position, Purpose.CROP)
                return decode_train(sample.image, self._image, self._size, draws, sample.key), caption, faults
            except DataError as error:
                faults.append(f"{self._reader.where(number)}: {error.what}")
                number = self._order.replacement(position, len(faults) - 1)
        raise DataError(
            f"{len(faults)} samples in a row cannot be used: " + "; ".join(faults[:_EXAMPLES]),
            where=f"position {position}",
            hint="check the shards: images must be jpg, png or webp, captions txt or json",
        )


class _EvalShare:
    """Makes one batch of labelled samples."""

    def __init__(self, reader: Reader, size: int, batch: int, stop: int) -> None:
        self._reader, self._size, self._batch, self._stop = reader, size, batch, stop

    def __call__(self, start: int) -> LabelledBatch:
        numbers = range(start, min(start + self._batch, self._stop))
        images = np.empty((len(numbers), self._size, self._size, 3), dtype=np.uint8)
        labels = np.empty(len(numbers), dtype=np.int64)
        for row, number in enumerate(numbers):
            sample = self._reader.read(number)
            where = self._reader.where(number)
            images[row] = decode_eval(sample.image, self._size, where)
            labels[row] = label_of(sample._replace(key=where))
        return LabelledBatch(_channels_first(images), torch.from_numpy(labels))


def _channels_first(images: Pixels) -> torch.Tensor:
    return torch.from_numpy(images).permute(0, 3, 1, 2).contiguous()


def train_batches(
    shards: ShardSet,
    phase: TrainPhase,
    *,
    seed: int,
    rank: int,
    world: int,
    start_step: int,
    stop_step: int,
    workers: int,
    pin: bool,
    tokenizer_name: str = "clip-bpe",
) -> Iterator[Batch]:
    """One rank's batches of the steps start_step..stop_step-1, `phase.batch // world` samples each.

    A sample that can't be used is replaced by another one, a pure function of its position, and counted. The first
    rank also logs how many samples are incomplete.

    Args:
        shards: the opened dataset.
        phase: global batch, image and text input.
        seed: of the sample order and the crops.
        rank: this process, 0..world-1.
        world: number of processes.
        start_step: first step; any step can be the first one.
        stop_step: the step after the last one.
        workers: processes that make batches; 0 makes them in this process.
        pin: put batches into pinned memory, for asynchronous copies to a GPU.
        tokenizer_name: `Model.text.tokenizer`.

    Raises:
        ConfigError: the global batch can't be divided among the ranks.
        DataError: no sample with image and caption, more than `faults.LIMIT` of a stretch or several in a row are
            unusable, or a worker died.
    """
    if phase.batch % world:
        raise ConfigError(
            f"batch {phase.batch} cannot be divided among {world} processes",
            allowed=f"a multiple of {world}, such as {max(1, phase.batch // world) * world}",
        )
    share = _TrainShare(Reader(shards, Part.CAPTION), phase, tokenizer_name, seed, rank, world)
    tokenizer(tokenizer_name)  # loaded once here, inherited by forked workers
    if rank == 0:
        tell_skipped(shards.folder, shards.skipped, shards.samples)
    return _judged(_load(share, range(start_step, stop_step), workers, pin), Faults(shards.folder))


def _judged(batches: Iterator[Batch], faults: Faults) -> Iterator[Batch]:
    for batch in batches:
        faults.add(len(batch.positions), batch.replaced, batch.examples)
        yield batch


def eval_batches(
    shards: ShardSet, *, size: int, batch: int, rank: int, world: int, workers: int
) -> Iterator[LabelledBatch]:
    """One rank's labelled samples, each sample once over all ranks; a rank may get none.

    Raises:
        DataError: no sample with image and label, a sample that can't be decoded (a score over fewer samples would
            be another score), or a worker died.
    """
    reader = Reader(shards, Part.LABEL)
    start, stop = reader.samples * rank // world, reader.samples * (rank + 1) // world
    if rank == 0:
        tell_skipped(shards.folder, shards.skipped, shards.samples)
    return _load(_EvalShare(reader, size, batch, stop), range(start, stop, batch), workers, pin=False)


def _load(make: Callable[[int], T], indices: Sequence[int], workers: int, pin: bool) -> Iterator[T]:
    workers = min(workers, len(indices))
    if workers == 0:
        # No process to feed: the loader would only add its own queue.
        for index in indices:
            item = make(index)
            yield _pinned(item) if pin else item
        return
    loader: DataLoader[T] = DataLoader(
        _Items(make),
        batch_size=None,
        sampler=indices,
        num_workers=workers,
        prefetch_factor=_PREFETCH,
        pin_memory=pin,
        generator=torch.Generator(),  # else every loader would draw from the trainer's own random numbers
        worker_init_fn=partial(_start_worker, os.getpid()),
    )
    batches = iter(loader)
    while True:
        try:
            item = next(batches)
        except StopIteration:
            return
        except RuntimeError as error:
            if not str(error).startswith("DataLoader worker (pid"):
                raise
            raise DataError(
                f"a data worker died: {error}", hint="see the log of this attempt; out of memory?"
            ) from error
        if isinstance(item, ClipaError):
            raise item
        yield item


def _pinned(item: T) -> T:
    if isinstance(item, tuple):
        parts = (part.pin_memory() if isinstance(part, torch.Tensor) else part for part in item)
        return type(item)(*parts)
    return item


def _start_worker(parent: int, _number: int) -> None:
    """A worker leaves Ctrl-C to its parent, dies with the thread that made it, and computes on one thread."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if multiprocessing.get_start_method() == "fork" and os.getppid() != parent:
        os._exit(1)  # the parent died before it could be watched
    torch.set_num_threads(1)


def normalise(images: torch.Tensor, mean: tuple[float, float, float], std: tuple[float, float, float]) -> torch.Tensor:
    """(images / 255 - mean) / std by channel: uint8 [b, 3, h, w] to float32 of the same shape, on the same device."""
    shift = torch.tensor(mean, device=images.device).view(1, 3, 1, 1)
    scale = torch.tensor(std, device=images.device).view(1, 3, 1, 1)
    return (images.float() / 255.0 - shift) / scale
