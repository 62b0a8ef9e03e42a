"""What an evaluation reads: images with what is known of them, every sample exactly once over all ranks."""

from __future__ import annotations

import bisect
from collections.abc import Iterator
from itertools import accumulate
from pathlib import Path
from typing import Generic, NamedTuple, Protocol, TypeVar

import numpy as np
import torch

from clipa.data.decode import decode_eval
from clipa.data.faults import tell_skipped
from clipa.data.index import Part
from clipa.data.loader import channels_first, load
from clipa.data.shards import Reader, ShardSet, label_of
from clipa.errors import DataError, StorageError
from clipa.spec.family import Interpolation
from clipa.spec.job import Resize
from clipa.spec.plan import Record
from clipa.storage.class_folders import entry, images
from clipa.storage.manifest import Manifest

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


class ShardLabels:
    """Labelled shards: an image and `cls`. Labels must be below `classes`."""

    def __init__(self, shards: ShardSet, classes: int, *, tell: bool = False) -> None:
        self._reader = Reader(shards, Part.LABEL)
        self._classes = classes
        if tell:
            tell_skipped(shards.folder, shards.skipped, shards.samples)

    @property
    def samples(self) -> int:
        """Number of samples that have an image and a label."""
        return self._reader.samples

    def read(self, number: int) -> Item[int]:
        """An image and its class's number.

        Raises:
            DataError: no class has that number.
        """
        sample, where = self._reader.read(number), self._reader.where(number)
        label = label_of(sample._replace(key=where))
        if label >= self._classes:
            raise DataError(
                f"a label of {label} with {self._classes} classes", where=where, allowed=f"0..{self._classes - 1}",
                hint="the class names must be those of these shards, in the order of the labels",
            )  # fmt: skip
        return Item(sample.image, label, where)


class FolderLabels:
    """Images in class folders; the folder's place in `folders` is the label."""

    def __init__(self, manifest: Manifest, folders: tuple[str, ...]) -> None:
        self._root = Path(manifest.url.removeprefix("file://"))
        known = {shard.name: shard for shard in manifest.shards}
        self._classes = [known[name] for name in folders]
        self._files: dict[int, list[str]] = {}
        self._ends = list(accumulate(shard.samples or 0 for shard in self._classes))

    @property
    def samples(self) -> int:
        """Number of images."""
        return self._ends[-1]

    def read(self, number: int) -> Item[int]:
        """An image and its class's number.

        Raises:
            DataError: the class folder is not as it was when the plan was made.
            StorageError: it cannot be read.
        """
        label = bisect.bisect_right(self._ends, number)
        first = self._ends[label - 1] if label else 0
        path = self._root / self._classes[label].name / self._list(label)[number - first]
        try:
            return Item(path.read_bytes(), label, str(path))
        except OSError as error:
            raise StorageError(f"the image cannot be read: {error.strerror}", where=str(path)) from error

    def _list(self, label: int) -> list[str]:
        if label not in self._files:
            wanted = self._classes[label]
            folder = self._root / wanted.name
            try:
                found = entry(self._root, wanted.name)
                self._files[label] = [name for name, _ in images(self._root, wanted.name)]
            except OSError as error:
                raise StorageError(f"the class folder cannot be read: {error.strerror}", where=str(folder)) from error
            if found.version != wanted.version:
                raise DataError(
                    f"the class folder changed: it has {found.samples} images, the plan saw {wanted.samples}",
                    where=str(folder),
                    hint="submit the evaluation again",
                )
        return self._files[label]
