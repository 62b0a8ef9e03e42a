"""From shards to batches on one core, stage by stage: clipa's and open_clip's, on the same samples.

`python -m clipa.bench.pipelines clipa|open_clip < job` prints the seconds of processor time that each stage takes for
an image, the least of several rounds. A process of its own, so that open_clip's can run with another Pillow.
"""

from __future__ import annotations

import gc
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Protocol

import msgspec
import numpy as np
import torch

from clipa.data.decode import crop_train, fit
from clipa.data.index import Part
from clipa.data.pipeline import normalise
from clipa.data.shards import Reader, caption_of, open_shards
from clipa.data.tokenizer import tokenizer
from clipa.reduction.draws import Draws, Purpose
from clipa.reduction.text import TokenSelection
from clipa.spec.inputs import ImageInput, TextInput
from clipa.spec.plan import Record
from clipa.storage.dataset import index
from clipa.storage.store import Store
from clipa.terminal import say

BATCH = 64


class Job(Record, frozen=True, kw_only=True):
    """What is measured: shards in a folder, and how images and captions enter."""

    folder: str
    image: ImageInput
    text: TextInput
    tokenizer: str
    rounds: int = 3
    batches: int = 4


class Stages(Record, frozen=True, kw_only=True):
    """Seconds of processor time for an image. `floats`: to normalised fp32 on the CPU."""

    read: float = 0.0
    decode: float = 0.0
    resize: float = 0.0
    floats: float = 0.0
    tokenise: float = 0.0
    collate: float = 0.0

    def total(self, floats: bool) -> float:
        """All stages; without `floats` as clipa runs, which normalises on the device."""
        return self.read + self.decode + self.resize + self.tokenise + self.collate + (self.floats if floats else 0.0)


class _Clock:
    def __init__(self) -> None:
        self.spent = dict.fromkeys(Stages.__struct_fields__, 0.0)
        self.start()

    def start(self) -> None:
        self._at = time.process_time()

    def __call__(self, stage: str) -> None:
        """What was done since the last call belongs to this stage."""
        now = time.process_time()
        self.spent[stage] += now - self._at
        self._at = now


class _Pipeline(Protocol):
    def batch(self, clock: _Clock) -> object:
        """Make the next batch, and tell the clock of each stage."""


class Ours:
    """clipa's, as a worker of the loader does it."""

    def __init__(self, job: Job) -> None:
        self._job = job
        store = Store(job.folder)
        self._reader = Reader(open_shards(index(store.source, store), Path(job.folder)), Part.CAPTION)
        self._select = TokenSelection(tokenizer(job.tokenizer), job.text)
        self._next = 0

    def batch(self, clock: _Clock) -> tuple[torch.Tensor, torch.Tensor]:
        """Images fp32 [b, 3, size, size], tokens int64 [b, L]."""
        images, tokens = self.uint8(clock)
        floats = torch.empty(images.shape)
        for row in range(BATCH):  # one by one, as theirs: a whole batch leaves the cache between its passes
            floats[row] = normalise(images[row : row + 1], self._job.image.mean, self._job.image.std)[0]
        clock("floats")
        return floats, tokens

    def uint8(self, clock: _Clock | None = None) -> tuple[torch.Tensor, torch.Tensor]:
        """Images uint8 [b, 3, size, size], tokens int64 [b, L]: what leaves a worker."""
        clock = clock or _Clock()
        image, size = self._job.image, self._job.image.size
        clock.start()
        pixels = np.empty((BATCH, size, size, 3), dtype=np.uint8)
        texts, places = [], range(self._next, self._next + BATCH)
        clock("collate")
        for row, place in enumerate(places):
            sample = self._reader.read(place % self._reader.samples)
            texts.append(caption_of(sample))
            clock("read")
            part = crop_train(sample.image, image, size, Draws(0, place, Purpose.CROP), sample.key)
            clock("decode")
            fit(part, image, pixels[row])
            clock("resize")
        tokens = self._select(texts, places)
        clock("tokenise")
        self._next += BATCH
        return torch.from_numpy(pixels).permute(0, 3, 1, 2), tokens


class Theirs:
    """open_clip's stages (open_clip_train/data.py): webdataset's reader, pilrgb, its train transform, its tokenizer."""

    def __init__(self, job: Job) -> None:
        from clipa.data.wds import grouped
        from clipa.model.torchvision_guard import import_torchvision

        import_torchvision()
        import open_clip

        self._folder, self._grouped = Path(job.folder), grouped
        area = (job.image.crop_area[0], job.image.crop_area[1])
        whole = open_clip.transform.image_transform(
            job.image.size, is_train=True, mean=job.image.mean, std=job.image.std,
            interpolation=job.image.interpolation, aug_cfg={"scale": area},
        )  # fmt: skip
        self._resize: Callable[..., object] = whole.transforms[0]
        self._rest = whole.transforms[1:]
        # Its own `syntax` asks nltk's tagger for every caption: hundreds of microseconds that are not counted here.
        mask = {"random": "random", "block": "simple"}.get(job.text.reduction, "")
        self._tokenizer = open_clip.SimpleTokenizer(context_length=job.text.tokens, reduction_mask=mask)
        self._samples = self._endless()

    def _endless(self) -> Iterator[dict[str, bytes]]:
        while True:
            for path in sorted(self._folder.glob("*.tar")):
                yield from self._grouped(path)

    def batch(self, clock: _Clock) -> tuple[torch.Tensor, torch.Tensor]:
        """Images fp32 [b, 3, size, size], tokens int64 [b, L]."""
        import io

        from PIL import Image

        images, tokens = [], []
        clock.start()
        for _ in range(BATCH):
            sample = next(self._samples)
            clock("read")
            with io.BytesIO(sample["jpg"]) as stream:
                opened = Image.open(stream)
                opened.load()
                picture = opened.convert("RGB")
            clock("decode")
            made = self._resize(picture)
            clock("resize")
            for step in self._rest:
                made = step(made)
            images.append(made)
            clock("floats")
            tokens.append(self._tokenizer(sample["txt"].decode())[0])
            clock("tokenise")
        made = torch.stack(images), torch.stack(tokens)  # type: ignore[arg-type]
        clock("collate")
        return made


PIPELINES: dict[str, Callable[[Job], _Pipeline]] = {"clipa": Ours, "open_clip": Theirs}


def measure(pipeline: _Pipeline, rounds: int, batches: int) -> Stages:
    """The least that each stage took, after a round that warms caches and memories."""
    best: dict[str, float] = {}
    for number in range(rounds + 1):
        clock = _Clock()
        for _ in range(batches):
            pipeline.batch(clock)
        if number:
            for stage, seconds in clock.spent.items():
                best[stage] = min(best.get(stage, seconds), seconds)
    return Stages(**{stage: seconds / (batches * BATCH) for stage, seconds in best.items()})


def main() -> None:
    """Print the stages as JSON."""
    torch.set_num_threads(1)
    gc.freeze()  # as in the loader's workers
    job = msgspec.json.decode(sys.stdin.buffer.read(), type=Job)
    say(msgspec.json.encode(measure(PIPELINES[sys.argv[1]](job), job.rounds, job.batches)).decode())


if __name__ == "__main__":
    main()
