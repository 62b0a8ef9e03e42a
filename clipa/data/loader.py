"""The one door to torch's DataLoader: items made on demand, in processes or in this one."""

from __future__ import annotations

import ctypes
import multiprocessing
import os
import signal
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Generic, TypeVar

import torch
from torch.utils.data import DataLoader, Dataset

from clipa.data.decode import Pixels
from clipa.errors import ClipaError, DataError

_PREFETCH = 2
_PR_SET_PDEATHSIG = 1

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


def load(make: Callable[[int], T], indices: Sequence[int], workers: int, pin: bool) -> Iterator[T]:
    """The items of these indices, in their order; `pin` puts their tensors into pinned memory.

    Raises:
        ClipaError: what making an item raised, as it was raised in the worker.
        DataError: a worker died.
    """
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
        except (RuntimeError, ConnectionError, EOFError) as error:
            # A worker that dies in the middle of handing over a batch shows as a broken connection first.
            if isinstance(error, RuntimeError) and not str(error).startswith("DataLoader worker (pid"):
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


def channels_first(images: Pixels) -> torch.Tensor:
    """uint8 [b, h, w, 3] as the tensor [b, 3, h, w]."""
    return torch.from_numpy(images).permute(0, 3, 1, 2).contiguous()
