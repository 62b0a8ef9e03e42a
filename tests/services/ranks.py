"""Ranks of a training, forked from one process that has imported torch: so many imports would outlast a test."""

from __future__ import annotations

import os
import traceback
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist

from clipa.attempt.devices import Ranks


def forked(world: int, store: Path, work: Callable[[Ranks], None]) -> None:
    """Do the work on so many ranks, which meet in a file that is not there yet (gloo); all must do well."""
    children = []
    for rank in range(world):
        if not (child := os.fork()):
            code = 1
            try:
                _rank(rank, world, store, work)
                code = 0
            except BaseException:
                traceback.print_exc()
            finally:
                os._exit(code)
        children.append(child)
    codes = [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]
    assert codes == [0] * world, codes


def _rank(rank: int, world: int, store: Path, work: Callable[[Ranks], None]) -> None:
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo", init_method=f"file://{store}", rank=rank, world_size=world, timeout=timedelta(seconds=120)
    )
    work(Ranks(rank, world, torch.device("cpu")))
    dist.barrier()
    dist.destroy_process_group()
