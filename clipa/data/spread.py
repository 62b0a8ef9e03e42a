"""Work on shards, spread over processes that know each other only by what they return.

They are spawned: obstore and s3fs must not be forked. They die with the one that started them.
"""

from __future__ import annotations

import ctypes
import multiprocessing
import os
import signal
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from typing import TypeVar

import torch

from clipa.errors import DataError

_PR_SET_PDEATHSIG = 1

A = TypeVar("A")
B = TypeVar("B")


def spread(job: Callable[[A], B], items: Sequence[A], workers: int) -> Iterator[tuple[A, B]]:
    """(item, job(item)) of every item, in the order in which they are done. With one worker, in this process.

    Args:
        job: can be pickled; what it raises is raised here, and ends the others.
        items: of any number; at most two a worker are on their way.
        workers: processes.

    Raises:
        DataError: a process died.
    """
    if min(workers, len(items)) <= 1:
        for item in items:
            yield item, job(item)
        return
    pool = ProcessPoolExecutor(
        min(workers, len(items)), multiprocessing.get_context("spawn"), initializer=_begin, initargs=(os.getpid(),)
    )
    processes = []
    try:
        todo = iter(items)
        running: dict[Future[B], A] = {}
        while True:
            for item in todo:
                running[pool.submit(job, item)] = item
                if len(running) >= 2 * workers:
                    break
            processes = [*(pool._processes or {}).values()]
            if not running:
                processes = []
                return
            for future in wait(running, return_when=FIRST_COMPLETED).done:
                yield running.pop(future), future.result()
    except BrokenProcessPool as error:
        raise DataError(
            "a worker died", hint="out of memory? the same command with fewer --workers goes on from here"
        ) from error
    finally:
        pool.shutdown(wait=False, cancel_futures=True)
        for process in processes:  # in the middle of something that nobody wants any more
            process.terminate()


def _begin(parent: int) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != parent:
        os._exit(1)
    torch.set_num_threads(1)
