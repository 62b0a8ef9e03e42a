"""How a loader worker begins: a process that dies with its rank, and leaves Ctrl-C to it.

A process that has threads must not fork: a child has one thread, and every lock that another one held stays locked.
Seen on Python 3.11.2 with gloo's threads: a worker that never left PyOS_AfterFork_Child, and a training that waited
for it. So workers are forked by a server that was started afresh (multiprocessing's "forkserver") and has one thread.
"""

from __future__ import annotations

import ctypes
import gc
import multiprocessing
import os
import signal
import threading
from multiprocessing.connection import wait

import torch

from clipa.attempt.pulse import show_stacks_on_request

_IMPORTED_BY = os.getpid()
"""The server, which imports this before it forks."""

_PR_SET_PDEATHSIG = 1  # prctl(2)


def begin(_number: int) -> None:
    """Make this process a worker: it dies with its rank and with the server, and computes on one thread."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    show_stacks_on_request()
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if _IMPORTED_BY not in (os.getpid(), os.getppid()):
        os._exit(1)  # the server died before it could be watched
    rank = multiprocessing.parent_process()
    assert rank is not None
    # The rank is no parent of ours, so the kernel won't tell: it holds the other end of this pipe as long as it lives.
    threading.Thread(target=_die_with, args=(rank.sentinel,), daemon=True).start()
    torch.set_num_threads(1)
    # What is imported stays: no collection need look at 170,000 objects, and so copy the pages that are shared.
    gc.freeze()


def _die_with(sentinel: int) -> None:
    wait([sentinel])
    os.kill(os.getpid(), signal.SIGKILL)
