"""The one door to torch's DataLoader: items made on demand, in processes or in this one."""

from __future__ import annotations

import math
import multiprocessing
import os
import signal
from collections.abc import Callable, Iterator, Sequence
from multiprocessing import forkserver
from multiprocessing.connection import wait
from multiprocessing.process import BaseProcess
from typing import Generic, TypeVar

import torch
from torch.utils.data import DataLoader, Dataset

from clipa.attempt.launcher import launched
from clipa.data.decode import Pixels
from clipa.data.worker import begin
from clipa.errors import ClipaError, DataError
from clipa.terminal import say

_PREFETCH = 2
_SERVER_IMPORTS = ["clipa.data.worker", "clipa.data.pipeline", "clipa.data.scored"]
"""What workers need: imported once by the server, and shared by all that it forks."""

_SERVER_ENV = {
    "OPENBLAS_NUM_THREADS": "1",  # numpy would start a thread for every core, in a process that is there to fork
    # After a kill -9 this would be the last line of the log, where people look for the reason.
    "PYTHONWARNINGS": "ignore:resource_tracker",
}

_PLENTY = 4 << 30
"""Bytes of shared memory from which nobody counts: a machine of its own has half of its memory there (tmpfs(5))."""

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
    if workers and (room := _shared_memory()) < _PLENTY:
        first = make(indices[0])
        yield _pinned(first) if pin else first
        workers = workers_that_fit(room, _bytes_of(first), workers)
        indices = indices[1:]
    if workers == 0 or not indices:
        # No process to feed: the loader would only add its own queue.
        for index in indices:
            item = make(index)
            yield _pinned(item) if pin else item
        return
    yield from _made_by_workers(make, indices, workers, pin)


def start_server() -> None:
    """Start what workers are forked from, and don't wait for it: its imports take 1.5 s of processor time."""
    forkserver.set_forkserver_preload(_SERVER_IMPORTS)
    before = {name: os.environ.get(name) for name in _SERVER_ENV}
    os.environ.update(_SERVER_ENV)
    try:
        forkserver.ensure_running()
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def _made_by_workers(make: Callable[[int], T], indices: Sequence[int], workers: int, pin: bool) -> Iterator[T]:
    start_server()
    before = set(multiprocessing.active_children())
    loader: DataLoader[T] = DataLoader(
        _Items(make),
        batch_size=None,
        sampler=indices,
        num_workers=workers,
        prefetch_factor=_PREFETCH,
        pin_memory=pin,
        collate_fn=_as_it_is,
        generator=torch.Generator(),  # else every loader would draw from the trainer's own random numbers
        multiprocessing_context="forkserver",
        worker_init_fn=begin,
    )
    batches: Iterator[T] | None = None
    processes: list[BaseProcess] = []
    try:
        while True:
            try:
                if batches is None:
                    batches = iter(loader)
                    processes = [process for process in multiprocessing.active_children() if process not in before]
                item = next(batches)
            except StopIteration:
                return
            except (RuntimeError, ConnectionError, EOFError) as error:
                # A worker that dies in the middle of handing over a batch shows as a broken connection first.
                if isinstance(error, RuntimeError) and not str(error).startswith("DataLoader worker (pid"):
                    raise
                raise DataError(
                    f"a data worker died: {_how_they_ended(processes) or error}",
                    hint="see the log of this attempt; out of memory?",
                ) from error
            if isinstance(item, ClipaError):
                raise item
            yield item
    finally:
        batches = None  # it ends its workers when it goes, and the traceback of an error would keep it


def _as_it_is(item: T) -> T:
    """Instead of torch's conversion, which makes lists of tuples."""
    return item


def _how_they_ended(processes: Sequence[BaseProcess]) -> str:
    wait([process.sentinel for process in processes], timeout=5.0)  # its end is told after its connections broke
    ended = [(process.pid, process.exitcode) for process in processes if process.exitcode is not None]
    return ", ".join(
        f"process {pid} " + (f"killed by {signal.Signals(-code).name}" if code < 0 else f"left with code {code}")
        for pid, code in ended
    )


def workers_that_fit(room: int, batch: int, workers: int) -> int:
    """How many of the workers can hand over their batches through shared memory; a note says when not all can.

    A worker that finds /dev/shm full dies of SIGBUS. Docker gives a container 64 MB of it (`--shm-size`, `--ipc=host`).

    Args:
        room: bytes of shared memory for this process and its workers.
        batch: bytes of one batch.
        workers: how many were asked for.
    """
    # Each worker prepares _PREFETCH batches; one more is in the hands of the trainer, one on its way there.
    fit = max(0, min(workers, (room // max(1, batch) - 2) // _PREFETCH))
    if fit < workers:
        mib = f"{room / 2**20:.0f} MiB for this process, batches have {batch / 2**20:.1f} MiB"
        say(
            f"shared memory (/dev/shm) has {mib}: {fit} of {workers} loader workers, which costs speed. "
            "docker run --shm-size 8g (or --ipc host) gives more.",
            err=True,
        )
    return fit


def _shared_memory() -> int:
    """Free bytes of /dev/shm for each of the ranks on this machine; plenty where there is none to ask."""
    try:
        found = os.statvfs("/dev/shm")  # noqa: S108 - asked for its size alone
    except OSError:
        return _PLENTY
    return found.f_bavail * found.f_frsize // launched().world_size


def _bytes_of(item: object) -> int:
    parts = item if isinstance(item, tuple) else (item,)
    return sum(part.nbytes for part in parts if isinstance(part, torch.Tensor))


def _pinned(item: T) -> T:
    if isinstance(item, tuple):
        parts = (part.pin_memory() if isinstance(part, torch.Tensor) else part for part in item)
        return type(item)(*parts)
    return item


def room_for(shape: Sequence[int]) -> torch.Tensor:
    """An empty uint8 tensor; in a worker in shared memory, where it would be copied to when it is handed over."""
    if torch.utils.data.get_worker_info() is None:
        return torch.empty(tuple(shape), dtype=torch.uint8)
    # As torch's default_collate does. numpy and share_memory_() would both copy.
    storage = torch.UntypedStorage._new_shared(math.prod(shape))  # type: ignore[no-untyped-call]
    return torch.empty(0, dtype=torch.uint8).set_(storage).view(tuple(shape))


def channels_first(images: Pixels) -> torch.Tensor:
    """uint8 [b, h, w, 3] as the tensor [b, 3, h, w]."""
    return torch.from_numpy(images).permute(0, 3, 1, 2).contiguous()
