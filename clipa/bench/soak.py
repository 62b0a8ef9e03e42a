"""`python -m clipa.bench.soak [--epochs 30]`: whether the loader's memory grows while epochs go by.

Reads made shards of 512 x 384 with two worker processes, as a training does, and prints what the trainer's process and
the workers hold by themselves (proportional set size, /proc/PID/smaps_rollup) after every few epochs.
"""

from __future__ import annotations

import argparse
import itertools
import multiprocessing
import os
import tempfile
import time
from pathlib import Path

from clipa.bench.sources import captions, picture
from clipa.data.pipeline import train_batches
from clipa.data.shards import open_shards
from clipa.data.wds import shard_bytes
from clipa.spec.inputs import ImageInput, TextInput
from clipa.spec.job import Optim, Pretrain
from clipa.storage.manifest import Manifest, Shard
from clipa.terminal import say

_SHARDS, _SAMPLES, _BATCH, _PICTURES = 8, 512, 128, 32
_LINES = 10


def main() -> None:
    """Entry of the module."""
    parser = argparse.ArgumentParser(prog="clipa.bench.soak", description=__doc__)
    parser.add_argument("--epochs", type=int, default=30)
    parser.add_argument("--size", type=int, default=64, help="pixels of an image (64)")
    given = parser.parse_args()
    epoch = _SHARDS * _SAMPLES
    phase = Pretrain(
        data="made",
        samples=given.epochs * epoch,
        batch=_BATCH,
        image=ImageInput(size=given.size),
        text=TextInput(tokens=16),
        optim=Optim(lr=1e-3),
    )
    with tempfile.TemporaryDirectory(prefix="clipa-soak-") as folder:
        shards = open_shards(_write(Path(folder)), Path(folder))
        steps, every = phase.samples // _BATCH, max(1, given.epochs // _LINES) * epoch // _BATCH
        batches = train_batches(
            shards, phase, seed=0, rank=0, world=1, start_step=0, stop_step=steps, workers=2, pin=False
        )
        began = time.monotonic()
        say(f"{'epochs':>7} {'samples':>10} {'images/s':>9} {'trainer MiB':>12} {'workers MiB':>12}")
        for step, _ in enumerate(batches, 1):
            if step % every == 0 or step * _BATCH == epoch:
                workers = [process.pid for process in multiprocessing.active_children() if process.pid]
                rate = step * _BATCH / (time.monotonic() - began)
                say(
                    f"{step * _BATCH // epoch:7} {step * _BATCH:10,} {rate:9.0f} {_held([os.getpid()]):12.1f} "
                    f"{_held(workers):12.1f}",
                )


def _write(folder: Path) -> Manifest:
    pictures, texts = [picture(number) for number in range(_PICTURES)], itertools.cycle(captions()[1])
    rows = []
    for number in range(_SHARDS):
        samples = (
            (f"{number:05d}{at:04d}", {"jpg": pictures[at % _PICTURES], "txt": next(texts).encode()})
            for at in range(_SAMPLES)
        )
        raw = shard_bytes(samples)
        (folder / f"{number:05d}.tar").write_bytes(raw)
        rows.append(Shard(name=f"{number:05d}.tar", size=len(raw), samples=_SAMPLES))
    return Manifest(url=str(folder), shards=tuple(rows))


def _held(pids: list[int]) -> float:
    lines = (line for pid in pids for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines())
    return sum(int(line.split()[1]) for line in lines if line.startswith("Pss:")) / 1024


if __name__ == "__main__":
    main()
