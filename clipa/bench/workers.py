"""Threads or processes: the same batches by one worker, by threads of one process, and by processes."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor

import torch

from clipa.bench.pipelines import BATCH, Job, Ours
from clipa.data.loader import load

BATCHES = 24
_WARM = 4


class _Make:
    """A batch of a worker's own: each thread and each process has its own pipeline, opened at its first batch."""

    def __init__(self, job: Job) -> None:
        self._job = job
        self._own = threading.local()

    def __getstate__(self) -> Job:
        return self._job

    def __setstate__(self, job: Job) -> None:
        self.__init__(job)  # type: ignore[misc]

    def __call__(self, _number: int) -> tuple[torch.Tensor, torch.Tensor]:
        if not hasattr(self._own, "pipeline"):
            self._own.pipeline = Ours(self._job)
        pipeline: Ours = self._own.pipeline
        return pipeline.uint8()


def rates(job: Job, workers: int) -> tuple[float, float, float]:
    """Images a second, by the clock, of one worker in this process, of so many threads, and of so many processes."""
    torch.set_num_threads(1)
    numbers = range(_WARM + BATCHES)
    with ThreadPoolExecutor(workers) as pool:
        threads = _rate(pool.map(_Make(job), numbers))
    return _rate(map(_Make(job), numbers)), threads, _rate(load(_Make(job), numbers, workers, pin=False))


def _rate(batches: Iterable[object]) -> float:
    began = 0.0
    for number, _ in enumerate(batches, 1):
        if number == _WARM:
            began = time.monotonic()
    return BATCHES * BATCH / (time.monotonic() - began)
