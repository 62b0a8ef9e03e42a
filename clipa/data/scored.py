"""What an evaluation reads: images with what is known of them, every sample exactly once over all ranks."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Generic, NamedTuple, Protocol, TypeVar

import numpy as np
import torch

from clipa.data.decode import decode_eval
from clipa.data.loader import channels_first, load
from clipa.spec.family import Interpolation
from clipa.spec.job import Resize
from clipa.spec.plan import Record

T = TypeVar("T")


class View(Record, frozen=True, kw_only=True):
    """How an image becomes the model's input: square of `size` pixels, then (pixels / 255 - mean) / std by channel."""

    size: int
    resize: Resize
    interpolation: Interpolation
    mean: tuple[float, float, float]
    std: tuple[float, float, float]


class Item(NamedTuple, Generic[T]):
    """One sample: the image's bytes, what is known of it (a label, captions), and where it lies, for messages."""

    image: bytes
    truth: T
    where: str


class Source(Protocol[T]):
    """Samples by number, 0 to samples-1."""

    @property
    def samples(self) -> int:
        """Number of samples."""

    def read(self, number: int) -> Item[T]:
        """One sample.

        Raises:
            DataError: it cannot be used.
            StorageError: it cannot be read.
        """


class ScoredBatch(NamedTuple, Generic[T]):
    """Images uint8 [b, 3, S, S], and what is known of each."""

    images: torch.Tensor
    truths: tuple[T, ...]


class _Share(Generic[T]):
    """Makes one batch of a rank's samples."""

    def __init__(self, source: Source[T], view: View, batch: int, stop: int) -> None:
        self._source, self._view, self._batch, self._stop = source, view, batch, stop

    def __call__(self, start: int) -> ScoredBatch[T]:
        numbers = range(start, min(start + self._batch, self._stop))
        view = self._view
        pixels = np.empty((len(numbers), view.size, view.size, 3), dtype=np.uint8)
        truths = []
        for row, number in enumerate(numbers):
            item = self._source.read(number)
            pixels[row] = decode_eval(item.image, view.size, item.where, view.resize, view.interpolation)
            truths.append(item.truth)
        return ScoredBatch(channels_first(pixels), tuple(truths))


def share_of(samples: int, rank: int, world: int) -> range:
    """The numbers of a rank's samples: consecutive ones, each number on one rank, in the order of the ranks."""
    return range(samples * rank // world, samples * (rank + 1) // world)


def scored_batches(
    source: Source[T], view: View, *, batch: int, rank: int, world: int, workers: int, pin: bool = False
) -> Iterator[ScoredBatch[T]]:
    """One rank's samples in batches; a rank may get none.

    Raises:
        DataError: a sample that cannot be used (a score over fewer samples would be another score), or a worker died.
        StorageError: bytes cannot be read.
    """
    mine = share_of(source.samples, rank, world)
    starts = range(mine.start, mine.stop, batch)
    return load(_Share(source, view, batch, mine.stop), starts, workers, pin)
