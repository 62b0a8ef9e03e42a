"""Shards to training batches.

A worker makes whole batches: one item of the loader is one rank's share of one step. Step n's share is a pure
function of (manifest, phase, seed, n, rank, world), and the shares of all ranks together don't depend on the world.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache
from typing import NamedTuple

import torch

from clipa.data.choice import CaptionChoice
from clipa.data.decode import HugeImage, Pixels, decode_train
from clipa.data.faults import Bad, Fault, Faults, Kind, tell_skipped
from clipa.data.index import Part
from clipa.data.loader import load, room_for
from clipa.data.order import Place, mixture_of
from clipa.data.shards import Reader, ShardSet, open_shards
from clipa.data.tokenizer import tokenizer
from clipa.errors import ConfigError, DataError
from clipa.reduction.draws import Draws, Purpose
from clipa.reduction.image import decoded_size
from clipa.reduction.text import TokenSelection
from clipa.spec.inputs import ImageInput, TextInput
from clipa.spec.job import TrainPhase

__all__ = ["Batch", "ShardSet", "normalise", "open_shards", "train_batches"]

_REPLACEMENTS = 8
"""Unusable samples in a row before a dataset is called broken: at 10 % bad ones this happens once in 10^9."""

_EXAMPLES = 3
"""Unusable samples that an error names."""


class Batch(NamedTuple):
    """One rank's share of a step: images uint8 [b, 3, S, S], tokens int64 [b, L], positions in the stream int64 [b].

    A pixel's three bytes lie together in memory (torch.channels_last), as decoders have them: planes are made on the
    device (clipa.data.augment), where that is a copy in fast memory.
    The samples of `faults` could not be used, and another one stands in the place of each.
    """

    images: torch.Tensor
    tokens: torch.Tensor
    positions: torch.Tensor
    faults: tuple[Fault, ...] = ()


class _TrainShare:
    """Makes one rank's share of a step."""

    def __init__(
        self, readers: Sequence[Reader], phase: TrainPhase, words: str, seed: int, rank: int, world: int
    ) -> None:
        self._readers = tuple(readers)
        self._words = words
        self._mixture = mixture_of(phase, [reader.sizes() for reader in readers], seed)
        self._image: ImageInput = phase.image
        self._size = decoded_size(phase.image)
        self._text = phase.text
        self._choice = CaptionChoice(phase.text.captions, seed)
        self._seed = seed
        self._share = phase.batch // world
        self._first = rank * self._share
        self._batch = phase.batch

    def __call__(self, step: int) -> Batch:
        start = step * self._batch + self._first
        images = room_for((self._share, self._size, self._size, 3))
        rows: Pixels = images.numpy()
        captions: list[str] = []
        firsts: list[Fault] = []
        for row, place in enumerate(self._mixture.at(start, start + self._share)):
            caption, faults = self._sample(start + row, place, rows[row])
            captions.append(caption)
            firsts += faults[:1]
        return Batch(
            images.permute(0, 3, 1, 2),
            _selection(self._words, self._text, self._seed)(captions, range(start, start + self._share)),
            torch.arange(start, start + self._share),
            faults=tuple(firsts),
        )

    def _sample(self, position: int, place: Place, pixels: Pixels) -> tuple[str, list[Fault]]:
        """Fill `pixels`: (caption, what was wrong with the samples that stood here before)."""
        faults: list[Fault] = []
        while len(faults) <= _REPLACEMENTS:
            kind: Kind = "size"
            try:
                sample = self._readers[place.dataset].read(place.number)
                kind = "caption"
                caption = self._choice.of(self._readers[place.dataset], place.number, sample, position)
                kind = "image"
                draws = Draws(self._seed, position, Purpose.CROP)
                decode_train(sample.image, self._image, draws, pixels, sample.key)
                return caption, faults
            except DataError as error:
                shard, key = self._readers[place.dataset].place(place.number)
                kind = "bomb" if isinstance(error, HugeImage) else kind
                faults.append(Fault(kind, shard, f"{shard}: {key}: {error.what}"))
                place = self._mixture.replacement(position, len(faults) - 1)
        raise DataError(
            f"{len(faults)} samples in a row cannot be used: " + "; ".join(fault.what for fault in faults[:_EXAMPLES]),
            where=f"position {position}",
            hint="check the shards: images must be jpg, png or webp, captions txt or json",
        )


@lru_cache(maxsize=4)
def _selection(words: str, text: TextInput, seed: int) -> TokenSelection:
    """One per process: its tokenizer's memory of words does not travel."""
    return TokenSelection(tokenizer(words), text, seed)


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
    mixed: Sequence[ShardSet] = (),
    tell: Callable[[Bad], None] = lambda _: None,
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
        mixed: the datasets of a mixture after its first one, `shards`, in the order of `phase.portions`.
        tell: is told of samples that could not be used, all of this rank so far.

    Raises:
        ConfigError: the global batch can't be divided among the ranks.
        DataError: no sample with image and caption, more than `phase.bad_samples` of a stretch or several in a row are
            unusable, or a worker died.
    """
    if phase.batch % world:
        raise ConfigError(
            f"batch {phase.batch} cannot be divided among {world} processes",
            allowed=f"a multiple of {world}, such as {max(1, phase.batch // world) * world}",
        )
    sets = (shards, *mixed)
    lanes = 0 if phase.lanes == 1 else -(-phase.lanes // world)
    share = _TrainShare([Reader(one, Part.CAPTION, lanes) for one in sets], phase, tokenizer_name, seed, rank, world)
    _selection(tokenizer_name, phase.text, seed)  # what cannot be loaded is said before workers start
    if rank == 0:
        for one in sets:
            tell_skipped(one.folder, one.skipped, one.samples)
    return _judged(
        load(share, range(start_step, stop_step), workers, pin),
        Faults(", ".join(one.folder for one in sets), phase.bad_samples, tell),
    )


def _judged(batches: Iterator[Batch], faults: Faults) -> Iterator[Batch]:
    for batch in batches:
        faults.add(len(batch.positions), batch.faults)
        yield batch


def normalise(images: torch.Tensor, mean: tuple[float, float, float], std: tuple[float, float, float]) -> torch.Tensor:
    """(images / 255 - mean) / std by channel: uint8 [b, 3, h, w] to float32 planes, on the same device."""
    shift = torch.tensor(mean, device=images.device).view(1, 3, 1, 1)
    scale = torch.tensor(std, device=images.device).view(1, 3, 1, 1)
    planes = torch.empty(images.shape, device=images.device)
    return torch.div(images, 255.0, out=planes).sub_(shift).div_(scale)
